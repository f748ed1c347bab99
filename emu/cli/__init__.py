"""The commands: `emu train`, `vectors`, `cosim`, `prove`, `mutate`, `diff`, `bounds`..."""

import sys

from emu.cli import training, verilog  # noqa: F401  their commands join the app
from emu.cli.terminal import app, err

__all__ = ["app", "main"]


def main() -> None:
    """Run a command; bad input is one line on stderr and exit status 2."""
    try:
        app()
    except (ValueError, OSError, RuntimeError, ModuleNotFoundError) as error:
        err.print(f"emu: {error}", style="red", soft_wrap=True, markup=False)
        sys.exit(2)
