`default_nettype none

// Self-checking bench: replays a vector file of quantizer. Its parameters stand in the manifest.
module check_quantizer #(
    parameter FILE       = "",  // path of the hex file
    parameter LOG        = "check.log",
    parameter CASES      = 0,   // as in verdict
    parameter IN_WIDTH   = 16,  // this and what follows: as in quantizer
    parameter IN_SIGNED  = 1,
    parameter OUT_WIDTH  = 8,
    parameter OUT_SIGNED = 1,
    parameter MAX_SHIFT  = 8,
    parameter PRE_SHIFT  = 0,
    parameter ROUNDING   = 0,
    parameter OVERFLOW   = 0,
    parameter RAND_WIDTH = 1
);
  localparam VALUE = (IN_WIDTH + 3) / 4 * 4, SHIFT = 8, RAND = (RAND_WIDTH + 3) / 4 * 4,
             CODE = (OUT_WIDTH + 3) / 4 * 4, OVF = 4;
  localparam WIDTH = VALUE + SHIFT + RAND + CODE + OVF;

  wire [WIDTH-1:0] line;
  wire [CODE-1:0]  code;
  wire [OVF-1:0]   ovf;
  stream_combinational #(.FILE(FILE), .LOG(LOG), .WIDTH(WIDTH)) stream (
      .line_o(line), .answer_i({line[WIDTH-1 -: VALUE+SHIFT+RAND], code, ovf}));
  initial stream.go = 1'b1;
  verdict #(.FILE(FILE), .LOG(LOG), .CASES(CASES)) verdict (
      .done_i(stream.done), .lines_i(stream.lines), .mismatches_i(stream.mismatches));

  wire [OUT_WIDTH-1:0] code_bits;
  wire                 ovf_bit;
  quantizer #(
      .IN_WIDTH(IN_WIDTH), .IN_SIGNED(IN_SIGNED), .OUT_WIDTH(OUT_WIDTH), .OUT_SIGNED(OUT_SIGNED),
      .MAX_SHIFT(MAX_SHIFT), .PRE_SHIFT(PRE_SHIFT), .ROUNDING(ROUNDING), .OVERFLOW(OVERFLOW),
      .RAND_WIDTH(RAND_WIDTH)
  ) unit (
      .value_i(line[CODE+OVF+RAND+SHIFT +: IN_WIDTH]), .shift_i(line[CODE+OVF+RAND +: 8]),
      .rand_i(line[CODE+OVF +: RAND_WIDTH]), .rounding_i(4'd0),
      .code_o(code_bits), .ovf_o(ovf_bit));
  hex_field #(.WIDTH(OUT_WIDTH)) code_field (.bits_i(code_bits), .field_o(code));
  hex_field ovf_field (.bits_i(ovf_bit), .field_o(ovf));
  wire unused = &{1'b0, line};
endmodule

`default_nettype wire
