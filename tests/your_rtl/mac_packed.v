// Four products a clock from one bus, {w3, x3, ..., w0, x0}, and a registered adder tree. Without
// an enable: it adds at every clock, and `clr` makes the next sum begin at 0.
module mac_packed (
    input             clk,
    input             clr,
    input      [63:0] ops,
    output reg [17:0] acc
);
  function signed [15:0] times(input signed [7:0] x, input signed [7:0] w);
    times = x * w;
  endfunction

  reg signed [17:0] tree;
  reg               clear;
  always @(posedge clk) begin
    clear <= clr;
    tree  <= times(ops[7:0], ops[15:8]) + times(ops[23:16], ops[31:24])
           + times(ops[39:32], ops[47:40]) + times(ops[55:48], ops[63:56]);
    acc   <= clear ? 18'd0 : acc + tree;
  end
endmodule
