`default_nettype none

// One cast: value_i / 2^(shift_i - PRE_SHIFT), rounded, then fitted into OUT_WIDTH bits.
// Combinational. The only place where bits are rounded or fitted.
module quantizer #(
    parameter IN_WIDTH      = 16,  // 1..128, bits of value_i
    parameter IN_SIGNED     = 1,   // 0 or 1
    parameter OUT_WIDTH     = 8,   // 1..64, bits of code_o
    parameter OUT_SIGNED    = 1,   // 0 or 1
    parameter MAX_SHIFT     = 8,   // 0..255; a greater shift_i counts as this
    parameter PRE_SHIFT     = 0,   // 0..255, zeros appended to value_i before the shift
    parameter ROUNDING      = 0,   // 0..11, emu.number.Rounding
    parameter OVERFLOW      = 0,   // 0..3, emu.number.Overflow
    parameter RAND_WIDTH    = 1,   // 1..32, bits of the random operand of STOCHASTIC
    parameter ROUNDING_PORT = 0    // 1: the mode is rounding_i, ROUNDING is ignored
) (
    input  wire [IN_WIDTH-1:0]   value_i,
    input  wire [7:0]            shift_i,
    input  wire [RAND_WIDTH-1:0] rand_i,
    input  wire [3:0]            rounding_i,  // 12..15 count as TO_NEG
    output wire [OUT_WIDTH-1:0]  code_o,
    output wire                  ovf_o        // the rounded value was outside the mode's range
);
  localparam TO_POS = 4'd1, TO_ZERO = 4'd2, TO_AWAY = 4'd3, TO_ODD = 4'd4, TIES_NEG = 4'd5,
             TIES_POS = 4'd6, TIES_ZERO = 4'd7, TIES_AWAY = 4'd8, TIES_EVEN = 4'd9,
             TIES_ODD = 4'd10, STOCHASTIC = 4'd11;  // what is left is TO_NEG
  localparam WRAP = 0, SAT_SYM = 2, SAT_ZERO = 3;   // what is left is SAT

  generate  // an illegal parameter instantiates a module that does not exist
    if (IN_WIDTH < 1 || IN_WIDTH > 128) begin : g_in
      IN_WIDTH_must_be_1_to_128 refused ();
    end
    if (OUT_WIDTH < 1 || OUT_WIDTH > 64) begin : g_out
      OUT_WIDTH_must_be_1_to_64 refused ();
    end
    if ((IN_SIGNED | 1) != 1 || (OUT_SIGNED | 1) != 1 || (ROUNDING_PORT | 1) != 1) begin : g_bit
      IN_SIGNED_and_OUT_SIGNED_and_ROUNDING_PORT_must_be_0_or_1 refused ();
    end
    if (MAX_SHIFT < 0 || MAX_SHIFT > 255 || PRE_SHIFT < 0 || PRE_SHIFT > 255) begin : g_shift
      MAX_SHIFT_and_PRE_SHIFT_must_be_0_to_255 refused ();
    end
    if (ROUNDING < 0 || ROUNDING > 11) begin : g_rounding
      ROUNDING_must_be_0_to_11 refused ();
    end
    if (OVERFLOW < 0 || OVERFLOW > 3) begin : g_overflow
      OVERFLOW_must_be_0_to_3 refused ();
    end
    if (OVERFLOW == SAT_SYM && OUT_SIGNED == 1 && OUT_WIDTH == 1) begin : g_symmetric
      SAT_SYM_needs_OUT_WIDTH_of_2_or_more refused ();
    end
    if (RAND_WIDTH < 1 || RAND_WIDTH > 32) begin : g_rand
      RAND_WIDTH_must_be_1_to_32 refused ();
    end
  endgenerate

  // Shift right once, keeping every bit that falls below the point. WIDE holds the sign of both
  // sides; the rounding carry needs no further bit, for only a value shifted down can be rounded.
  localparam ALIGNED = IN_WIDTH + PRE_SHIFT;
  localparam WIDE    = (ALIGNED > OUT_WIDTH ? ALIGNED : OUT_WIDTH) + 1;
  localparam GUARD   = MAX_SHIFT > 0 ? MAX_SHIFT : 1;
  localparam [8:0] LIMIT = MAX_SHIFT[8:0];

  wire negative = IN_SIGNED != 0 && value_i[IN_WIDTH-1];
  wire [8:0] shift = {1'b0, shift_i} > LIMIT ? LIMIT : {1'b0, shift_i};
  wire signed [WIDE+GUARD-1:0] aligned =
      {{(WIDE-ALIGNED){negative}}, value_i, {(PRE_SHIFT+GUARD){1'b0}}};
  wire signed [WIDE+GUARD-1:0] shifted = aligned >>> shift;
  wire signed [WIDE-1:0] floor = shifted[WIDE+GUARD-1:GUARD];
  wire        [GUARD-1:0] rest = shifted[GUARD-1:0];  // left aligned: half is its top bit

  // Decide one bit, then add it.
  wire half  = rest[GUARD-1];
  wire lower = |(rest << 1);  // the bits below half; a shift, for GUARD may be 1
  wire odd   = floor[0];
  wire lost  = half || lower;
  wire above = half && lower;
  wire tie   = half && !lower;
  // rest + rand_i, both left aligned, carries out: rand_i exceeds what is left to the next code.
  wire carry = {rand_i, {GUARD{1'b0}}} > ~{rest, {RAND_WIDTH{1'b0}}};

  wire [3:0] rounding = ROUNDING_PORT != 0 ? rounding_i : ROUNDING[3:0];
  reg round_up;
  always @* begin
    case (rounding)
      TO_POS:     round_up = lost;
      TO_ZERO:    round_up = lost && negative;
      TO_AWAY:    round_up = lost && !negative;
      TO_ODD:     round_up = lost && !odd;
      TIES_NEG:   round_up = above;
      TIES_POS:   round_up = above || tie;
      TIES_ZERO:  round_up = above || (tie && negative);
      TIES_AWAY:  round_up = above || (tie && !negative);
      TIES_EVEN:  round_up = above || (tie && odd);
      TIES_ODD:   round_up = above || (tie && !odd);
      STOCHASTIC: round_up = carry;
      default:    round_up = 1'b0;
    endcase
  end

  localparam signed [WIDE-1:0] ONE = 1;
  localparam signed [WIDE-1:0] HI  = (ONE <<< (OUT_WIDTH - OUT_SIGNED)) - ONE;
  localparam signed [WIDE-1:0] LO  = OUT_SIGNED == 0 ? HI ^ HI : OVERFLOW == SAT_SYM ? -HI : ~HI;

  wire signed [WIDE-1:0] rounded = round_up ? floor + ONE : floor;
  wire over  = rounded > HI;
  wire under = rounded < LO;
  assign ovf_o = over || under;
  assign code_o = OVERFLOW == WRAP || !ovf_o ? rounded[OUT_WIDTH-1:0]
                : OVERFLOW == SAT_ZERO       ? {OUT_WIDTH{1'b0}}
                : over                       ? HI[OUT_WIDTH-1:0]
                                             : LO[OUT_WIDTH-1:0];
endmodule

`default_nettype wire
