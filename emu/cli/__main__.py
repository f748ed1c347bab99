"""`python -m emu.cli`."""

from emu.cli import main

main()
