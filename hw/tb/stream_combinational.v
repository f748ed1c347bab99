`default_nettype none

// Replays a vector file on a combinational unit. A line is one word, inputs then outputs; the top
// answers with the same word, its outputs replaced by the unit's. Starts when go is raised.
module stream_combinational #(
    parameter FILE  = "",  // path of the hex file
    parameter LOG   = "",  // path of the report: line number and answer of each difference
    parameter WIDTH = 4,   // bits of a line, 4 for each digit
    parameter SHOWN = 20   // differences reported
) (
    output reg  [WIDTH-1:0] line_o,
    input  wire [WIDTH-1:0] answer_i
);
  reg go   /* verilator public_flat_rw */ = 1'b0;
  reg done /* verilator public_flat_rw */ = 1'b0;

  integer file, log, found, lines, mismatches;
  reg [WIDTH-1:0] word;
  initial begin
    wait (go);
    file  = $fopen(FILE, "r");
    log   = $fopen(LOG, "w");
    lines = 0;
    mismatches = 0;
    found = $fscanf(file, "%h", word);
    while (found == 1) begin
      line_o = word;
      #1 lines = lines + 1;
      if (answer_i !== line_o) begin  // an X differs
        mismatches = mismatches + 1;
        if (mismatches <= SHOWN) $fdisplay(log, "%0d %h", lines, answer_i);
      end
      found = $fscanf(file, "%h", word);
    end
    $fdisplay(log, "end %0d %0d", lines, mismatches);
    $fclose(file);
    $fclose(log);
    done = 1'b1;
  end
endmodule

`default_nettype wire
