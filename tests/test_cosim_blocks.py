"""The larger blocks of hw/rtl: two-level sums, the array and the valid/ready wrapper."""

from functools import partial
from itertools import chain, product

import numpy as np
import pytest

from emu import reference
from emu.cosim import hardware, replay, replay_arrays, run, simulator
from emu.cosim.ports import interface
from emu.cosim.tiles import array
from emu.golden import write_vectors
from emu.golden.cases import records
from emu.golden.units import (
    Field,
    Unit,
    array_parameters,
    mac_parameters,
    mac_records,
    mac_unit,
)
from emu.golden.vectors import vector_set
from emu.number import Cast, Overflow
from emu.spec import MacSpec

RTL = hardware() / "rtl"
TILED = ["{a: s8, b: s8, acc: s17 sat, tile: 4, outer: s20 sat}",
         "{a: u8, b: s8, acc: s18 wrap, lanes: 2, tile: 6, outer: s16f-4 ties_even sat_sym}",
         "{a: s8, b: s8, acc: s16 sat, tile: 3, outer: s9f-8 ties_away sat, reload: true}",
         "{a: s8, b: s8, acc: s17 sat, tile: 2, outer: s7f-8 ties_odd sat_zero, reload: true}"]
ARRAYS = [("{a: s8, b: s8, acc: s15 sat}", 2, 3, 0), ("{a: s8, b: s8, acc: s16 sat}", 1, 1, 2),
          ("{a: u8, b: s4, product: s9f-3 ties_even sat, acc: s10f-3 sat, lanes: 3}", 3, 2, 1),
          (TILED[1], 2, 2, 1), (TILED[2], 2, 2, 0)]


def operands(mac, tiles, rows, cols, terms, seed=1):
    """Operands of both ends and between, so that sums saturate, and any biases."""
    rng = np.random.default_rng(seed)

    def draw(form, shape):
        codes = rng.integers(form.lo, form.hi, shape, endpoint=True)
        return np.where(rng.random(shape) < 0.5, codes, rng.choice((form.lo, form.hi), shape))

    return (draw(mac.a, (tiles, rows, terms)), draw(mac.b, (tiles, cols, terms)),
            draw(mac.result.format, (tiles, rows, cols)))


def sums(a, b, mac, bias):
    """(sums, whether some step overflowed) by the definition."""
    out, overflowed = np.zeros_like(bias), np.zeros_like(bias)
    for at in np.ndindex(bias.shape):
        for got, over in reference.dot_steps(a[at[0], at[1]].tolist(), b[at[0], at[2]].tolist(),
                                             mac, int(bias[at])):
            out[at] = got
            overflowed[at] |= over
    return out, overflowed


@pytest.mark.parametrize(("backend", "cases"), [("icarus", ARRAYS), ("cxxrtl", ARRAYS[::2])])
def test_the_array_and_the_scalar_mac_are_the_definition(backend, cases):
    for text, rows, cols, pipeline in cases:
        mac = MacSpec.parse(text)
        for terms in (1, 7, 24):
            a, b, bias = operands(mac, 5, rows, cols, terms)
            want, overflowed = sums(a, b, mac, bias)
            got = array(a, b, mac, bias, pipeline=pipeline, backend=backend)
            assert np.array_equal(got.acc, want), (text, terms)
            assert np.array_equal(got.overflowed, overflowed)
            assert np.array_equal(scalar(a, b, mac, bias, pipeline, backend), want)
        assert overflowed.sum() > 0


def scalar(a, b, mac, bias, pipeline, backend):
    """The same sums, one after the other, through one mac."""
    terms = a.shape[2]
    steps, pad = -(-terms // mac.lanes), -terms % mac.lanes

    def flat(codes, axis):
        wide = np.pad(np.broadcast_to(np.expand_dims(codes, axis), (*bias.shape, terms)),
                      [(0, 0)] * 3 + [(0, pad)])
        return wide.reshape(-1, mac.lanes) if mac.lanes > 1 else wide.reshape(-1)

    load = np.zeros((bias.size, steps), np.int64)
    last = load.copy()
    load[:, 0] = last[:, -1] = 1
    unit = mac_unit(mac, pipeline)
    out = run(unit.module, unit.parameters,
              {"load_i": load.ravel(), "last_i": last.ravel(),
               "bias_i": np.repeat(bias.ravel(), steps), "a_i": flat(a, 2), "b_i": flat(b, 1)},
              backend)
    return out["acc_o"][out["valid_o"] == 1].reshape(bias.shape)


@pytest.mark.parametrize(("text", "backend"), [
    ("s6f-9 ties_even sat", "icarus"), ("s5f-9 stochastic7 sat_zero", "cxxrtl")])
def test_the_edge_requantises_what_leaves(text, backend):
    mac, to = MacSpec.parse(ARRAYS[0][0]), Cast.parse(text)
    a, b, bias = operands(mac, 20, 2, 3, 5)
    rand = np.random.default_rng(5).integers(0, 1 << to.rand_bits, bias.shape) \
        if to.rand_bits else None
    got = array(a, b, mac, bias, to, rand, backend=backend)
    clipped = 0
    for at in np.ndindex(bias.shape):
        operand = None if rand is None else int(rand[at])
        value = int(got.acc[at])
        assert got.codes[at] == reference.cast(value, 0, to, operand)
        rounded = reference.round_shift(value, -to.format.frac, to, operand)
        assert got.clipped[at] == reference.overflows(rounded, to)
        clipped += int(got.clipped[at])
    assert 0 < clipped < bias.size


def array_unit(mac, rows, cols):
    parameters = array_parameters(mac, rows, cols, Cast(mac.result.format))
    fields = [Field(port.name, port.bits, dir="out" if port.out else "in")
              for port in interface("mac_array", parameters).ports]
    return Unit("mac_array", str(mac), parameters, tuple(fields), 1)


def test_stalls_of_the_array_change_nothing(tmp_path, monkeypatch):
    """Its clocks, written down as a vector set, replayed with idle and disabled ones between."""
    from emu.cosim import tiles
    from emu.cosim.lines import encode

    mac = MacSpec.parse(ARRAYS[0][0])
    a, b, bias = operands(mac, 4, 2, 3, 6)
    seen = {}

    def kept(unit, parameters, arrays, *rest):
        seen.update(arrays, **(out := run(unit, parameters, arrays, *rest)))
        return out

    monkeypatch.setattr(tiles, "run", kept)
    assert np.array_equal(array(a, b, mac, bias, backend="icarus").acc, sums(a, b, mac, bias)[0])
    unit = array_unit(mac, 2, 3)
    ports = interface("mac_array", unit.parameters).ports
    text = encode(ports, seen, len(seen["valid_i"])).decode()
    lines = [tuple(int(digits, 16) for digits in line.split("_")) for line in text.splitlines()]
    with vector_set(tmp_path / "v", {}) as writer:
        writer.add("array.hex", unit, [("all", lines)])
    assert replay(tmp_path / "v", bubbles=True).differences == []


def test_gaps_between_the_steps_of_the_array_change_nothing(monkeypatch):
    from emu.cosim import tiles

    mac = MacSpec.parse(ARRAYS[0][0])
    a, b, bias = operands(mac, 4, 2, 3, 6)
    draw = np.random.default_rng(7)

    def gapped(unit, parameters, arrays, *rest):
        """Idle clocks before some steps, with operands that must not be taken."""
        where = np.flatnonzero(arrays["valid_i"])
        where = np.repeat(where, draw.integers(0, 3, where.size))
        wide = {name: np.insert(codes, where, 0 if name in ("valid_i", "move_i") else 1, axis=0)
                for name, codes in arrays.items()}
        out = run(unit, parameters, wide, *rest)
        real = np.delete(np.arange(len(wide["valid_i"])), where + np.arange(where.size))
        late = np.searchsorted(real, np.flatnonzero(out["done_o"]), "right") - 1
        found = {name: codes[real] for name, codes in out.items()}
        found["done_o"][:] = 0
        found["done_o"][late] = 1
        return found

    monkeypatch.setattr(tiles, "run", gapped)
    assert np.array_equal(array(a, b, mac, bias, backend="icarus").acc, sums(a, b, mac, bias)[0])


@pytest.mark.parametrize(("module", "old", "new"), [
    ("mac_array", ".CLOCKS(j)", ".CLOCKS(0)"),
    ("mac_pe", "move_i ? chain_i : {ovf, sum}", "move_i ? chain_i : {ovf, ~sum}"),
    ("mac_pe", ".bias_i(chain_o[R_WIDTH-1:0])", ".bias_i({R_WIDTH{1'b0}})"),
    ("delay", "CLOCKS*WIDTH +: WIDTH", "0 +: WIDTH"),
])
def test_a_mutated_array_is_caught(tmp_path, module, old, new):
    text = (RTL / f"{module}.v").read_text()
    assert old in text
    path = tmp_path / f"{module}.v"
    path.write_text(text.replace(old, new))
    mac = MacSpec.parse(ARRAYS[0][0])
    a, b, bias = operands(mac, 4, 2, 3, 6)
    got = array(a, b, mac, bias, backend="icarus", rtl=[path])
    assert not np.array_equal(got.acc, sums(a, b, mac, bias)[0])


def test_an_array_that_is_never_done_is_an_error(tmp_path):
    text = (RTL / "mac_pe.v").read_text().replace(".d_i(done), .q_o(done_o)",
                                                  ".d_i(1'b0), .q_o(done_o)")
    (tmp_path / "mac_pe.v").write_text(text)
    mac = MacSpec.parse(ARRAYS[0][0])
    with pytest.raises(RuntimeError, match="mac_array: told of 0 of 4 sums"):
        array(*operands(mac, 4, 2, 3, 6)[:2], mac, operands(mac, 4, 2, 3, 6)[2],
              backend="icarus", rtl=[tmp_path / "mac_pe.v"])


@pytest.mark.parametrize("reload", [False, True])
def test_every_small_two_level_sum_is_exact(tmp_path, reload):
    """From every bias, three steps of every operand in tiles of two, in every mode."""
    codes = lambda form: range(form.lo, form.hi + 1)  # noqa: E731
    with vector_set(tmp_path / "v", {}) as writer:
        for shape, mode in product(("s3f-1 ties_even", "s4f-1 to_neg"), Overflow):
            mac = MacSpec.parse(f"{{a: s2, b: s2, acc: s3 {mode.name.lower()}, tile: 2, "
                                f"outer: {shape} {mode.name.lower()}, "
                                f"reload: {str(reload).lower()}}}")
            every = (mac_records(mac, [x, y, -2], [-2, 1, z], bias)
                     for x in codes(mac.a) for y in codes(mac.a) for z in codes(mac.b)
                     for bias in codes(mac.outer.format))
            writer.add(f"{len(writer.entries)}.hex", mac_unit(mac),
                       [("all", chain.from_iterable(every))])
    report = replay_arrays(tmp_path / "v", "icarus")
    assert (len(report.files), report.differences) == (8, [])


@pytest.mark.parametrize("backend", ["cxxrtl", "netlist"])
def test_two_level_sums_are_exact_in_the_fast_engines(tmp_path, backend):
    for i, text in enumerate(TILED[1:3]):
        assert replay_arrays(write_vectors(tmp_path / str(i), text), backend).ok


@pytest.mark.parametrize(("module", "old", "new"), [
    ("mac_tiled", "inner_closes ? total : base", "inner_closes ? total : acc_o"),
    ("mac_tiled", "inner_step ? outer_d : acc_o", "acc_o"),
    ("mac_tiled", "(counted && !tile_opens)", "counted"),
    ("mac_tiled", "opens && start_ovf", "1'b0"),
    ("mac_tiled", "spilled_ovf || total_ovf", "total_ovf"),
])
def test_a_mutated_two_level_mac_is_caught(tmp_path, module, old, new):
    text = (RTL / f"{module}.v").read_text()
    assert text.count(old) == 1
    (tmp_path / f"{module}.v").write_text(text.replace(old, new))
    caught = [not replay_arrays(write_vectors(tmp_path / str(i), spec), "icarus",
                                rtl=[tmp_path / f"{module}.v"]).ok for i, spec in enumerate(TILED)]
    assert any(caught)


@pytest.mark.parametrize(("spec", "pipeline"), [
    ("{a: s8, b: s8, acc: s16 sat}", 0), ("{a: u4, b: s4, acc: s9 sat, lanes: 2}", 2)])
def test_the_stream_keeps_its_handshakes(tmp_path, spec, pipeline):
    unit = mac_unit(MacSpec.parse(spec), pipeline)
    with vector_set(tmp_path / "v", {}) as writer:
        writer.add("mac.hex", unit, records(unit, 1))
    simulate = partial(simulator.simulate, "icarus", tmp_path / "work", "mac_stream")
    simulate(sorted(RTL.glob("*.v")), "protocol_stream", 3, unit.parameters,
             [f"+vectors={tmp_path / 'v'}"])
    broken = (RTL / "skid_buffer.v").read_text().replace("full ? spare : data_i", "data_i")
    (tmp_path / "skid_buffer.v").write_text(broken)
    others = [path for path in sorted(RTL.glob("*.v")) if path.stem != "skid_buffer"]
    with pytest.raises(RuntimeError, match=r"of 3 tests ran and [12] failed"):
        simulate([*others, tmp_path / "skid_buffer.v"], "protocol_stream", 3, unit.parameters,
                 [f"+vectors={tmp_path / 'v'}"])


def test_what_the_blocks_cannot_be_is_refused():
    with pytest.raises(ValueError, match="pipeline 1 with reload: the next step needs the sum"):
        mac_parameters(MacSpec.parse(TILED[2]), 1)
    parameters = {**mac_unit(MacSpec.parse(TILED[2])).parameters, "PIPELINE": 1}
    steps = {name: [0] for name in ("load_i", "last_i", "bias_i", "a_i", "b_i")}
    with pytest.raises(ValueError, match="mac_tiled: PIPELINE and O_PRE_SHIFT must be 0 with REL"):
        run("mac_tiled", parameters, steps, "icarus")
