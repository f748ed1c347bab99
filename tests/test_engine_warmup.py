"""`emu warmup` leaves nothing of the MAC to be compiled."""

import re

from typer.testing import CliRunner

from emu import cli
from emu.engine.kernels import gemm
from emu.engine.kernels.vector import has_vnni
from emu.engine.warmup import PATHS, VNNI


def test_every_kernel_of_the_mac_is_warmed_up():
    result = CliRunner().invoke(cli.app, ["warmup"])
    assert result.exit_code == 0, result.output
    assert int(re.match(r"(\d+) kinds of operation", result.stdout).group(1)) > 30
    for name, kernel in gemm.KERNELS.items():
        assert kernel.signatures or (name in VNNI and not has_vnni()), name
    assert set(gemm.KERNELS) | {"plain", "tracked", "thin32", "thin64"} == set(PATHS)
