`default_nettype none

// The bits of a port as a field of a vector file has them: padded with zeros to whole hex digits.
module hex_field #(
    parameter WIDTH = 1  // 1 or more, bits of the port
) (
    input  wire [WIDTH-1:0]         bits_i,
    output wire [(WIDTH+3)/4*4-1:0] field_o
);
  assign field_o[WIDTH-1:0] = bits_i;
  generate
    if (WIDTH % 4 != 0) begin : g_padding
      assign field_o[(WIDTH+3)/4*4-1:WIDTH] = 0;
    end
  endgenerate
endmodule

`default_nettype wire
