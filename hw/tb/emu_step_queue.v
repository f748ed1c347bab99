`default_nettype none

// What is offered to a unit that is not always ready: words wait here in their order. `lost_o`
// says that one came while there was no room, and so is lost.
module emu_step_queue #(
    parameter WIDTH = 1,  // 1 or more, bits
    parameter DEPTH = 4   // 1 or more: there is room for 2^DEPTH words
) (
    input  wire             clk_i,
    input  wire             rst_ni,
    input  wire             push_i,
    input  wire [WIDTH-1:0] data_i,
    input  wire             pop_i,   // unheeded where there is no word
    output wire [WIDTH-1:0] data_o,
    output wire             some_o,
    output wire             lost_o
);
  reg [WIDTH-1:0] words [0:(1<<DEPTH)-1];
  reg [DEPTH:0]   head_q, tail_q;

  wire full = head_q[DEPTH] != tail_q[DEPTH] && head_q[DEPTH-1:0] == tail_q[DEPTH-1:0];
  assign some_o = head_q != tail_q;
  assign lost_o = push_i && full;
  assign data_o = some_o ? words[head_q[DEPTH-1:0]] : {WIDTH{1'b0}};

  always @(posedge clk_i) begin
    if (push_i && !full) words[tail_q[DEPTH-1:0]] <= data_i;
    if (!rst_ni) begin
      head_q <= 0;
      tail_q <= 0;
    end else begin
      if (push_i && !full) tail_q <= tail_q + 1'b1;
      if (pop_i && some_o) head_q <= head_q + 1'b1;
    end
  end
endmodule

`default_nettype wire
