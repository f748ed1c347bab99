`default_nettype none

// A line of registers: q_o is d_i of CLOCKS enabled clocks before. CLOCKS 0 is a wire.
module delay #(
    parameter WIDTH       = 1,  // 1 or more, bits
    parameter CLOCKS      = 1,  // 0 or more
    parameter ASYNC_RESET = 0   // as in register
) (
    input  wire             clk_i,
    input  wire             rst_ni,
    input  wire             en_i,
    input  wire [WIDTH-1:0] d_i,
    output wire [WIDTH-1:0] q_o
);
  generate  // an illegal parameter instantiates a module that does not exist
    if (CLOCKS < 0) begin : g_clocks
      CLOCKS_must_be_0_or_more refused ();
    end
  endgenerate

  wire [(CLOCKS+1)*WIDTH-1:0] line;
  assign line[WIDTH-1:0] = d_i;
  assign q_o = line[CLOCKS*WIDTH +: WIDTH];

  genvar i;
  generate
    for (i = 0; i < CLOCKS; i = i + 1) begin : g_stage
      register #(.WIDTH(WIDTH), .ASYNC_RESET(ASYNC_RESET)) stage (
          .clk_i(clk_i), .rst_ni(rst_ni), .en_i(en_i),
          .d_i(line[i*WIDTH +: WIDTH]), .q_o(line[(i+1)*WIDTH +: WIDTH]));
    end
  endgenerate

  wire unused = &{1'b0, clk_i, rst_ni, en_i};  // by a wire
endmodule

`default_nettype wire
