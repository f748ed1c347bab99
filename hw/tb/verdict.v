`default_nettype none

// The last words of a bench: PASS only where every line of the file was there and none differed.
module verdict #(
    parameter FILE  = "",  // path of the hex file
    parameter LOG   = "",  // path of the report of differences
    parameter CASES = 0    // lines that the file should have; 0: any number but none
) (
    input wire        done_i,
    input wire [31:0] lines_i,
    input wire [31:0] mismatches_i
);
  always @(posedge done_i) begin
    if (lines_i == 0 || (CASES != 0 && lines_i != CASES)) begin
      $display("FAIL %0s: has %0d lines, expected %0d", FILE, lines_i, CASES);
      $fatal(1);
    end else if (mismatches_i != 0) begin
      $display("FAIL %0s: %0d of %0d lines differ; %0s has the line and the answer of the first",
               FILE, mismatches_i, lines_i, LOG);
      $fatal(1);
    end else begin
      $display("PASS %0s: %0d lines", FILE, lines_i);
    end
    $finish;
  end
endmodule

`default_nettype wire
