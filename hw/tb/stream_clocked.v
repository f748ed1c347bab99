`default_nettype none

// Replays a vector file on a clocked unit: the driver and the monitor read it each for itself, so
// that only the handshake step_i, never a count of cycles, says which line an answer belongs to.
// The top answers with check_o, its outputs replaced by the unit's. Starts when go is raised.
module stream_clocked #(
    parameter FILE    = "",  // path of the hex file
    parameter LOG     = "",  // path of the report: line number and answer of each difference
    parameter WIDTH   = 4,   // bits of a line, 4 for each digit
    parameter BUBBLES = 0,   // 1: leave clocks without a step, and without enable, at random
    parameter SHOWN   = 20   // differences reported
) (
    output reg              clk_o,
    output reg              rst_no,
    output reg              en_o,
    output reg              valid_o,
    output reg  [WIDTH-1:0] drive_o,
    output reg  [WIDTH-1:0] check_o,  // the line the next step is checked against
    input  wire             step_i,
    input  wire [WIDTH-1:0] answer_i
);
  localparam PATIENCE = 64;  // enabled clocks without a step after the last line: more are lost

  reg go   /* verilator public_flat_rw */ = 1'b0;
  reg done /* verilator public_flat_rw */ = 1'b0;

  integer drive_file, check_file, log, lines, mismatches, idle;
  reg driving, checking, bubble;
  reg [WIDTH-1:0] word, expected;

  // The next line against the answer; an X differs.
  task judge;
    begin
      lines = lines + 1;
      if (step_i !== 1'b1 || !checking || answer_i !== check_o) begin
        mismatches = mismatches + 1;
        if (mismatches <= SHOWN) $fdisplay(log, "%0d %h", lines, answer_i);
      end
      checking = $fscanf(check_file, "%h", expected) == 1;
      check_o  = expected;
    end
  endtask

  initial begin
    clk_o   = 1'b0;
    rst_no  = 1'b0;
    en_o    = 1'b1;
    valid_o = 1'b0;
    drive_o = {WIDTH{1'b0}};
    check_o = {WIDTH{1'b0}};
    wait (go);
    drive_file = $fopen(FILE, "r");
    check_file = $fopen(FILE, "r");
    log        = $fopen(LOG, "w");
    lines      = 0;
    mismatches = 0;
    repeat (2) begin
      #1 clk_o = 1'b1;
      #1 clk_o = 1'b0;
    end
    rst_no   = 1'b1;
    bubble   = 1'b0;
    driving  = 1'b1;
    checking = $fscanf(check_file, "%h", expected) == 1;
    check_o  = expected;
    idle     = 0;
    if (step_i !== 1'b0) judge;  // a step that reset has left
    while (idle < PATIENCE) begin
      if (BUBBLES != 0) begin
        bubble = $random % 4 == 0;
        en_o   = $random % 4 != 0;
      end
      if (!en_o) begin  // a step that must not be taken
        valid_o = 1'b1;
        drive_o = ~drive_o;
      end else if (bubble || !driving) begin
        valid_o = 1'b0;
      end else begin
        driving = $fscanf(drive_file, "%h", word) == 1;
        valid_o = driving;
        if (driving) drive_o = word;
      end
      #1 clk_o = 1'b1;
      #1;
      if (en_o && step_i !== 1'b0) begin
        judge;
        idle = checking ? 0 : idle + 1;
      end else if (en_o && !driving) begin
        idle = idle + 1;
      end
      clk_o = 1'b0;
    end
    $fdisplay(log, "end %0d %0d", lines, mismatches);
    $fclose(drive_file);
    $fclose(check_file);
    $fclose(log);
    done = 1'b1;
  end
endmodule

`default_nettype wire
