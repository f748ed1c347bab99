// A multiplier without registers and a sum with one. `load` comes with the first step.
module mac_registered (
    input                    clk,
    input                    rst,     // active high, at the clock's edge
    input                    en,      // a step is offered
    input                    load,    // it begins a dot product, at `init`
    input      signed [7:0]  x,
    input      signed [7:0]  w,
    input      signed [19:0] init,
    output reg signed [19:0] sum,
    output reg               clipped  // some addition since `load` was
);
  wire signed [15:0] product = x * w;
  wire signed [20:0] total = (load ? init : sum) + product;
  wire above = total > 21'sd524287;
  wire below = total < -21'sd524288;

  always @(posedge clk)
    if (rst) begin
      sum <= 20'sd0;
      clipped <= 1'b0;
    end else if (en) begin
      sum <= above ? 20'sd524287 : below ? -20'sd524288 : total[19:0];
      clipped <= above || below || (clipped && !load);
    end
endmodule
