// A bench of hw/rtl in SystemVerilog: random dot products through mac, a requantising quantizer
// with dither from lfsr, and the expected values from emu_pkg. Stops at the first difference.
//
//   +mac=TEXT +cast=TEXT   what the Verilog should compute; a wrong one must be told
//   +sums=N +seed=N        how many dot products, and which
module example;
  import emu_pkg::*;

  localparam LANES = 2, ACC = 18, RAND = 8, SHIFT = 9;
  string mac_text = "{a: s8, b: u4, product: s10f-2 ties_even sat, acc: s18f-2 sat, lanes: 2}";
  string cast_text = "s8f-11 stochastic8 sat";

  bit clk = 0, rst_n = 0, valid = 0, load = 0, last = 0, draw = 0, seeding = 0;
  bit [ACC-1:0] bias, acc;
  bit [LANES-1:0][7:0] a;
  bit [LANES-1:0][3:0] b;
  bit step, done, ovf, rand_valid, clipped;
  bit [15:0] ovf_count;
  bit [31:0] load_word;
  bit [RAND-1:0] dither;
  bit [7:0] code;

  mac #(
      .A_WIDTH(8), .B_WIDTH(4), .B_SIGNED(0), .LANES(LANES), .P_WIDTH(10), .P_SHIFT(2),
      .P_ROUNDING(9), .P_OVERFLOW(1), .ACC_WIDTH(ACC), .ACC_OVERFLOW(1)
  ) unit (
      .clk_i(clk), .rst_ni(rst_n), .en_i(1'b1), .valid_i(valid), .load_i(load), .last_i(last),
      .bias_i(bias), .a_i(a), .b_i(b), .step_o(step), .valid_o(done), .acc_o(acc), .ovf_o(ovf),
      .ovf_count_o(ovf_count));
  lfsr #(.RAND_WIDTH(RAND)) random (
      .clk_i(clk), .rst_ni(rst_n), .en_i(draw), .load_i(seeding), .state_i(load_word),
      .rand_o(dither), .valid_o(rand_valid));
  quantizer #(
      .IN_WIDTH(ACC), .OUT_WIDTH(8), .MAX_SHIFT(SHIFT), .ROUNDING(11), .OVERFLOW(1),
      .RAND_WIDTH(RAND)
  ) edge_cast (
      .value_i(acc), .shift_i(8'(SHIFT)), .rand_i(dither), .rounding_i(4'd0), .code_o(code),
      .ovf_o(clipped));

  task automatic clock();
    #1 clk = 1;
    #1 clk = 0;
  endtask

  function automatic void same(string what, int sum, int k, longint got, longint want);
    if (got != want) $fatal(1, "sum %0d, step %0d: %s=%0d, expected %0d", sum, k, what, got, want);
  endfunction

  initial begin
    static int sums = 1000;
    static int seed = 1;
    int steps, unused;
    longint want, start;
    bit over;
    emu_mac model;
    emu_cast to;
    emu_lfsr lfsr_model;
    unused = $value$plusargs("mac=%s", mac_text);
    unused = $value$plusargs("cast=%s", cast_text);
    unused = $value$plusargs("sums=%d", sums);
    unused = $value$plusargs("seed=%d", seed);
    unused = $urandom(seed);
    model = new(mac_text);
    to = new(cast_text);
    load_word = $urandom();
    lfsr_model = new(load_word, RAND);

    repeat (2) clock();
    rst_n = 1;
    for (int sum = 0; sum < sums; sum++) begin
      steps = $urandom_range(1, 12);
      bias = ACC'($urandom());
      start = longint'($signed(bias));
      model.load(start);
      for (int k = 0; k < steps; k++) begin
        {a, b} = (16 + 8)'({$urandom(), $urandom()});
        if ($urandom_range(0, 3) == 0) a = {LANES{8'h80}};
        for (int lane = 0; lane < LANES; lane++)
          model.put(longint'($signed(a[lane])), longint'(b[lane]));
        want = model.step(k == steps - 1);
        valid = 1;
        load = k == 0;
        last = k == steps - 1;
        draw = last;
        seeding = sum == 0;
        clock();
        same("step_o", sum, k, longint'(step), 1);
        same("valid_o", sum, k, longint'(done), longint'(last));
        same("acc_o", sum, k, longint'($signed(acc)), want);
        same("ovf_o", sum, k, longint'(ovf), longint'(model.overflowed));
        same("ovf_count_o", sum, k, longint'(ovf_count), longint'(model.overflows));
      end
      want = to.apply(want, -2, lfsr_model.draw());
      over = to.overflowed;
      same("rand valid_o", sum, steps, longint'(rand_valid), 1);
      same("code_o", sum, steps, longint'($signed(code)), want);
      same("quantizer ovf_o", sum, steps, longint'(clipped), longint'(over));
      valid = 0;
      draw = 0;
      if ($urandom_range(0, 3) == 0) clock();  // a bubble
    end
    $display("%0d dot products and casts, 0 differences (seed %0d)", sums, seed);
    $finish;
  end
endmodule
