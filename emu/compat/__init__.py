"""Names and quirks of other fixed-point training systems, translated to emu.nn."""
