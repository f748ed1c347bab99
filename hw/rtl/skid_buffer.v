`default_nettype none

// A valid/ready stage with room for two words, so that ready_o comes from a register and no word
// is lost where the receiver stops. Latency 1; a word a clock in each direction.
module skid_buffer #(
    parameter WIDTH       = 8,  // 1 or more, bits
    parameter ASYNC_RESET = 0   // as in register
) (
    input  wire             clk_i,
    input  wire             rst_ni,
    input  wire             valid_i,
    output wire             ready_o,
    input  wire [WIDTH-1:0] data_i,
    output wire             valid_o,
    input  wire             ready_i,
    output wire [WIDTH-1:0] data_o
);
  wire full;
  wire moves = ready_i || !valid_o;
  assign ready_o = !full;

  wire [WIDTH-1:0] spare;
  register #(.WIDTH(WIDTH), .ASYNC_RESET(ASYNC_RESET)) second (
      .clk_i(clk_i), .rst_ni(rst_ni), .en_i(valid_i && ready_o), .d_i(data_i), .q_o(spare));
  register #(.ASYNC_RESET(ASYNC_RESET)) occupied (
      .clk_i(clk_i), .rst_ni(rst_ni), .en_i(1'b1),
      .d_i(!moves && (full || valid_i)), .q_o(full));
  register #(.WIDTH(1 + WIDTH), .ASYNC_RESET(ASYNC_RESET)) first (
      .clk_i(clk_i), .rst_ni(rst_ni), .en_i(moves),
      .d_i({full || valid_i, full ? spare : data_i}), .q_o({valid_o, data_o}));
endmodule

`default_nettype wire
