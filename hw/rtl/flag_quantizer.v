`default_nettype none

// A cast to flagged numbers, combinational: one of at least one code is cast by WIDTH bits, a
// smaller one by as many bits below the last of these. With LOW = WIDTH - 1 magnitude bits
//   coarse = cast(value_i / 2^(shift_i - PRE_SHIFT)), in units of 2^LOW
//   fine   = round(value_i / 2^(shift_i - PRE_SHIFT - LOW)), where that is below 2^LOW
// This is flag-QE2 of WAGEUBN: 9 bits for WIDTH 8.
module flag_quantizer #(
    parameter IN_WIDTH   = 16,  // 1..128, bits of value_i
    parameter IN_SIGNED  = 1,   // 0 or 1
    parameter WIDTH      = 8,   // 2..16, bits of a signed code, without its flag
    parameter MAX_SHIFT  = 8,   // 0..255; a greater shift_i counts as this
    parameter PRE_SHIFT  = 0,   // 0..256 - WIDTH, zeros appended to value_i before the shift
    parameter ROUNDING   = 9,   // 0..11, emu.number.Rounding
    parameter OVERFLOW   = 2,   // 0..3, emu.number.Overflow, of coarse codes
    parameter RAND_WIDTH = 1    // 1..32, bits of the random operand of STOCHASTIC
) (
    input  wire [IN_WIDTH-1:0]   value_i,
    input  wire [7:0]            shift_i,
    input  wire [RAND_WIDTH-1:0] rand_i,
    output wire [WIDTH:0]        code_o,     // the flag (1: coarse), then the code
    output wire [2*WIDTH-2:0]    operand_o,  // what it stands for, in units of the finer last bit
    output wire                  ovf_o       // the rounded value was outside the mode's range
);
  localparam LOW = WIDTH - 1;
  localparam TO_ZERO = 2, SAT = 1;

  generate  // an illegal parameter instantiates a module that does not exist
    if (WIDTH < 2 || WIDTH > 16) begin : g_width
      WIDTH_must_be_2_to_16 refused ();
    end
    if (PRE_SHIFT < 0 || PRE_SHIFT > 256 - WIDTH) begin : g_shift
      PRE_SHIFT_must_be_0_to_256_less_WIDTH refused ();
    end
  endgenerate

  // Whether there is a code at all: toward zero, is something left?
  wire [1:0] whole;
  wire       unused_ovf;
  quantizer #(
      .IN_WIDTH(IN_WIDTH), .IN_SIGNED(IN_SIGNED), .OUT_WIDTH(2), .MAX_SHIFT(MAX_SHIFT),
      .PRE_SHIFT(PRE_SHIFT), .ROUNDING(TO_ZERO), .OVERFLOW(SAT)
  ) size_cast (
      .value_i(value_i), .shift_i(shift_i), .rand_i(1'b0), .rounding_i(4'd0),
      .code_o(whole), .ovf_o(unused_ovf));
  wire is_coarse = |whole;

  wire [WIDTH-1:0] coarse;
  wire             coarse_ovf;
  quantizer #(
      .IN_WIDTH(IN_WIDTH), .IN_SIGNED(IN_SIGNED), .OUT_WIDTH(WIDTH), .MAX_SHIFT(MAX_SHIFT),
      .PRE_SHIFT(PRE_SHIFT), .ROUNDING(ROUNDING), .OVERFLOW(OVERFLOW), .RAND_WIDTH(RAND_WIDTH)
  ) coarse_cast (
      .value_i(value_i), .shift_i(shift_i), .rand_i(rand_i), .rounding_i(4'd0),
      .code_o(coarse), .ovf_o(coarse_ovf));

  wire [2*WIDTH-2:0] fine;  // up to 2^LOW of either sign, which is one coarse code
  wire               unused_fine_ovf;
  quantizer #(
      .IN_WIDTH(IN_WIDTH), .IN_SIGNED(IN_SIGNED), .OUT_WIDTH(2*WIDTH - 1), .MAX_SHIFT(MAX_SHIFT),
      .PRE_SHIFT(PRE_SHIFT + LOW), .ROUNDING(ROUNDING), .OVERFLOW(SAT), .RAND_WIDTH(RAND_WIDTH)
  ) fine_cast (
      .value_i(value_i), .shift_i(shift_i), .rand_i(rand_i), .rounding_i(4'd0),
      .code_o(fine), .ovf_o(unused_fine_ovf));

  assign operand_o = is_coarse ? {coarse, {LOW{1'b0}}} : fine;
  assign ovf_o = is_coarse && coarse_ovf;

  // The flag: below a coarse unit of either sign all bits from LOW up are those of the sign.
  wire [WIDTH-1:0] high = operand_o[2*WIDTH-2:LOW];
  wire             one_below = &high && |operand_o[LOW-1:0];  // between -2^LOW and 0
  wire             flag = |high && !one_below;
  assign code_o = {flag, flag ? high : operand_o[WIDTH-1:0]};

  wire unused = &{1'b0, unused_ovf, unused_fine_ovf};
endmodule

`default_nettype wire
