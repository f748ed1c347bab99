`default_nettype none

// Self-checking bench: replays a vector file of flag_quantizer. Its parameters stand in the
// manifest.
module check_flag_quantizer #(
    parameter FILE       = "",  // path of the hex file
    parameter LOG        = "check.log",
    parameter CASES      = 0,   // as in verdict
    parameter IN_WIDTH   = 16,  // this and what follows: as in flag_quantizer
    parameter IN_SIGNED  = 1,
    parameter WIDTH      = 8,
    parameter MAX_SHIFT  = 8,
    parameter PRE_SHIFT  = 0,
    parameter ROUNDING   = 9,
    parameter OVERFLOW   = 2,
    parameter RAND_WIDTH = 1
);
  localparam VALUE = (IN_WIDTH + 3) / 4 * 4, SHIFT = 8, RAND = (RAND_WIDTH + 3) / 4 * 4,
             CODE = (WIDTH + 4) / 4 * 4, OPERAND = (2 * WIDTH + 2) / 4 * 4, OVF = 4;
  localparam OUT = CODE + OPERAND + OVF, IN = VALUE + SHIFT + RAND;

  wire [IN+OUT-1:0]  line;
  wire [CODE-1:0]    code;
  wire [OPERAND-1:0] operand;
  wire [OVF-1:0]     ovf;
  stream_combinational #(.FILE(FILE), .LOG(LOG), .WIDTH(IN + OUT)) stream (
      .line_o(line), .answer_i({line[OUT +: IN], code, operand, ovf}));
  initial stream.go = 1'b1;
  verdict #(.FILE(FILE), .LOG(LOG), .CASES(CASES)) verdict (
      .done_i(stream.done), .lines_i(stream.lines), .mismatches_i(stream.mismatches));

  wire [WIDTH:0]     code_bits;
  wire [2*WIDTH-2:0] operand_bits;
  wire               ovf_bit;
  flag_quantizer #(
      .IN_WIDTH(IN_WIDTH), .IN_SIGNED(IN_SIGNED), .WIDTH(WIDTH), .MAX_SHIFT(MAX_SHIFT),
      .PRE_SHIFT(PRE_SHIFT), .ROUNDING(ROUNDING), .OVERFLOW(OVERFLOW), .RAND_WIDTH(RAND_WIDTH)
  ) unit (
      .value_i(line[OUT+RAND+SHIFT +: IN_WIDTH]), .shift_i(line[OUT+RAND +: 8]),
      .rand_i(line[OUT +: RAND_WIDTH]), .code_o(code_bits), .operand_o(operand_bits),
      .ovf_o(ovf_bit));
  hex_field #(.WIDTH(WIDTH + 1)) code_field (.bits_i(code_bits), .field_o(code));
  hex_field #(.WIDTH(2 * WIDTH - 1)) operand_field (.bits_i(operand_bits), .field_o(operand));
  hex_field ovf_field (.bits_i(ovf_bit), .field_o(ovf));
  wire unused = &{1'b0, line};
endmodule

`default_nettype wire
