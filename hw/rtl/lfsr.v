`default_nettype none

// Random operands: a 32-bit Galois LFSR, shifted right RAND_WIDTH times for one draw.
// Each enabled clock (en_i) draws: from state_i where load_i is set (0, the state an LFSR cannot
// leave, counts as 1), else from where the last draw ended. Latency 1: valid_o tells that rand_o
// is the draw of the clock before. Reset leaves the state 1.
module lfsr #(
    parameter RAND_WIDTH  = 16,  // 1..32, bits of a draw
    parameter ASYNC_RESET = 0    // as in register
) (
    input  wire                  clk_i,
    input  wire                  rst_ni,
    input  wire                  en_i,
    input  wire                  load_i,
    input  wire [31:0]           state_i,
    output wire [RAND_WIDTH-1:0] rand_o,   // the first bit shifted out is the lowest
    output wire                  valid_o
);
  localparam [31:0] MASK = 32'h80200003;  // emu.reference.LFSR_MASK

  generate
    if (RAND_WIDTH < 1 || RAND_WIDTH > 32) begin : g_rand
      RAND_WIDTH_must_be_1_to_32 refused ();
    end
  endgenerate

  wire [31:0] state_q;
  reg  [31:0] state_d;
  reg  [RAND_WIDTH-1:0] rand_d;
  integer i;
  always @* begin
    state_d = !load_i ? state_q : state_i == 32'd0 ? 32'd1 : state_i;
    rand_d  = {RAND_WIDTH{1'b0}};
    for (i = 0; i < RAND_WIDTH; i = i + 1) begin
      rand_d[i] = state_d[0];
      state_d   = {1'b0, state_d[31:1]} ^ (state_d[0] ? MASK : 32'd0);
    end
  end

  register #(.WIDTH(32), .RESET_VALUE(32'd1), .ASYNC_RESET(ASYNC_RESET)) state (
      .clk_i(clk_i), .rst_ni(rst_ni), .en_i(en_i), .d_i(state_d), .q_o(state_q));
  register #(.WIDTH(RAND_WIDTH), .ASYNC_RESET(ASYNC_RESET)) draw (
      .clk_i(clk_i), .rst_ni(rst_ni), .en_i(en_i), .d_i(rand_d), .q_o(rand_o));
  register #(.ASYNC_RESET(ASYNC_RESET)) valid (
      .clk_i(clk_i), .rst_ni(rst_ni), .en_i(1'b1), .d_i(en_i), .q_o(valid_o));
endmodule

`default_nettype wire
