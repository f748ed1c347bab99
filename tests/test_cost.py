"""What a unit costs follows its spec, comes out the same again, and is kept."""

import pytest

from emu.cosim import cost as costs
from emu.cosim import hardware
from emu.cosim.cost import cost
from emu.cosim.simulator import ToolMissing
from emu.golden.cases import from_text

SMALL = "s6f2 -> s3f0 ties_even sat"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cost")


def test_a_mac_has_its_registers_and_a_clock_rate(folder):
    found = cost(from_text("{a: s3, b: s3, acc: s8 sat}"), folder=folder)
    # acc, the sticky flag and the counter of 16 bits; step and valid
    assert found.flops == 8 + 1 + 16 + 2
    assert 20 < found.luts < 200 and 100 < found.gates < 2000
    assert len(found.fmax) == 3 and min(found.fmax) <= found.median_fmax <= max(found.fmax)
    assert 20 < found.median_fmax < 400


def test_more_hardware_costs_more(folder):
    plain, rounding, saturating = (
        cost(from_text(f"s12f5 -> s6f0 {modes}"), (1,), folder=folder)
        for modes in ("to_neg", "ties_even", "ties_even sat"))
    assert plain.flops == rounding.flops == saturating.flops == 0
    assert plain.luts < rounding.luts <= saturating.luts
    assert plain.gates < rounding.gates < saturating.gates


def test_the_same_again_and_then_kept(tmp_path, monkeypatch):
    first, again = (cost(from_text(SMALL), (1,), folder=tmp_path / name) for name in "ab")
    assert first == again
    monkeypatch.setattr(costs, "_measure", None)  # not to be called
    assert cost(from_text(SMALL), (1,), folder=tmp_path / "a") == first
    for changed in ({"seeds": (2,)}, {"rtl": [tmp_path / "quantizer.v"]}):
        text = (hardware() / "rtl" / "quantizer.v").read_text()
        (tmp_path / "quantizer.v").write_text(text + "// changed\n")
        with pytest.raises(TypeError):
            cost(from_text(SMALL), **{"seeds": (1,), "folder": tmp_path / "a", **changed})


def test_what_does_not_fit_has_no_clock_rate(monkeypatch, tmp_path):
    monkeypatch.setattr(costs, "DEVICE_LUTS", 1)
    found = cost(from_text(SMALL), (1,), folder=tmp_path)
    assert found.fmax == () and found.median_fmax is None and found.luts > 1


def test_a_missing_tool_names_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(costs.shutil, "which", lambda name: None)
    costs.versions.cache_clear()
    with pytest.raises(ToolMissing, match="apt-get install nextpnr-ice40"):
        cost(from_text(SMALL), folder=tmp_path)


def test_a_tool_that_fails_is_told_in_its_words(monkeypatch, tmp_path):
    monkeypatch.setattr(costs.subprocess, "run", lambda *_, **__: type(
        "Done", (), {"returncode": 1, "stdout": "Info: x\nERROR: no route\n"}))
    with pytest.raises(RuntimeError, match="nextpnr-ice40: ERROR: no route"):
        costs._place(tmp_path, 1)
