`default_nettype none

// Self-checking bench: replays a vector file of sgd_update. Its parameters stand in the manifest.
module check_sgd_update #(
    parameter FILE         = "",  // path of the hex file
    parameter LOG          = "check.log",
    parameter CASES        = 0,   // as in verdict
    parameter W_WIDTH      = 24,  // this and what follows: as in sgd_update
    parameter W_SIGNED     = 1,
    parameter M_WIDTH      = 13,
    parameter M_SIGNED     = 1,
    parameter G_WIDTH      = 15,
    parameter G_SIGNED     = 1,
    parameter LR_WIDTH     = 10,
    parameter LR_SIGNED    = 0,
    parameter MU_WIDTH     = 3,
    parameter MU_SIGNED    = 0,
    parameter G_UP         = 0,
    parameter MU_UP        = 0,
    parameter M_SHIFT      = 2,
    parameter M_PRE_SHIFT  = 0,
    parameter M_ROUNDING   = 9,
    parameter M_OVERFLOW   = 1,
    parameter M_RAND_WIDTH = 1,
    parameter EXACT        = 1,
    parameter D_WIDTH      = 17,
    parameter W_UP         = 0,
    parameter LR_UP        = 0,
    parameter W_SHIFT      = 0,
    parameter W_PRE_SHIFT  = 0,
    parameter W_ROUNDING   = 0,
    parameter W_OVERFLOW   = 1,
    parameter W_RAND_WIDTH = 1
);
  localparam W = (W_WIDTH + 3) / 4 * 4, M = (M_WIDTH + 3) / 4 * 4, G = (G_WIDTH + 3) / 4 * 4,
             LR = (LR_WIDTH + 3) / 4 * 4, MU = (MU_WIDTH + 3) / 4 * 4,
             M_RAND = (M_RAND_WIDTH + 3) / 4 * 4, W_RAND = (W_RAND_WIDTH + 3) / 4 * 4, BIT = 4;
  localparam OUT = W + M + BIT + BIT, IN = W + M + G + LR + MU + M_RAND + W_RAND;
  localparam AT_W_RAND = OUT, AT_M_RAND = AT_W_RAND + W_RAND, AT_MU = AT_M_RAND + M_RAND,
             AT_LR = AT_MU + MU, AT_G = AT_LR + LR, AT_M = AT_G + G, AT_W = AT_M + M;

  wire [IN+OUT-1:0] line;
  wire [W-1:0]      weight;
  wire [M-1:0]      momentum;
  wire [BIT-1:0]    ovf_weight, ovf_momentum;
  stream_combinational #(.FILE(FILE), .LOG(LOG), .WIDTH(IN + OUT)) stream (
      .line_o(line), .answer_i({line[OUT +: IN], weight, momentum, ovf_weight, ovf_momentum}));
  initial stream.go = 1'b1;
  verdict #(.FILE(FILE), .LOG(LOG), .CASES(CASES)) verdict (
      .done_i(stream.done), .lines_i(stream.lines), .mismatches_i(stream.mismatches));

  wire [W_WIDTH-1:0] weight_bits;
  wire [M_WIDTH-1:0] momentum_bits;
  wire               ovf_weight_bit, ovf_momentum_bit;
  sgd_update #(
      .W_WIDTH(W_WIDTH), .W_SIGNED(W_SIGNED), .M_WIDTH(M_WIDTH), .M_SIGNED(M_SIGNED),
      .G_WIDTH(G_WIDTH), .G_SIGNED(G_SIGNED), .LR_WIDTH(LR_WIDTH), .LR_SIGNED(LR_SIGNED),
      .MU_WIDTH(MU_WIDTH), .MU_SIGNED(MU_SIGNED), .G_UP(G_UP), .MU_UP(MU_UP), .M_SHIFT(M_SHIFT),
      .M_PRE_SHIFT(M_PRE_SHIFT), .M_ROUNDING(M_ROUNDING), .M_OVERFLOW(M_OVERFLOW),
      .M_RAND_WIDTH(M_RAND_WIDTH), .EXACT(EXACT), .D_WIDTH(D_WIDTH), .W_UP(W_UP), .LR_UP(LR_UP),
      .W_SHIFT(W_SHIFT), .W_PRE_SHIFT(W_PRE_SHIFT), .W_ROUNDING(W_ROUNDING),
      .W_OVERFLOW(W_OVERFLOW), .W_RAND_WIDTH(W_RAND_WIDTH)
  ) unit (
      .weight_i(line[AT_W +: W_WIDTH]), .momentum_i(line[AT_M +: M_WIDTH]),
      .grad_i(line[AT_G +: G_WIDTH]), .lr_i(line[AT_LR +: LR_WIDTH]),
      .mu_i(line[AT_MU +: MU_WIDTH]), .rand_momentum_i(line[AT_M_RAND +: M_RAND_WIDTH]),
      .rand_weight_i(line[AT_W_RAND +: W_RAND_WIDTH]), .weight_o(weight_bits),
      .momentum_o(momentum_bits), .ovf_weight_o(ovf_weight_bit),
      .ovf_momentum_o(ovf_momentum_bit));
  hex_field #(.WIDTH(W_WIDTH)) weight_field (.bits_i(weight_bits), .field_o(weight));
  hex_field #(.WIDTH(M_WIDTH)) momentum_field (.bits_i(momentum_bits), .field_o(momentum));
  hex_field ovf_weight_field (.bits_i(ovf_weight_bit), .field_o(ovf_weight));
  hex_field ovf_momentum_field (.bits_i(ovf_momentum_bit), .field_o(ovf_momentum));
  wire unused = &{1'b0, line};
endmodule

`default_nettype wire
