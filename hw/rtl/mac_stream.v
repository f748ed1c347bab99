`default_nettype none

// A mac between two valid/ready streams: steps in, the sum of each transaction out. Where the
// receiver stops, the mac stands still as it is, and ready_o falls. Latency 2 + PIPELINE clocks.
module mac_stream #(
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
    parameter ACC_WIDTH    = 32,
    parameter ACC_SIGNED   = 1,
    parameter ACC_OVERFLOW = 0,
    parameter PIPELINE     = 0,
    parameter ASYNC_RESET  = 0,
    parameter COUNT_WIDTH  = 16
) (
    input  wire                     clk_i,
    input  wire                     rst_ni,
    input  wire                     valid_i,
    output wire                     ready_o,
    input  wire                     load_i,
    input  wire                     last_i,
    input  wire [ACC_WIDTH-1:0]     bias_i,
    input  wire [LANES*A_WIDTH-1:0] a_i,
    input  wire [LANES*B_WIDTH-1:0] b_i,
    output wire                     valid_o,
    input  wire                     ready_i,
    output wire [ACC_WIDTH-1:0]     acc_o,
    output wire                     ovf_o,
    output wire [COUNT_WIDTH-1:0]   ovf_count_o
);
  wire                   done, ovf, unused_step;
  wire [ACC_WIDTH-1:0]   acc;
  wire [COUNT_WIDTH-1:0] count;
  mac #(
      .A_WIDTH(A_WIDTH), .A_SIGNED(A_SIGNED), .B_WIDTH(B_WIDTH), .B_SIGNED(B_SIGNED),
      .LANES(LANES), .P_WIDTH(P_WIDTH), .P_SIGNED(P_SIGNED), .P_SHIFT(P_SHIFT),
      .P_PRE_SHIFT(P_PRE_SHIFT), .P_ROUNDING(P_ROUNDING), .P_OVERFLOW(P_OVERFLOW),
      .ACC_WIDTH(ACC_WIDTH), .ACC_SIGNED(ACC_SIGNED), .ACC_OVERFLOW(ACC_OVERFLOW),
      .PIPELINE(PIPELINE), .ASYNC_RESET(ASYNC_RESET), .COUNT_WIDTH(COUNT_WIDTH)
  ) unit (
      .clk_i(clk_i), .rst_ni(rst_ni), .en_i(ready_o), .valid_i(valid_i), .load_i(load_i),
      .last_i(last_i), .bias_i(bias_i), .a_i(a_i), .b_i(b_i), .step_o(unused_step),
      .valid_o(done), .acc_o(acc), .ovf_o(ovf), .ovf_count_o(count));

  skid_buffer #(.WIDTH(ACC_WIDTH + 1 + COUNT_WIDTH), .ASYNC_RESET(ASYNC_RESET)) buffer (
      .clk_i(clk_i), .rst_ni(rst_ni), .valid_i(done), .ready_o(ready_o),
      .data_i({acc, ovf, count}), .valid_o(valid_o), .ready_i(ready_i),
      .data_o({acc_o, ovf_o, ovf_count_o}));

  wire unused = unused_step;
endmodule

`default_nettype wire
