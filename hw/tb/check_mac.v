`default_nettype none

// Self-checking bench: replays a vector file of mac, or of mac_tiled where TILE is not 0. Its
// parameters stand in the manifest.
module check_mac #(
    parameter FILE         = "",  // path of the hex file
    parameter LOG          = "check.log",
    parameter CASES        = 0,   // as in verdict
    parameter BUBBLES      = 1,   // as in stream_clocked
    parameter A_WIDTH      = 8,   // this and what follows: as in mac, and mac_tiled
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
    parameter COUNT_WIDTH  = 16,
    parameter TILE         = 0,
    parameter RELOAD       = 0,
    parameter O_WIDTH      = 32,
    parameter O_SIGNED     = 1,
    parameter O_SHIFT      = 0,
    parameter O_PRE_SHIFT  = 0,
    parameter O_ROUNDING   = 0,
    parameter O_OVERFLOW   = 0
);
  localparam SUM = TILE == 0 ? ACC_WIDTH : O_WIDTH;
  localparam BIT = 4, BIAS = (SUM + 3) / 4 * 4, A = (LANES * A_WIDTH + 3) / 4 * 4,
             B = (LANES * B_WIDTH + 3) / 4 * 4, COUNT = (COUNT_WIDTH + 3) / 4 * 4;
  localparam OUT = BIT + BIAS + BIT + COUNT, IN = BIT + BIT + BIAS + A + B;
  localparam WIDTH = IN + OUT;

  wire             clk, rst_n, en, valid, step;
  wire [WIDTH-1:0] drive, check;
  wire [BIAS-1:0]  acc;
  wire [BIT-1:0]   last, ovf;
  wire [COUNT-1:0] count;
  stream_clocked #(.FILE(FILE), .LOG(LOG), .WIDTH(WIDTH), .BUBBLES(BUBBLES)) stream (
      .clk_o(clk), .rst_no(rst_n), .en_o(en), .valid_o(valid), .drive_o(drive), .check_o(check),
      .step_i(step || last_bit),  // valid_o alone is a step too many
      .answer_i({check[WIDTH-1 -: IN], last, acc, ovf, count}));
  initial stream.go = 1'b1;
  verdict #(.FILE(FILE), .LOG(LOG), .CASES(CASES)) verdict (
      .done_i(stream.done), .lines_i(stream.lines), .mismatches_i(stream.mismatches));

  wire                     last_bit, ovf_bit;
  wire [SUM-1:0]           acc_bits;
  wire [COUNT_WIDTH-1:0]   count_bits;
  wire                     load_i = drive[OUT+B+A+BIAS+BIT];
  wire                     last_i = drive[OUT+B+A+BIAS];
  wire [SUM-1:0]           bias_i = drive[OUT+B+A +: SUM];
  wire [LANES*A_WIDTH-1:0] a_i    = drive[OUT+B +: LANES*A_WIDTH];
  wire [LANES*B_WIDTH-1:0] b_i    = drive[OUT +: LANES*B_WIDTH];
  generate
    if (TILE == 0) begin : g_one_level
      mac #(
          .A_WIDTH(A_WIDTH), .A_SIGNED(A_SIGNED), .B_WIDTH(B_WIDTH), .B_SIGNED(B_SIGNED),
          .LANES(LANES), .P_WIDTH(P_WIDTH), .P_SIGNED(P_SIGNED), .P_SHIFT(P_SHIFT),
          .P_PRE_SHIFT(P_PRE_SHIFT), .P_ROUNDING(P_ROUNDING), .P_OVERFLOW(P_OVERFLOW),
          .ACC_WIDTH(ACC_WIDTH), .ACC_SIGNED(ACC_SIGNED), .ACC_OVERFLOW(ACC_OVERFLOW),
          .PIPELINE(PIPELINE), .COUNT_WIDTH(COUNT_WIDTH)
      ) unit (
          .clk_i(clk), .rst_ni(rst_n), .en_i(en), .valid_i(valid), .load_i(load_i),
          .last_i(last_i), .bias_i(bias_i), .a_i(a_i), .b_i(b_i), .step_o(step),
          .valid_o(last_bit), .acc_o(acc_bits), .ovf_o(ovf_bit), .ovf_count_o(count_bits));
    end else begin : g_two_levels
      mac_tiled #(
          .A_WIDTH(A_WIDTH), .A_SIGNED(A_SIGNED), .B_WIDTH(B_WIDTH), .B_SIGNED(B_SIGNED),
          .LANES(LANES), .P_WIDTH(P_WIDTH), .P_SIGNED(P_SIGNED), .P_SHIFT(P_SHIFT),
          .P_PRE_SHIFT(P_PRE_SHIFT), .P_ROUNDING(P_ROUNDING), .P_OVERFLOW(P_OVERFLOW),
          .ACC_WIDTH(ACC_WIDTH), .ACC_SIGNED(ACC_SIGNED), .ACC_OVERFLOW(ACC_OVERFLOW),
          .PIPELINE(PIPELINE), .COUNT_WIDTH(COUNT_WIDTH), .TILE(TILE), .RELOAD(RELOAD),
          .O_WIDTH(O_WIDTH), .O_SIGNED(O_SIGNED), .O_SHIFT(O_SHIFT), .O_PRE_SHIFT(O_PRE_SHIFT),
          .O_ROUNDING(O_ROUNDING), .O_OVERFLOW(O_OVERFLOW)
      ) unit (
          .clk_i(clk), .rst_ni(rst_n), .en_i(en), .valid_i(valid), .load_i(load_i),
          .last_i(last_i), .bias_i(bias_i), .a_i(a_i), .b_i(b_i), .step_o(step),
          .valid_o(last_bit), .acc_o(acc_bits), .ovf_o(ovf_bit), .ovf_count_o(count_bits));
    end
  endgenerate
  hex_field last_field (.bits_i(last_bit), .field_o(last));
  hex_field #(.WIDTH(SUM)) acc_field (.bits_i(acc_bits), .field_o(acc));
  hex_field ovf_field (.bits_i(ovf_bit), .field_o(ovf));
  hex_field #(.WIDTH(COUNT_WIDTH)) count_field (.bits_i(count_bits), .field_o(count));
  wire unused = &{1'b0, check};
endmodule

`default_nettype wire
