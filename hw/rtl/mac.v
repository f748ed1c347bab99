`default_nettype none

// One step of a dot product: acc <= fit(base + sum over LANES of cast(a * b)), where base is
// bias_i at load_i, else acc. Accepts a step (valid_i) every clock, and bubbles anywhere.
// Latency 1 + PIPELINE enabled clocks: step_o then tells that the outputs are those of a new step,
// valid_o that this step was the last of its transaction. Nothing moves while en_i is low.
module mac #(
    parameter A_WIDTH      = 8,   // 1..32, bits of one a
    parameter A_SIGNED     = 1,   // 0 or 1
    parameter B_WIDTH      = 8,   // 1..32, bits of one b
    parameter B_SIGNED     = 1,   // 0 or 1
    parameter LANES        = 1,   // 1..1024, products of a step
    parameter P_WIDTH      = 16,  // 1..64, bits of a product after its cast
    parameter P_SIGNED     = 1,   // 0 or 1
    parameter P_SHIFT      = 0,   // 0..255, bits dropped from each product
    parameter P_PRE_SHIFT  = 0,   // 0..255, zeros appended to each product
    parameter P_ROUNDING   = 0,   // 0..10, emu.number.Rounding without STOCHASTIC
    parameter P_OVERFLOW   = 0,   // 0..3, emu.number.Overflow
    parameter ACC_WIDTH    = 32,  // 1..64, bits of the accumulator and of the bias
    parameter ACC_SIGNED   = 1,   // 0 or 1
    parameter ACC_OVERFLOW = 0,   // 0..3, emu.number.Overflow
    parameter PIPELINE     = 0,   // 1: registered products; 2: registered operands too
    parameter ASYNC_RESET  = 0,   // as in register
    parameter COUNT_WIDTH  = 16   // 1 or more, bits of the overflow counter
) (
    input  wire                     clk_i,
    input  wire                     rst_ni,
    input  wire                     en_i,
    input  wire                     valid_i,
    input  wire                     load_i,
    input  wire                     last_i,
    input  wire [ACC_WIDTH-1:0]     bias_i,      // ignored without load_i
    input  wire [LANES*A_WIDTH-1:0] a_i,         // lane 0 lowest; unused lanes are zeros
    input  wire [LANES*B_WIDTH-1:0] b_i,
    output wire                     step_o,
    output wire                     valid_o,
    output wire [ACC_WIDTH-1:0]     acc_o,
    output wire                     ovf_o,       // some step since load overflowed
    output wire [COUNT_WIDTH-1:0]   ovf_count_o  // how many did; stays at its greatest value
);
  generate  // an illegal parameter instantiates a module that does not exist
    if (A_WIDTH < 1 || A_WIDTH > 32 || B_WIDTH < 1 || B_WIDTH > 32) begin : g_operands
      A_WIDTH_and_B_WIDTH_must_be_1_to_32 refused ();
    end
    if ((A_SIGNED | 1) != 1 || (B_SIGNED | 1) != 1 || (P_SIGNED | 1) != 1) begin : g_signed
      A_SIGNED_and_B_SIGNED_and_P_SIGNED_must_be_0_or_1 refused ();
    end
    if ((ACC_SIGNED | 1) != 1) begin : g_acc_signed
      ACC_SIGNED_must_be_0_or_1 refused ();
    end
    if (LANES < 1 || LANES > 1024) begin : g_lanes
      LANES_must_be_1_to_1024 refused ();
    end
    if (P_ROUNDING == 11) begin : g_rounding
      P_ROUNDING_must_be_0_to_10_as_a_mac_has_no_random_operand refused ();
    end
    if (PIPELINE < 0 || PIPELINE > 2) begin : g_pipeline
      PIPELINE_must_be_0_to_2 refused ();
    end
    if (COUNT_WIDTH < 1) begin : g_count
      COUNT_WIDTH_must_be_1_or_more refused ();
    end
  endgenerate

  // Operands of the multipliers, with the controls that travel beside them.
  localparam CONTROL = 3 + ACC_WIDTH;  // valid, load, last, bias
  localparam A_BITS = LANES * A_WIDTH, B_BITS = LANES * B_WIDTH, P_BITS = LANES * P_WIDTH;
  wire [CONTROL-1:0] control_1;
  wire [A_BITS-1:0]  a_1;
  wire [B_BITS-1:0]  b_1;
  generate
    if (PIPELINE == 2) begin : g_stage_1
      register #(.WIDTH(CONTROL + A_BITS + B_BITS), .ASYNC_RESET(ASYNC_RESET)) stage (
          .clk_i(clk_i), .rst_ni(rst_ni), .en_i(en_i),
          .d_i({valid_i, load_i, last_i, bias_i, a_i, b_i}), .q_o({control_1, a_1, b_1}));
    end else begin : g_wires_1
      assign {control_1, a_1, b_1} = {valid_i, load_i, last_i, bias_i, a_i, b_i};
    end
  endgenerate

  // Each product is exact, then rounded and fitted on its own.
  localparam FULL = A_WIDTH + B_WIDTH;
  wire [P_BITS-1:0] products;
  wire [LANES-1:0]  products_ovf;
  genvar lane;
  generate
    for (lane = 0; lane < LANES; lane = lane + 1) begin : g_lane
      wire [A_WIDTH-1:0] a = a_1[lane*A_WIDTH +: A_WIDTH];
      wire [B_WIDTH-1:0] b = b_1[lane*B_WIDTH +: B_WIDTH];
      // One block, not three wires: a simulator then multiplies once for each change, not once for
      // each replicated sign bit.
      reg signed [FULL-1:0] a_wide, b_wide, product;
      always @* begin
        a_wide  = {{B_WIDTH{A_SIGNED != 0 && a[A_WIDTH-1]}}, a};
        b_wide  = {{A_WIDTH{B_SIGNED != 0 && b[B_WIDTH-1]}}, b};
        product = a_wide * b_wide;  // its low FULL bits are all of it
      end
      quantizer #(
          .IN_WIDTH(FULL), .IN_SIGNED(A_SIGNED | B_SIGNED),
          .OUT_WIDTH(P_WIDTH), .OUT_SIGNED(P_SIGNED),
          .MAX_SHIFT(P_SHIFT), .PRE_SHIFT(P_PRE_SHIFT),
          .ROUNDING(P_ROUNDING), .OVERFLOW(P_OVERFLOW)
      ) cast (
          .value_i(product), .shift_i(P_SHIFT[7:0]), .rand_i(1'b0), .rounding_i(4'd0),
          .code_o(products[lane*P_WIDTH +: P_WIDTH]), .ovf_o(products_ovf[lane]));
    end
  endgenerate

  wire                 valid, load, last, product_ovf;
  wire [ACC_WIDTH-1:0] bias;
  wire [P_BITS-1:0]    terms;
  generate
    if (PIPELINE >= 1) begin : g_stage_2
      register #(.WIDTH(CONTROL + 1 + P_BITS), .ASYNC_RESET(ASYNC_RESET)) stage (
          .clk_i(clk_i), .rst_ni(rst_ni), .en_i(en_i),
          .d_i({control_1, |products_ovf, products}),
          .q_o({valid, load, last, bias, product_ovf, terms}));
    end else begin : g_wires_2
      assign {valid, load, last, bias, product_ovf, terms} = {control_1, |products_ovf, products};
    end
  endgenerate

  // The exact sum: LANES products and the base, each with a sign bit, and one carry.
  localparam TREE = P_WIDTH + $clog2(LANES);
  localparam SUM  = (TREE > ACC_WIDTH ? TREE : ACC_WIDTH) + 2;
  wire [ACC_WIDTH-1:0] base = load ? bias : acc_o;
  reg  signed [SUM-1:0] sum;
  integer k;
  always @* begin
    sum = {{(SUM-ACC_WIDTH){ACC_SIGNED != 0 && base[ACC_WIDTH-1]}}, base};
    for (k = 0; k < LANES; k = k + 1)
      sum = sum + $signed({{(SUM-P_WIDTH){P_SIGNED != 0 && terms[k*P_WIDTH + P_WIDTH-1]}},
                           terms[k*P_WIDTH +: P_WIDTH]});
  end

  wire [ACC_WIDTH-1:0] acc_d;
  wire                 acc_ovf;
  quantizer #(
      .IN_WIDTH(SUM), .OUT_WIDTH(ACC_WIDTH), .OUT_SIGNED(ACC_SIGNED),
      .MAX_SHIFT(0), .OVERFLOW(ACC_OVERFLOW)
  ) fit (
      .value_i(sum), .shift_i(8'd0), .rand_i(1'b0), .rounding_i(4'd0),
      .code_o(acc_d), .ovf_o(acc_ovf));

  wire overflowed = acc_ovf || product_ovf;
  wire ovf_d = (ovf_o && !load) || overflowed;
  wire [COUNT_WIDTH-1:0] count = load ? {COUNT_WIDTH{1'b0}} : ovf_count_o;
  wire [COUNT_WIDTH-1:0] count_d = overflowed && !(&count) ? count + 1'b1 : count;

  register #(.WIDTH(ACC_WIDTH + 1 + COUNT_WIDTH), .ASYNC_RESET(ASYNC_RESET)) result (
      .clk_i(clk_i), .rst_ni(rst_ni), .en_i(en_i && valid),
      .d_i({acc_d, ovf_d, count_d}), .q_o({acc_o, ovf_o, ovf_count_o}));
  register #(.WIDTH(2), .ASYNC_RESET(ASYNC_RESET)) handshake (
      .clk_i(clk_i), .rst_ni(rst_ni), .en_i(en_i),
      .d_i({valid, valid && last}), .q_o({step_o, valid_o}));
endmodule

`default_nettype wire
