`default_nettype none

// ROWS x COLS dot products at once: an output-stationary array of mac_pe. A step gives one operand
// (of LANES codes) to each row and each column; inside it is delayed by a clock for each row and
// column, so that row i meets column j ROWS - 1 + COLS - 1 clocks after the first at the latest.
//
// 1. COLS clocks of move_i: biases enter at the first column, the last column's first. The sums of
//    the transaction before leave through the requantisers at the last column.
// 2. Steps: the first one with load_i, the last one with last_i; gaps anywhere.
// 3. When done_o has been high, all sums are in the chains, and it begins again.
//
// What leaves at a clock of move_i is on the outputs one enabled clock later, with valid_o. Nothing
// moves while en_i is low.
module mac_array #(
    parameter ROWS         = 4,   // 1..256
    parameter COLS         = 4,   // 1..256
    parameter A_WIDTH      = 8,   // this and what follows: as in mac_pe
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
    parameter ACC_WIDTH    = 32,
    parameter ACC_SIGNED   = 1,
    parameter ACC_OVERFLOW = 0,
    parameter PIPELINE     = 0,
    parameter ASYNC_RESET  = 0,
    parameter COUNT_WIDTH  = 16,
    parameter TILE         = 0,
    parameter RELOAD       = 0,
    parameter O_WIDTH      = 32,
    parameter O_SIGNED     = 1,
    parameter O_SHIFT      = 0,
    parameter O_PRE_SHIFT  = 0,
    parameter O_ROUNDING   = 0,
    parameter O_OVERFLOW   = 0,
    parameter OUT_WIDTH    = 8,   // this and what follows: of the requantisers, as in quantizer
    parameter OUT_SIGNED   = 1,
    parameter MAX_SHIFT    = 8,
    parameter PRE_SHIFT    = 0,
    parameter ROUNDING     = 0,
    parameter OVERFLOW     = 0,
    parameter RAND_WIDTH   = 1
) (
    input  wire                          clk_i,
    input  wire                          rst_ni,
    input  wire                          en_i,
    input  wire                          valid_i,
    input  wire                          load_i,
    input  wire                          last_i,
    input  wire [ROWS*LANES*A_WIDTH-1:0] a_i,      // row 0 lowest
    input  wire [COLS*LANES*B_WIDTH-1:0] b_i,      // column 0 lowest
    input  wire                          move_i,   // not from load_i until done_o
    input  wire [ROWS*(TILE == 0 ? ACC_WIDTH : O_WIDTH)-1:0] bias_i,
    input  wire [7:0]                    shift_i,  // of the requantisers
    input  wire [ROWS*RAND_WIDTH-1:0]    rand_i,
    output wire                          done_o,
    output wire                          valid_o,
    output wire [ROWS*(TILE == 0 ? ACC_WIDTH : O_WIDTH)-1:0] acc_o,
    output wire [ROWS-1:0]               ovf_o,    // some step of this sum overflowed
    output wire [ROWS*OUT_WIDTH-1:0]     code_o,
    output wire [ROWS-1:0]               clip_o    // ovf_o of this requantiser
);
  generate  // an illegal parameter instantiates a module that does not exist
    if (ROWS < 1 || ROWS > 256 || COLS < 1 || COLS > 256) begin : g_size
      ROWS_and_COLS_must_be_1_to_256 refused ();
    end
  endgenerate

  localparam R_WIDTH = TILE == 0 ? ACC_WIDTH : O_WIDTH;
  localparam R_SIGNED = TILE == 0 ? ACC_SIGNED : O_SIGNED;
  localparam A_BITS = LANES * A_WIDTH, B_BITS = LANES * B_WIDTH;

  genvar i, j;
  generate
    for (j = 0; j < COLS; j = j + 1) begin : g_top
      wire [B_BITS-1:0] b;
      delay #(.WIDTH(B_BITS), .CLOCKS(j), .ASYNC_RESET(ASYNC_RESET)) skew (
          .clk_i(clk_i), .rst_ni(rst_ni), .en_i(en_i), .d_i(b_i[j*B_BITS +: B_BITS]), .q_o(b));
    end

    for (i = 0; i < ROWS; i = i + 1) begin : g_row
      wire [2:0]        step;
      wire [A_BITS-1:0] a;
      delay #(.WIDTH(3 + A_BITS), .CLOCKS(i), .ASYNC_RESET(ASYNC_RESET)) skew (
          .clk_i(clk_i), .rst_ni(rst_ni), .en_i(en_i),
          .d_i({valid_i, load_i, last_i, a_i[i*A_BITS +: A_BITS]}), .q_o({step, a}));

      for (j = 0; j < COLS; j = j + 1) begin : g_col
        wire [2:0]        step_in, step_out;
        wire [A_BITS-1:0] a_in, a_out;
        wire [B_BITS-1:0] b_in, b_out;
        wire [R_WIDTH:0]  chain_in, chain_out;
        wire              done;
        if (j == 0) begin : g_left
          assign {step_in, a_in} = {step, a};
          assign chain_in = {1'b0, bias_i[i*R_WIDTH +: R_WIDTH]};
        end else begin : g_inside
          assign step_in  = g_row[i].g_col[j-1].step_out;
          assign a_in     = g_row[i].g_col[j-1].a_out;
          assign chain_in = g_row[i].g_col[j-1].chain_out;
        end
        if (i == 0) begin : g_above
          assign b_in = g_top[j].b;
        end else begin : g_below
          assign b_in = g_row[i-1].g_col[j].b_out;
        end
        mac_pe #(
            .A_WIDTH(A_WIDTH), .A_SIGNED(A_SIGNED), .B_WIDTH(B_WIDTH), .B_SIGNED(B_SIGNED),
            .LANES(LANES), .P_WIDTH(P_WIDTH), .P_SIGNED(P_SIGNED), .P_SHIFT(P_SHIFT),
            .P_PRE_SHIFT(P_PRE_SHIFT), .P_ROUNDING(P_ROUNDING), .P_OVERFLOW(P_OVERFLOW),
            .ACC_WIDTH(ACC_WIDTH), .ACC_SIGNED(ACC_SIGNED), .ACC_OVERFLOW(ACC_OVERFLOW),
            .PIPELINE(PIPELINE), .ASYNC_RESET(ASYNC_RESET), .COUNT_WIDTH(COUNT_WIDTH),
            .TILE(TILE), .RELOAD(RELOAD), .O_WIDTH(O_WIDTH), .O_SIGNED(O_SIGNED),
            .O_SHIFT(O_SHIFT), .O_PRE_SHIFT(O_PRE_SHIFT), .O_ROUNDING(O_ROUNDING),
            .O_OVERFLOW(O_OVERFLOW), .R_WIDTH(R_WIDTH)
        ) pe (
            .clk_i(clk_i), .rst_ni(rst_ni), .en_i(en_i),
            .step_i(step_in), .a_i(a_in), .b_i(b_in),
            .step_o(step_out), .a_o(a_out), .b_o(b_out),
            .move_i(move_i), .chain_i(chain_in), .chain_o(chain_out), .done_o(done));
        wire unused = &{1'b0, step_out, a_out, b_out, done};  // at the far sides
      end

      // The edge: what leaves the last column, as it is and requantised.
      wire [R_WIDTH:0]     leaving = g_row[i].g_col[COLS-1].chain_out;
      wire [OUT_WIDTH-1:0] code;
      wire                 clip;
      quantizer #(
          .IN_WIDTH(R_WIDTH), .IN_SIGNED(R_SIGNED), .OUT_WIDTH(OUT_WIDTH), .OUT_SIGNED(OUT_SIGNED),
          .MAX_SHIFT(MAX_SHIFT), .PRE_SHIFT(PRE_SHIFT), .ROUNDING(ROUNDING), .OVERFLOW(OVERFLOW),
          .RAND_WIDTH(RAND_WIDTH)
      ) requantiser (
          .value_i(leaving[R_WIDTH-1:0]), .shift_i(shift_i),
          .rand_i(rand_i[i*RAND_WIDTH +: RAND_WIDTH]), .rounding_i(4'd0),
          .code_o(code), .ovf_o(clip));
      register #(.WIDTH(R_WIDTH + OUT_WIDTH + 2), .ASYNC_RESET(ASYNC_RESET)) result (
          .clk_i(clk_i), .rst_ni(rst_ni), .en_i(en_i && move_i),
          .d_i({leaving, code, clip}),
          .q_o({ovf_o[i], acc_o[i*R_WIDTH +: R_WIDTH], code_o[i*OUT_WIDTH +: OUT_WIDTH],
                clip_o[i]}));
      if (i == ROWS - 1) begin : g_done
        assign done_o = g_row[i].g_col[COLS-1].done;
      end
    end
  endgenerate

  register #(.ASYNC_RESET(ASYNC_RESET)) moved (
      .clk_i(clk_i), .rst_ni(rst_ni), .en_i(en_i), .d_i(move_i), .q_o(valid_o));
endmodule

`default_nettype wire
