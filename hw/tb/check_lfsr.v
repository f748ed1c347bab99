`default_nettype none

// Self-checking bench: replays a vector file of lfsr. Its parameters stand in the manifest.
module check_lfsr #(
    parameter FILE       = "",  // path of the hex file
    parameter LOG        = "check.log",
    parameter CASES      = 0,   // as in verdict
    parameter BUBBLES    = 1,   // as in stream_clocked
    parameter RAND_WIDTH = 16   // as in lfsr
);
  localparam LOAD = 4, STATE = 32, RAND = (RAND_WIDTH + 3) / 4 * 4;
  localparam WIDTH = LOAD + STATE + RAND;

  wire             clk, rst_n, en, valid, step;
  wire [WIDTH-1:0] drive, check;
  wire [RAND-1:0]  random;
  stream_clocked #(.FILE(FILE), .LOG(LOG), .WIDTH(WIDTH), .BUBBLES(BUBBLES)) stream (
      .clk_o(clk), .rst_no(rst_n), .en_o(en), .valid_o(valid), .drive_o(drive), .check_o(check),
      .step_i(step), .answer_i({check[WIDTH-1 -: LOAD+STATE], random}));
  initial stream.go = 1'b1;
  verdict #(.FILE(FILE), .LOG(LOG), .CASES(CASES)) verdict (
      .done_i(stream.done), .lines_i(stream.lines), .mismatches_i(stream.mismatches));

  wire [RAND_WIDTH-1:0] rand_bits;
  lfsr #(.RAND_WIDTH(RAND_WIDTH)) unit (
      .clk_i(clk), .rst_ni(rst_n), .en_i(en && valid), .load_i(drive[RAND+STATE]),
      .state_i(drive[RAND +: STATE]), .rand_o(rand_bits), .valid_o(step));
  hex_field #(.WIDTH(RAND_WIDTH)) rand_field (.bits_i(rand_bits), .field_o(random));
  wire unused = &{1'b0, check};
endmodule

`default_nettype wire
