// The arithmetic of emu for SystemVerilog benches: expected values of casts, MACs and LFSRs, from
// the same texts as in Python. Through DPI-C; link hw/c/*.c and hw/dpi/emu_dpi.c.
/* verilator lint_off UNUSEDSIGNAL */  // it does not see what reads the members of a class
package emu_pkg;
  import "DPI-C" function string emu_dpi_wrong();
  import "DPI-C" function chandle emu_dpi_cast(input string text);
  import "DPI-C" function longint emu_dpi_apply(input chandle to, input longint code,
      input int frac, input int unsigned random, output int overflowed);
  import "DPI-C" function longint emu_dpi_apply_unsigned(input chandle to, input longint code,
      input int frac, input int unsigned random, output int overflowed);
  import "DPI-C" function chandle emu_dpi_mac(input string text);
  import "DPI-C" function void emu_dpi_load(input chandle mac, input longint bias);
  import "DPI-C" function int emu_dpi_lanes(input chandle mac);
  import "DPI-C" function int emu_dpi_put(input chandle mac, input longint a, input longint b);
  import "DPI-C" function int emu_dpi_step(input chandle mac, input int last);
  import "DPI-C" function longint emu_dpi_result(input chandle mac);
  import "DPI-C" function int unsigned emu_dpi_lfsr(input int unsigned state,
      input int rand_bits, output int unsigned next);

  // emu_cast to = new("s8f4 ties_even sat");
  class emu_cast;
    bit overflowed;  // whether the last code was out of range
    local chandle to;

    function new(string text);
      to = emu_dpi_cast(text);
      if (to == null) $fatal(1, "emu_cast \"%s\": %s", text, emu_dpi_wrong());
    endfunction

    // A code with frac fraction bits as a code of this cast; random is the operand of stochastic.
    function longint apply(longint code, int frac, int unsigned random = 0);
      int lost;
      apply = emu_dpi_apply(to, code, frac, random, lost);
      overflowed = lost != 0;
    endfunction

    // The same for an unsigned code of 64 bits.
    function longint apply_unsigned(longint unsigned code, int frac, int unsigned random = 0);
      int lost;
      apply_unsigned = emu_dpi_apply_unsigned(to, longint'(code), frac, random, lost);
      overflowed = lost != 0;
    endfunction
  endclass

  // emu_mac mac = new("{a: s8, b: s8, acc: s20 sat, lanes: 4}");
  class emu_mac;
    int lanes;
    bit overflowed;   // whether some value was out of range since load
    int overflows;    // in how many steps
    local chandle mac;

    function new(string text);
      mac = emu_dpi_mac(text);
      if (mac == null) $fatal(1, "emu_mac \"%s\": %s", text, emu_dpi_wrong());
      lanes = emu_dpi_lanes(mac);
    endfunction

    // Begins a dot product.
    function void load(longint bias = 0);
      emu_dpi_load(mac, bias);
      overflowed = 0;
      overflows = 0;
    endfunction

    // One more product of this step, which has at most `lanes`.
    function void put(longint a, longint b);
      if (emu_dpi_put(mac, a, b) == 0) $fatal(1, "emu_mac: a step has %0d products", lanes);
    endfunction

    // Adds the products put since the last step; the result register after it.
    function longint step(bit last = 0);
      if (emu_dpi_step(mac, 32'(last)) != 0) begin
        overflowed = 1;
        overflows++;
      end
      return emu_dpi_result(mac);
    endfunction

    // A whole dot product.
    function longint dot(longint a[], longint b[], longint bias = 0);
      load(bias);
      dot = bias;
      for (int k = 0; k < a.size(); k++) begin
        put(a[k], b[k]);
        if ((k + 1) % lanes == 0 || k + 1 == a.size()) dot = step(k + 1 == a.size());
      end
    endfunction
  endclass

  // emu_lfsr random = new(load_word, 16);
  class emu_lfsr;
    local int unsigned state;
    local int bits;

    function new(int unsigned load_word, int rand_bits);
      if (rand_bits < 1 || rand_bits > 32) $fatal(1, "emu_lfsr: a draw has 1 to 32 bits");
      state = load_word;
      bits = rand_bits;
    endfunction

    function int unsigned draw();
      int unsigned next;
      draw = emu_dpi_lfsr(state, bits, next);
      state = next;
    endfunction
  endclass
endpackage
/* verilator lint_on UNUSEDSIGNAL */
