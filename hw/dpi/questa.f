// vlog -f questa.f, in this folder, then vsim -sv_lib libemu example; libemu.so is made by `make c`.
// Untested: this simulator was not at hand.
-sv
-timescale 1ns/1ns
../rtl/register.v
../rtl/quantizer.v
../rtl/mac.v
../rtl/lfsr.v
emu_pkg.sv
example.sv
