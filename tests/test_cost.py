"""What a unit costs follows its spec, comes out the same again, and is kept."""

import pytest

from emu.cosim import cost as costs
from emu.cosim import hardware
from emu.cosim.cost import cost
from emu.cosim.tools import ToolFailed, ToolMissing
from emu.golden.cases import from_text

SMALL = "s6f2 -> s3f0 ties_even sat"


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_mac_has_its_registers_and_a_clock_rate():
    found = cost(from_text("{a: s3, b: s3, acc: s8 sat}"))
    # acc, the sticky flag and the counter of 16 bits; step and valid
    assert found.flops == 8 + 1 + 16 + 2
    assert 20 < found.luts < 200 and 100 < found.gates < 2000
    assert len(found.fmax) == 3 and min(found.fmax) <= found.median_fmax <= max(found.fmax)
    assert 20 < found.median_fmax < 400


def test_a_second_level_costs_its_registers(monkeypatch):
    monkeypatch.setattr(costs, "DEVICE_LUTS", 1)  # nothing is placed
    one, two = (cost(from_text(f"{{a: s2, b: s2, acc: s4 sat{more}}}"), (1,))
                for more in ("", ", tile: 2, outer: s6 sat"))
    assert two.flops > one.flops + 6 and two.luts > one.luts and two.gates > one.gates


def test_more_hardware_costs_more():
    plain, rounding, saturating = (
        cost(from_text(f"s12f5 -> s6f0 {modes}"), (1,))
        for modes in ("to_neg", "ties_even", "ties_even sat"))
    assert plain.flops == rounding.flops == saturating.flops == 0
    assert plain.luts < rounding.luts <= saturating.luts
    assert plain.gates < rounding.gates < saturating.gates


def test_flagged_casts_and_updates_have_a_cost(monkeypatch):
    monkeypatch.setattr(costs, "DEVICE_LUTS", 1)  # nothing is placed
    flagged, update = (cost(from_text(text), (1,)) for text in (
        "s6f4 -> flag s3f2 ties_even sat",
        "{weight: s4f3 sat, momentum: s4f3 sat, grad: s3f3, lr: u1f1, mu: u1f1}"))
    assert flagged.flops == update.flops == 0
    assert flagged.luts > 10 and update.luts > 10 and 20 < flagged.gates < update.gates


def test_the_same_again_and_then_kept(tmp_path, monkeypatch):
    first = cost(from_text(SMALL), (1,))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert cost(from_text(SMALL), (1,)) == first
    monkeypatch.setattr(costs, "_measure", None)  # not to be called
    assert cost(from_text(SMALL), (1,)) == first
    for changed in ({"seeds": (2,)}, {"rtl": [tmp_path / "quantizer.v"]}):
        text = (hardware() / "rtl" / "quantizer.v").read_text()
        (tmp_path / "quantizer.v").write_text(text + "// changed\n")
        with pytest.raises(TypeError):
            cost(from_text(SMALL), **{"seeds": (1,), **changed})


def test_what_does_not_fit_has_no_clock_rate(monkeypatch):
    monkeypatch.setattr(costs, "DEVICE_LUTS", 1)
    found = cost(from_text(SMALL), (1,))
    assert found.fmax == () and found.median_fmax is None and found.luts > 1


def test_a_missing_tool_names_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ToolMissing, match="apt-get install nextpnr-ice40"):
        cost(from_text(SMALL))


def test_a_tool_that_fails_is_told_in_its_words(tmp_path):
    with pytest.raises(ToolFailed, match=r"nextpnr-ice40 ended with .*ERROR: .*placed\.json"):
        costs._place(tmp_path, 1)
