// vcs -f vcs.f, in this folder. Untested: this simulator was not at hand.
-full64
-sverilog
-timescale=1ns/1ns
-top example
../rtl/register.v
../rtl/quantizer.v
../rtl/mac.v
../rtl/lfsr.v
emu_pkg.sv
example.sv
../c/emu.c
../c/emu_check.c
../c/emu_text.c
emu_dpi.c
