`default_nettype none

// One element of mac_array: a mac (or, with TILE, a mac_tiled), the registers through which steps
// and operands reach its neighbours, and its place in the row's chain. The chain holds the bias
// that the next load takes, then the sum of the transaction; with move_i it takes chain_i.
module mac_pe #(
    parameter A_WIDTH      = 8,   // this and what follows: as in mac_tiled
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
    parameter TILE         = 0,   // 0: one level, and the rest does not matter
    parameter RELOAD       = 0,
    parameter O_WIDTH      = 32,
    parameter O_SIGNED     = 1,
    parameter O_SHIFT      = 0,
    parameter O_PRE_SHIFT  = 0,
    parameter O_ROUNDING   = 0,
    parameter O_OVERFLOW   = 0,
    parameter R_WIDTH      = 32   // bits of a sum: ACC_WIDTH, or O_WIDTH with TILE
) (
    input  wire                     clk_i,
    input  wire                     rst_ni,
    input  wire                     en_i,
    input  wire [2:0]               step_i,   // valid, load, last
    input  wire [LANES*A_WIDTH-1:0] a_i,
    input  wire [LANES*B_WIDTH-1:0] b_i,
    output wire [2:0]               step_o,   // these three one clock later
    output wire [LANES*A_WIDTH-1:0] a_o,
    output wire [LANES*B_WIDTH-1:0] b_o,
    input  wire                     move_i,
    input  wire [R_WIDTH:0]         chain_i,  // whether some step overflowed, and the sum
    output wire [R_WIDTH:0]         chain_o,
    output wire                     done_o    // the chain holds the sum since this clock
);
  // Each output is a register of its own, so that a compiled model finds nothing to settle.
  register #(.WIDTH(3), .ASYNC_RESET(ASYNC_RESET)) step (
      .clk_i(clk_i), .rst_ni(rst_ni), .en_i(en_i), .d_i(step_i), .q_o(step_o));
  register #(.WIDTH(LANES * A_WIDTH), .ASYNC_RESET(ASYNC_RESET)) a (
      .clk_i(clk_i), .rst_ni(rst_ni), .en_i(en_i), .d_i(a_i), .q_o(a_o));
  register #(.WIDTH(LANES * B_WIDTH), .ASYNC_RESET(ASYNC_RESET)) b (
      .clk_i(clk_i), .rst_ni(rst_ni), .en_i(en_i), .d_i(b_i), .q_o(b_o));

  wire [R_WIDTH-1:0]     sum;
  wire                   done, ovf, unused_step;
  wire [COUNT_WIDTH-1:0] unused_count;
  generate
    if (TILE == 0) begin : g_mac
      mac #(
          .A_WIDTH(A_WIDTH), .A_SIGNED(A_SIGNED), .B_WIDTH(B_WIDTH), .B_SIGNED(B_SIGNED),
          .LANES(LANES), .P_WIDTH(P_WIDTH), .P_SIGNED(P_SIGNED), .P_SHIFT(P_SHIFT),
          .P_PRE_SHIFT(P_PRE_SHIFT), .P_ROUNDING(P_ROUNDING), .P_OVERFLOW(P_OVERFLOW),
          .ACC_WIDTH(ACC_WIDTH), .ACC_SIGNED(ACC_SIGNED), .ACC_OVERFLOW(ACC_OVERFLOW),
          .PIPELINE(PIPELINE), .ASYNC_RESET(ASYNC_RESET), .COUNT_WIDTH(COUNT_WIDTH)
      ) unit (
          .clk_i(clk_i), .rst_ni(rst_ni), .en_i(en_i), .valid_i(step_i[2]), .load_i(step_i[1]),
          .last_i(step_i[0]), .bias_i(chain_o[R_WIDTH-1:0]), .a_i(a_i), .b_i(b_i),
          .step_o(unused_step), .valid_o(done), .acc_o(sum), .ovf_o(ovf),
          .ovf_count_o(unused_count));
    end else begin : g_tiled
      mac_tiled #(
          .A_WIDTH(A_WIDTH), .A_SIGNED(A_SIGNED), .B_WIDTH(B_WIDTH), .B_SIGNED(B_SIGNED),
          .LANES(LANES), .P_WIDTH(P_WIDTH), .P_SIGNED(P_SIGNED), .P_SHIFT(P_SHIFT),
          .P_PRE_SHIFT(P_PRE_SHIFT), .P_ROUNDING(P_ROUNDING), .P_OVERFLOW(P_OVERFLOW),
          .ACC_WIDTH(ACC_WIDTH), .ACC_SIGNED(ACC_SIGNED), .ACC_OVERFLOW(ACC_OVERFLOW),
          .PIPELINE(PIPELINE), .ASYNC_RESET(ASYNC_RESET), .COUNT_WIDTH(COUNT_WIDTH),
          .TILE(TILE), .RELOAD(RELOAD), .O_WIDTH(O_WIDTH), .O_SIGNED(O_SIGNED),
          .O_SHIFT(O_SHIFT), .O_PRE_SHIFT(O_PRE_SHIFT), .O_ROUNDING(O_ROUNDING),
          .O_OVERFLOW(O_OVERFLOW)
      ) unit (
          .clk_i(clk_i), .rst_ni(rst_ni), .en_i(en_i), .valid_i(step_i[2]), .load_i(step_i[1]),
          .last_i(step_i[0]), .bias_i(chain_o[R_WIDTH-1:0]), .a_i(a_i), .b_i(b_i),
          .step_o(unused_step), .valid_o(done), .acc_o(sum), .ovf_o(ovf),
          .ovf_count_o(unused_count));
    end
  endgenerate

  register #(.WIDTH(1 + R_WIDTH), .ASYNC_RESET(ASYNC_RESET)) chain (
      .clk_i(clk_i), .rst_ni(rst_ni), .en_i(en_i && (move_i || done)),
      .d_i(move_i ? chain_i : {ovf, sum}), .q_o(chain_o));
  register #(.ASYNC_RESET(ASYNC_RESET)) told (
      .clk_i(clk_i), .rst_ni(rst_ni), .en_i(en_i), .d_i(done), .q_o(done_o));

  wire unused = &{1'b0, unused_step, unused_count};
endmodule

`default_nettype wire
