`default_nettype none

// One register with a clock enable; the style of reset is decided here and nowhere else.
module register #(
    parameter             WIDTH       = 1,  // 1 or more, bits
    parameter [WIDTH-1:0] RESET_VALUE = 0,  // what reset leaves in it
    parameter             ASYNC_RESET = 0   // 0: reset at the clock edge; 1: at once
) (
    input  wire             clk_i,
    input  wire             rst_ni,
    input  wire             en_i,
    input  wire [WIDTH-1:0] d_i,
    output wire [WIDTH-1:0] q_o
);
  generate  // an illegal parameter instantiates a module that does not exist
    if (WIDTH < 1) begin : g_width
      WIDTH_must_be_1_or_more refused ();
    end
    if ((ASYNC_RESET | 1) != 1) begin : g_reset
      ASYNC_RESET_must_be_0_or_1 refused ();
    end
  endgenerate

  reg [WIDTH-1:0] value_q;
  assign q_o = value_q;

  generate
    if (ASYNC_RESET != 0) begin : g_async
      always @(posedge clk_i or negedge rst_ni)
        if (!rst_ni) value_q <= RESET_VALUE;
        else if (en_i) value_q <= d_i;
    end else begin : g_sync
      always @(posedge clk_i)
        if (!rst_ni) value_q <= RESET_VALUE;
        else if (en_i) value_q <= d_i;
    end
  endgenerate
endmodule

`default_nettype wire
