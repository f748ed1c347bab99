// Two stages between valid/ready streams: a rounded product, then the sum. It answers once for a
// dot product, after its last step, and stands still until that answer is taken.
module mac_two_stage #(
    parameter DROP = 4  // bits dropped from each product
) (
    input                    aclk,
    input                    aresetn,  // active low, at once
    input  signed [7:0]      s_a,
    input  signed [7:0]      s_b,
    input                    s_first,
    input                    s_last,
    input                    s_valid,
    output                   s_ready,
    output reg signed [15:0] m_sum,
    output reg               m_valid,
    input                    m_ready
);
  assign s_ready = !m_valid || m_ready;

  // The product, half of what is dropped added: its ties go up.
  wire signed [15:0] product = s_a * s_b;
  wire signed [15:0] rounded = (product + (1 << (DROP - 1))) >>> DROP;
  reg signed [15:0] term;
  reg               first, last, valid;
  always @(posedge aclk or negedge aresetn)
    if (!aresetn) valid <= 1'b0;
    else if (s_ready) begin
      valid <= s_valid;
      term  <= rounded;
      first <= s_first;
      last  <= s_last;
    end

  always @(posedge aclk or negedge aresetn)
    if (!aresetn) m_valid <= 1'b0;
    else if (s_ready) begin
      m_valid <= valid && last;
      if (valid) m_sum <= (first ? 16'sd0 : m_sum) + term;
    end
endmodule
