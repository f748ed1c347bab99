`default_nettype none

// A dot product in two levels: a mac sums TILE steps, then an outer accumulator takes its sum.
//   RELOAD 0: outer <= fit(outer + cast(acc)), and acc restarts at 0.
//   RELOAD 1: outer <= cast(acc), and acc continues from outer, aligned back and fitted.
// A tile also ends at last_i. bias_i, at load_i, is a code of outer. Ports and protocol are those
// of mac, with outer in the place of acc. Latency 2 + PIPELINE enabled clocks.
module mac_tiled #(
    parameter A_WIDTH      = 8,   // this and what follows: as in mac
    parameter A_SIGNED     = 1,
    parameter B_WIDTH      = 8,
    parameter B_SIGNED     = 1,
    parameter LANES        = 1,
    parameter P_WIDTH      = 16,
    parameter P_SIGNED     = 1,
    parameter P_SHIFT      = 0,
    parameter P_PRE_SHIFT  = 0,
    parameter P_ROUNDING   = 0,
    parameter P_OVERFLOW   = 0,
    parameter ACC_WIDTH    = 20,
    parameter ACC_SIGNED   = 1,
    parameter ACC_OVERFLOW = 0,
    parameter PIPELINE     = 0,   // 0 with RELOAD: the next step needs the sum of the last one
    parameter ASYNC_RESET  = 0,
    parameter COUNT_WIDTH  = 16,
    parameter TILE         = 4,   // 1..2^20, steps of a tile
    parameter RELOAD       = 0,   // 0 or 1
    parameter O_WIDTH      = 32,  // 1..64, bits of the outer accumulator and of the bias
    parameter O_SIGNED     = 1,   // 0 or 1
    parameter O_SHIFT      = 0,   // 0..255, bits dropped from each sum, and appended by a reload
    parameter O_PRE_SHIFT  = 0,   // 0..255, zeros appended to each sum; 0 with RELOAD
    parameter O_ROUNDING   = 0,   // 0..10, emu.number.Rounding without STOCHASTIC
    parameter O_OVERFLOW   = 0    // 0..3, emu.number.Overflow
) (
    input  wire                     clk_i,
    input  wire                     rst_ni,
    input  wire                     en_i,
    input  wire                     valid_i,
    input  wire                     load_i,
    input  wire                     last_i,
    input  wire [O_WIDTH-1:0]       bias_i,
    input  wire [LANES*A_WIDTH-1:0] a_i,
    input  wire [LANES*B_WIDTH-1:0] b_i,
    output wire                     step_o,
    output wire                     valid_o,
    output wire [O_WIDTH-1:0]       acc_o,
    output wire                     ovf_o,
    output wire [COUNT_WIDTH-1:0]   ovf_count_o
);
  generate  // an illegal parameter instantiates a module that does not exist
    if (TILE < 1 || TILE > 1048576) begin : g_tile
      TILE_must_be_1_to_1048576 refused ();
    end
    if ((RELOAD | 1) != 1 || (O_SIGNED | 1) != 1) begin : g_reload
      RELOAD_and_O_SIGNED_must_be_0_or_1 refused ();
    end
    if (RELOAD == 1 && (PIPELINE != 0 || O_PRE_SHIFT != 0)) begin : g_hazard
      PIPELINE_and_O_PRE_SHIFT_must_be_0_with_RELOAD refused ();
    end
    if (O_ROUNDING == 11) begin : g_rounding
      O_ROUNDING_must_be_0_to_10_as_a_mac_has_no_random_operand refused ();
    end
  endgenerate

  // Which step of its tile this is.
  localparam STEP_WIDTH = TILE > 1 ? $clog2(TILE) : 1;
  localparam [STEP_WIDTH-1:0] FINAL = TILE[STEP_WIDTH-1:0] - 1'b1;
  wire [STEP_WIDTH-1:0] count;
  wire [STEP_WIDTH-1:0] position = load_i ? {STEP_WIDTH{1'b0}} : count;
  wire opens = position == {STEP_WIDTH{1'b0}};
  wire closes = last_i || position == FINAL;
  wire [STEP_WIDTH-1:0] following = closes ? {STEP_WIDTH{1'b0}} : position + 1'b1;
  register #(.WIDTH(STEP_WIDTH), .ASYNC_RESET(ASYNC_RESET)) counter (
      .clk_i(clk_i), .rst_ni(rst_ni), .en_i(en_i && valid_i), .d_i(following), .q_o(count));

  // Where a tile starts from.
  wire [O_WIDTH-1:0]   outer;
  wire [ACC_WIDTH-1:0] start;
  wire                 start_ovf;
  generate
    if (RELOAD != 0) begin : g_reload_start
      quantizer #(
          .IN_WIDTH(O_WIDTH), .IN_SIGNED(O_SIGNED),
          .OUT_WIDTH(ACC_WIDTH), .OUT_SIGNED(ACC_SIGNED),
          .MAX_SHIFT(0), .PRE_SHIFT(O_SHIFT), .OVERFLOW(ACC_OVERFLOW)
      ) align (
          .value_i(load_i ? bias_i : outer), .shift_i(8'd0), .rand_i(1'b0), .rounding_i(4'd0),
          .code_o(start), .ovf_o(start_ovf));
    end else begin : g_zero_start
      assign start = {ACC_WIDTH{1'b0}};
      assign start_ovf = 1'b0;
    end
  endgenerate

  localparam INNER_COUNT = $clog2(TILE + 1);  // never at its end: it counts the steps of a tile
  wire                   inner_step, inner_closes, unused_ovf;
  wire [ACC_WIDTH-1:0]   inner_acc;
  wire [INNER_COUNT-1:0] inner_count;
  mac #(
      .A_WIDTH(A_WIDTH), .A_SIGNED(A_SIGNED), .B_WIDTH(B_WIDTH), .B_SIGNED(B_SIGNED),
      .LANES(LANES), .P_WIDTH(P_WIDTH), .P_SIGNED(P_SIGNED), .P_SHIFT(P_SHIFT),
      .P_PRE_SHIFT(P_PRE_SHIFT), .P_ROUNDING(P_ROUNDING), .P_OVERFLOW(P_OVERFLOW),
      .ACC_WIDTH(ACC_WIDTH), .ACC_SIGNED(ACC_SIGNED), .ACC_OVERFLOW(ACC_OVERFLOW),
      .PIPELINE(PIPELINE), .ASYNC_RESET(ASYNC_RESET), .COUNT_WIDTH(INNER_COUNT)
  ) inner (
      .clk_i(clk_i), .rst_ni(rst_ni), .en_i(en_i), .valid_i(valid_i), .load_i(opens),
      .last_i(closes), .bias_i(start), .a_i(a_i), .b_i(b_i), .step_o(inner_step),
      .valid_o(inner_closes), .acc_o(inner_acc), .ovf_o(unused_ovf), .ovf_count_o(inner_count));

  // What belongs to the step that the mac has just done.
  wire load, last, tile_opens, tile_start_ovf;
  wire [O_WIDTH-1:0] bias;
  delay #(.WIDTH(4 + O_WIDTH), .CLOCKS(1 + PIPELINE), .ASYNC_RESET(ASYNC_RESET)) beside (
      .clk_i(clk_i), .rst_ni(rst_ni), .en_i(en_i),
      .d_i({load_i, last_i, opens, opens && start_ovf, bias_i}),
      .q_o({load, last, tile_opens, tile_start_ovf, bias}));

  wire [O_WIDTH-1:0] spilled;
  wire               spilled_ovf;
  quantizer #(
      .IN_WIDTH(ACC_WIDTH), .IN_SIGNED(ACC_SIGNED), .OUT_WIDTH(O_WIDTH), .OUT_SIGNED(O_SIGNED),
      .MAX_SHIFT(O_SHIFT), .PRE_SHIFT(O_PRE_SHIFT), .ROUNDING(O_ROUNDING), .OVERFLOW(O_OVERFLOW)
  ) spill (
      .value_i(inner_acc), .shift_i(O_SHIFT[7:0]), .rand_i(1'b0), .rounding_i(4'd0),
      .code_o(spilled), .ovf_o(spilled_ovf));

  wire [O_WIDTH-1:0] base = load ? bias : acc_o;
  wire [O_WIDTH-1:0] total;
  wire               total_ovf;
  generate
    if (RELOAD != 0) begin : g_replace
      assign total = spilled;
      assign total_ovf = 1'b0;
    end else begin : g_add
      wire [O_WIDTH:0] sum = {O_SIGNED != 0 && base[O_WIDTH-1], base}
                           + {O_SIGNED != 0 && spilled[O_WIDTH-1], spilled};
      quantizer #(
          .IN_WIDTH(O_WIDTH + 1), .IN_SIGNED(O_SIGNED), .OUT_WIDTH(O_WIDTH), .OUT_SIGNED(O_SIGNED),
          .MAX_SHIFT(0), .OVERFLOW(O_OVERFLOW)
      ) fit (
          .value_i(sum), .shift_i(8'd0), .rand_i(1'b0), .rounding_i(4'd0),
          .code_o(total), .ovf_o(total_ovf));
    end
  endgenerate
  wire [O_WIDTH-1:0] outer_d = inner_closes ? total : base;
  assign outer = inner_step ? outer_d : acc_o;  // a reload does not wait for the register

  // The mac counts its overflows from the start of a tile: the lowest bit tells of a new one.
  wire counted;
  register #(.ASYNC_RESET(ASYNC_RESET)) parity (
      .clk_i(clk_i), .rst_ni(rst_ni), .en_i(en_i && inner_step),
      .d_i(inner_count[0]), .q_o(counted));
  wire inner_ovf = inner_count[0] != (counted && !tile_opens);
  wire overflowed = inner_ovf || tile_start_ovf || (inner_closes && (spilled_ovf || total_ovf));
  wire ovf_d = (ovf_o && !load) || overflowed;
  wire [COUNT_WIDTH-1:0] ovf_count = load ? {COUNT_WIDTH{1'b0}} : ovf_count_o;
  wire [COUNT_WIDTH-1:0] ovf_count_d =
      overflowed && !(&ovf_count) ? ovf_count + 1'b1 : ovf_count;

  register #(.WIDTH(O_WIDTH + 1 + COUNT_WIDTH), .ASYNC_RESET(ASYNC_RESET)) result (
      .clk_i(clk_i), .rst_ni(rst_ni), .en_i(en_i && inner_step),
      .d_i({outer_d, ovf_d, ovf_count_d}), .q_o({acc_o, ovf_o, ovf_count_o}));
  register #(.WIDTH(2), .ASYNC_RESET(ASYNC_RESET)) handshake (
      .clk_i(clk_i), .rst_ni(rst_ni), .en_i(en_i),
      .d_i({inner_step, inner_step && last}), .q_o({step_o, valid_o}));

  wire unused = &{1'b0, unused_ovf, inner_count, outer};
endmodule

`default_nettype wire
