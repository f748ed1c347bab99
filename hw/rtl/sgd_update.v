`default_nettype none

// The SGD update of one weight, combinational; sums are exact, each with one cast at its end:
//   sum        = mu_i * momentum_i + grad_i
//   momentum_o = cast(sum)
//   weight_o   = cast(weight_i - lr_i * direction), direction = momentum_o; with EXACT it is sum,
//                as in WAGEUBN, where the momentum that is kept is all that is rounded.
// *_UP zeros align the terms of a sum; its cast drops *_SHIFT bits or appends *_PRE_SHIFT zeros.
module sgd_update #(
    parameter W_WIDTH      = 24,  // 1..62, bits of a weight
    parameter W_SIGNED     = 1,   // 0 or 1
    parameter M_WIDTH      = 13,  // 1..32, bits of a momentum
    parameter M_SIGNED     = 1,   // 0 or 1
    parameter G_WIDTH      = 15,  // 1..62, bits of a gradient
    parameter G_SIGNED     = 1,   // 0 or 1
    parameter LR_WIDTH     = 10,  // 1..31, bits of the learning rate
    parameter LR_SIGNED    = 0,   // 0 or 1
    parameter MU_WIDTH     = 3,   // 1..31, bits of the momentum's factor
    parameter MU_SIGNED    = 0,   // 0 or 1
    parameter G_UP         = 0,   // 0..61, zeros appended to a gradient
    parameter MU_UP        = 0,   // 0..61, zeros appended to mu_i * momentum_i
    parameter M_SHIFT      = 2,   // 0..255
    parameter M_PRE_SHIFT  = 0,   // 0..61
    parameter M_ROUNDING   = 9,   // 0..11, emu.number.Rounding
    parameter M_OVERFLOW   = 1,   // 0..3, emu.number.Overflow
    parameter M_RAND_WIDTH = 1,   // 1..32, bits of the random operand of STOCHASTIC
    parameter EXACT        = 1,   // 0 or 1
    parameter D_WIDTH      = 17,  // bits of a direction: of the exact sum, else M_WIDTH
    parameter W_UP         = 0,   // 0..61, zeros appended to a weight
    parameter LR_UP        = 0,   // 0..61, zeros appended to lr_i * direction
    parameter W_SHIFT      = 0,   // 0..255
    parameter W_PRE_SHIFT  = 0,   // 0..61
    parameter W_ROUNDING   = 0,   // 0..11, emu.number.Rounding
    parameter W_OVERFLOW   = 1,   // 0..3, emu.number.Overflow
    parameter W_RAND_WIDTH = 1    // 1..32, bits of the random operand of STOCHASTIC
) (
    input  wire [W_WIDTH-1:0]      weight_i,
    input  wire [M_WIDTH-1:0]      momentum_i,
    input  wire [G_WIDTH-1:0]      grad_i,
    input  wire [LR_WIDTH-1:0]     lr_i,
    input  wire [MU_WIDTH-1:0]     mu_i,
    input  wire [M_RAND_WIDTH-1:0] rand_momentum_i,
    input  wire [W_RAND_WIDTH-1:0] rand_weight_i,
    output wire [W_WIDTH-1:0]      weight_o,
    output wire [M_WIDTH-1:0]      momentum_o,
    output wire                    ovf_weight_o,    // its rounded sum was outside the mode's range
    output wire                    ovf_momentum_o
);
  generate  // an illegal parameter instantiates a module that does not exist
    if (W_WIDTH < 1 || W_WIDTH > 62 || G_WIDTH < 1 || G_WIDTH > 62) begin : g_addends
      W_WIDTH_and_G_WIDTH_must_be_1_to_62 refused ();
    end
    if (M_WIDTH < 1 || M_WIDTH > 32) begin : g_momentum
      M_WIDTH_must_be_1_to_32 refused ();
    end
    if (LR_WIDTH < 1 || LR_WIDTH > 31 || MU_WIDTH < 1 || MU_WIDTH > 31) begin : g_constants
      LR_WIDTH_and_MU_WIDTH_must_be_1_to_31 refused ();
    end
    if ((W_SIGNED | 1) != 1 || (M_SIGNED | 1) != 1 || (G_SIGNED | 1) != 1
        || (LR_SIGNED | 1) != 1 || (MU_SIGNED | 1) != 1 || (EXACT | 1) != 1) begin : g_bit
      EXACT_and_SIGNED_of_W_M_G_LR_MU_must_be_0_or_1 refused ();
    end
    if (G_UP < 0 || G_UP > 61 || MU_UP < 0 || MU_UP > 61
        || W_UP < 0 || W_UP > 61 || LR_UP < 0 || LR_UP > 61) begin : g_up
      UP_of_G_MU_W_LR_must_be_0_to_61 refused ();
    end
    if (D_WIDTH < 1 || D_WIDTH > SUM_M || (EXACT == 0 && D_WIDTH != M_WIDTH)) begin : g_direction
      D_WIDTH_must_be_that_of_the_direction refused ();
    end
    if (SUM_M > 128 || SUM_W > 128) begin : g_sums
      SUM_of_these_widths_must_be_128_bits_or_less refused ();
    end
  endgenerate

  // The low bits of a product are all of it; a sum has room for its terms, a sign and a carry.
  localparam AHEAD = MU_WIDTH + M_WIDTH, MOVE = LR_WIDTH + D_WIDTH;
  localparam SUM_M = (AHEAD + MU_UP > G_WIDTH + G_UP ? AHEAD + MU_UP : G_WIDTH + G_UP) + 2;
  localparam SUM_W = (MOVE + LR_UP > W_WIDTH + W_UP ? MOVE + LR_UP : W_WIDTH + W_UP) + 2;
  localparam D_SIGNED = EXACT != 0 ? 1 : M_SIGNED;

  wire mu_negative       = MU_SIGNED != 0 && mu_i[MU_WIDTH-1];
  wire momentum_negative = M_SIGNED != 0 && momentum_i[M_WIDTH-1];
  wire grad_negative     = G_SIGNED != 0 && grad_i[G_WIDTH-1];
  wire signed [AHEAD-1:0] mu       = {{M_WIDTH{mu_negative}}, mu_i};
  wire signed [AHEAD-1:0] momentum = {{MU_WIDTH{momentum_negative}}, momentum_i};
  wire signed [AHEAD-1:0] ahead    = mu * momentum;
  wire ahead_negative = (MU_SIGNED != 0 || M_SIGNED != 0) && ahead[AHEAD-1];
  wire signed [SUM_M-1:0] ahead_wide = {{(SUM_M-AHEAD){ahead_negative}}, ahead};
  wire signed [SUM_M-1:0] grad       = {{(SUM_M-G_WIDTH){grad_negative}}, grad_i};
  wire signed [SUM_M-1:0] sum        = (ahead_wide <<< MU_UP) + (grad <<< G_UP);
  quantizer #(
      .IN_WIDTH(SUM_M), .OUT_WIDTH(M_WIDTH), .OUT_SIGNED(M_SIGNED),
      .MAX_SHIFT(M_SHIFT), .PRE_SHIFT(M_PRE_SHIFT), .ROUNDING(M_ROUNDING),
      .OVERFLOW(M_OVERFLOW), .RAND_WIDTH(M_RAND_WIDTH)
  ) keep (
      .value_i(sum), .shift_i(M_SHIFT[7:0]), .rand_i(rand_momentum_i), .rounding_i(4'd0),
      .code_o(momentum_o), .ovf_o(ovf_momentum_o));

  wire [D_WIDTH-1:0] direction;
  generate
    if (EXACT != 0) begin : g_exact
      assign direction = sum[D_WIDTH-1:0];
    end else begin : g_rounded
      assign direction = momentum_o;
    end
  endgenerate

  wire lr_negative        = LR_SIGNED != 0 && lr_i[LR_WIDTH-1];
  wire direction_negative = D_SIGNED != 0 && direction[D_WIDTH-1];
  wire weight_negative    = W_SIGNED != 0 && weight_i[W_WIDTH-1];
  wire signed [MOVE-1:0] lr     = {{D_WIDTH{lr_negative}}, lr_i};
  wire signed [MOVE-1:0] toward = {{LR_WIDTH{direction_negative}}, direction};
  wire signed [MOVE-1:0] move   = lr * toward;
  wire move_negative = (LR_SIGNED != 0 || D_SIGNED != 0) && move[MOVE-1];
  wire signed [SUM_W-1:0] move_wide = {{(SUM_W-MOVE){move_negative}}, move};
  wire signed [SUM_W-1:0] weight    = {{(SUM_W-W_WIDTH){weight_negative}}, weight_i};
  wire signed [SUM_W-1:0] moved     = (weight <<< W_UP) - (move_wide <<< LR_UP);
  quantizer #(
      .IN_WIDTH(SUM_W), .OUT_WIDTH(W_WIDTH), .OUT_SIGNED(W_SIGNED),
      .MAX_SHIFT(W_SHIFT), .PRE_SHIFT(W_PRE_SHIFT), .ROUNDING(W_ROUNDING),
      .OVERFLOW(W_OVERFLOW), .RAND_WIDTH(W_RAND_WIDTH)
  ) update (
      .value_i(moved), .shift_i(W_SHIFT[7:0]), .rand_i(rand_weight_i), .rounding_i(4'd0),
      .code_o(weight_o), .ovf_o(ovf_weight_o));
endmodule

`default_nettype wire
