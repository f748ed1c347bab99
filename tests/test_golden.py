"""Vectors: the same bytes each time, every mode and class, and each bad input in one line."""

import json
from pathlib import Path
from random import Random

import pytest

from emu.cosim import default_vectors, replay
from emu.golden import (
    BufferTrace,
    CastTrace,
    MacTrace,
    UpdateTrace,
    diff,
    read_manifest,
    write_step,
    write_vectors,
)
from emu.golden.cases import from_text
from emu.golden.units import (
    QuantizerSpec,
    lfsr_records,
    mac_parameters,
    mac_records,
    quantizer_parameters,
    quantizer_records,
)
from emu.golden.vectors import VectorFile
from emu.number import Cast, Format, Overflow, Rounding
from emu.reference import (
    buffered_sgd,
    cast,
    dot,
    load_words,
    matmul_terms,
    random_operands,
    sgd,
)
from emu.spec import MacSpec
from emu.update import BufferSpec, UpdateSpec

MAC = MacSpec.parse("{a: s8, b: s8, acc: s16 sat}")


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*") if path.is_file()}


def values(file: VectorFile) -> list[dict[str, int]]:
    """Each record as {column: code}."""
    return [{field.name: field.value(int(digits, 16))
             for field, digits in zip(file.fields, line, strict=True)} for line in file.lines()]


# The committed set


def test_regeneration_gives_the_committed_bytes(tmp_path):
    want = bytes_of(default_vectors())
    del want["README.md"]
    assert bytes_of(write_vectors(tmp_path / "v")) == want


def test_the_committed_set_has_every_mode_and_class():
    files = read_manifest(default_vectors()).files
    modes = {(f.parameters["ROUNDING"], f.parameters["OVERFLOW"])
             for f in files if f.unit == "quantizer"}
    assert modes >= {(r, o) for r in Rounding for o in Overflow}
    assert {f.parameters["ACC_OVERFLOW"] for f in files if f.unit == "mac"} == set(Overflow)
    assert {f.parameters["P_ROUNDING"] for f in files if f.unit == "mac"} == set(range(11))
    assert {f.parameters["PIPELINE"] for f in files if f.unit == "mac"} == {0, 1, 2}
    assert {name for f in files for name in f.classes} == {
        "edges", "pairs", "bounds", "ties", "dither", "rails", "short", "random", "reset", "count",
        "found", "bins", "walk"}
    assert sum(len(data) for data in bytes_of(default_vectors()).values()) < 1_500_000
    for unit in ("quantizer", "mac", "lfsr"):
        assert sum(f.cases for f in files if f.unit == unit) > 1500


def test_classes_are_line_ranges_without_a_gap():
    for file in read_manifest(default_vectors()).files:
        lines = [n for first, last in file.classes.values() for n in range(first, last + 1)]
        assert lines == list(range(1, file.cases + 1))


def test_ties_have_both_parities_and_signs_and_dither_both_sides():
    by_spec = {file.spec: file for file in read_manifest(default_vectors()).files}
    seen = set()
    for record in values(by_spec["s12f14 -> s5f0 ties_even sat"]):
        n = min(record["shift_i"], 14)
        if n and record["value_i"] % (1 << n) == 1 << n - 1:
            seen.add((record["value_i"] >> n & 1, record["value_i"] < 0))
    assert seen == {(odd, negative) for odd in (0, 1) for negative in (False, True)}
    sums = set()
    for record in values(by_spec["s12f14 -> s5f0 stochastic6 wrap"]):
        n = min(record["shift_i"], 14)
        sums.add(record["value_i"] % (1 << n) + (record["rand_i"] << n >> 6) - (1 << n))
    assert {0, -1} <= sums


def test_a_mac_set_reaches_both_rails_and_counts():
    for file in read_manifest(default_vectors()).files:
        if file.spec == "{a: s8f0, b: s8f0, acc: s16f0 to_neg sat}":
            records = values(file)
            assert {-(1 << 15), (1 << 15) - 1} <= {record["acc_o"] for record in records}
            assert max(record["ovf_count_o"] for record in records) > 3


def test_level_2_is_the_same_plan_with_more(tmp_path):
    small, large = (read_manifest(write_vectors(tmp_path / str(level), "s8f4 -> s4f0 sat", level))
                    for level in (1, 2))
    assert small.files[0].classes.keys() - {"bins"} == large.files[0].classes.keys()
    assert large.files[0].cases > 5 * small.files[0].cases
    with pytest.raises(ValueError, match="level 3"):
        write_vectors(tmp_path / "v", level=3)


@pytest.mark.parametrize("text", ["{a: s8, b: u4, acc: s20 sat, lanes: 4}", "lfsr16",
                                  "s16f8 -> s8f4 ties_even sat", "u8f0 -> s12f4 align 3"])
def test_a_spec_text_names_its_unit(text):
    unit = from_text(text)
    assert from_text(unit.spec) == unit


def test_parameters_follow_from_the_spec():
    spec = QuantizerSpec.parse("s16f8 -> u8f4 stochastic6 sat_zero align 2")
    assert quantizer_parameters(spec) == {
        "IN_WIDTH": 16, "IN_SIGNED": 1, "OUT_WIDTH": 8, "OUT_SIGNED": 0, "MAX_SHIFT": 6,
        "PRE_SHIFT": 2, "ROUNDING": 11, "OVERFLOW": 3, "RAND_WIDTH": 6}
    mac = MacSpec.parse("{a: s8, b: u4, product: s9f-2 ties_even sat, acc: s12f-2 sat, lanes: 2}")
    assert mac_parameters(mac, 1) == {
        "A_WIDTH": 8, "A_SIGNED": 1, "B_WIDTH": 4, "B_SIGNED": 0, "LANES": 2, "P_WIDTH": 9,
        "P_SIGNED": 1, "P_SHIFT": 2, "P_PRE_SHIFT": 0, "P_ROUNDING": 9, "P_OVERFLOW": 1,
        "ACC_WIDTH": 12, "ACC_SIGNED": 1, "ACC_OVERFLOW": 1, "PIPELINE": 1, "COUNT_WIDTH": 16}


@pytest.mark.parametrize("overflow", ["wrap", "sat", "sat_sym", "sat_zero"])
@pytest.mark.parametrize("rounding", [*(r.name.lower() for r in list(Rounding)[:-1]),
                                      "stochastic1", "stochastic32"])
@pytest.mark.parametrize("drop", [-300, 300])
def test_a_shift_clamped_at_255_casts_as_the_whole_one(drop, rounding, overflow):
    spec = QuantizerSpec(Format(64, drop), Cast.parse(f"s64f0 {rounding} {overflow}"))
    cases = [(value, spec.shift, rand)
             for value in (spec.source.lo, -2, -1, 0, 1, 2, spec.source.hi)
             for rand in (0, 1, (1 << (spec.cast.rand_bits or 1)) - 1)]
    for (value, _, rand), record in zip(cases, quantizer_records(spec, cases), strict=True):
        operand = rand if spec.cast.rand_bits else None
        assert record[3] == cast(value, drop, spec.cast, operand) % (1 << 64)


def test_lanes_are_packed_with_lane_0_lowest():
    mac = MacSpec.parse("{a: s4, b: s4, acc: s8, lanes: 2}")
    records = list(mac_records(mac, [1, 2, -3], [1, 1, 1], bias=5))
    assert [record[3] for record in records] == [0x21, 0x0D]
    assert [record[6] for record in records] == [8, 5]
    assert [record[1] for record in records] == [0, 1]


def test_the_overflow_counter_stays_at_its_greatest_value():
    mac = MacSpec.parse("{a: s2, b: s2, acc: s2 sat}")
    counts = [record[8] for record in mac_records(mac, [-2] * 6, [-2] * 6, count_width=2)]
    assert counts == [1, 2, 3, 3, 3, 3]


def test_without_a_load_reset_is_where_it_starts():
    mac = MacSpec.parse("{a: s4, b: s4, acc: s8 sat}")
    assert list(mac_records(mac, [3, 1], [5, 1], None, idle=7)) == [
        (0, 0, 7, 3, 5, 0, 15, 0, 0), (0, 1, 7, 1, 1, 1, 16, 0, 0)]
    want = [(0, 0xFFFFFFFF, record[2]) for record in lfsr_records(8, [(1, 3)])]
    assert list(lfsr_records(8, [(None, 3)])) == want


# Bad input


@pytest.mark.parametrize(("text", "message"), [
    ("nonsense", "write a mac"),
    ("s8f4 -> s0f0", "format width 0"),
    ("s8f4 -> s4f0 tie_even", "did you mean 'ties_even'"),
    ("s8f4 -> s4f0 align x", "write the format"),
    ("s8f4 -> s4f0 align 65", "align 65"),
    ("lfsr33", "1 to 32 bits"),
    ("{a: s8, b: s8, acc: s40, lanes: 2048}", "at most 1024"),
])
def test_a_bad_spec_is_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        write_vectors(tmp_path / "v", text)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small(tmp_path):
    return write_vectors(tmp_path / "v", "s8f4 -> s4f0 ties_even sat")


def the_file(folder: Path) -> Path:
    return read_manifest(folder).files[0].path


def test_a_truncated_file_is_refused(small):
    path = the_file(small)
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match=r"\.hex: \d+ lines, the manifest says \d+; write the set"):
        read_manifest(small)


def test_a_line_cut_short_is_refused_with_its_number(small):
    path = the_file(small)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:4], lines[4][:-1], *lines[5:]]) + "\n")
    with pytest.raises(ValueError, match=r"\.hex:5: .* is not a line of 2_2_1_1_1"):
        read_manifest(small)


def test_a_changed_file_is_refused(small):
    path = the_file(small)
    text = path.read_text()
    path.write_text(("1" if text[0] == "0" else "0") + text[1:])
    with pytest.raises(ValueError, match=r"sha256 .* the manifest says"):
        read_manifest(small)


def test_a_missing_file_is_refused(small):
    the_file(small).unlink()
    with pytest.raises(ValueError, match=r"cannot be read .*write the set again"):
        read_manifest(small)


@pytest.mark.parametrize(("change", "message"), [
    (lambda data: data.update(schema=2), "schema 2 is newer than 1.*update emu"),
    (lambda data: data.update(contract=2), "contract 2 has other golden bits than 1.* again"),
    (lambda data: data["files"][0].pop("fields"), "not a manifest of schema 1 .*fields"),
    (lambda data: data["files"][0].update(colour="red"), "not a manifest of schema 1 .*colour"),
    (lambda data: data.pop("schema"), "not a manifest of schema 1"),
])
def test_a_bad_manifest_is_refused(small, change, message):
    data = json.loads((small / "manifest.json").read_text())
    change(data)
    (small / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=message):
        read_manifest(small)


def test_a_missing_or_broken_manifest_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"cannot be read .*emu vectors"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        read_manifest(tmp_path)


def test_a_folder_of_other_things_is_never_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(ValueError, match="holds no whole vector set; choose another output"):
        write_vectors(tmp_path, "lfsr8")
    with pytest.raises(ValueError, match="is a file"):
        write_vectors(tmp_path / "thesis.txt", "lfsr8")
    with pytest.raises(ValueError, match="cannot be written"):
        write_vectors(Path("/proc/nothing/v"), "lfsr8")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_replacing_a_set_keeps_files_that_are_not_its_own(small):
    old = the_file(small)
    (small / "README.md").write_text("mine")
    write_vectors(small, "lfsr8")
    assert (small / "README.md").read_text() == "mine"
    assert not old.exists() and len(read_manifest(small).files) == 1


# Differences


def test_diff_prints_equations_and_counts(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    trace = CastTrace("y", Format(8, 4), Cast.parse("s4 sat"), list(range(-100, 100)),
                      [cast(x, 4, Cast.parse("s4 sat")) for x in range(-100, 100)])
    other = CastTrace(trace.name, trace.form, trace.cast, [-100, 99, *range(-98, 100)],
                      [-7, 6, *trace.results[2:]])
    assert diff(write_step(a, [trace], {}), a) == []
    write_step(b, [other], {})
    assert diff(a, b) == [
        "quantizer/y.hex:2  shift_i=04 rand_i=0 => value_i=9d, but 63; code_o=9, but 6 (6)"]
    assert diff(a, b, limit=0) == ["... and 1 more, 1 differences in all"]
    write_step(b, [trace, MacTrace("m", MAC, [([1], [2])], None, [2])], {})
    assert diff(a, b) == [f"mac/m.hex: only in {b}"]
    assert diff(a, write_vectors(b, "lfsr8"))[0] == f"quantizer/y.hex: only in {a}"


# A recorded step


def step_traces(random: Random) -> list:
    """A small layer as an engine would hand it in: a pass, two casts and an update."""
    code = lambda form: random.randint(form.lo, form.hi)  # noqa: E731
    mac = MacSpec.parse("{a: s8, b: s4, product: s9f-2 ties_even sat, acc: s12f-2 sat, lanes: 4}")
    x = [[code(mac.a) for _ in range(10)] for _ in range(3)]
    w = [[code(mac.b) for _ in range(5)] for _ in range(10)]
    terms = list(matmul_terms(x, w))
    bias = [code(mac.acc.format) for _ in terms]
    sums = [dot(a, b, mac, start) for (a, b), start in zip(terms, bias, strict=True)]

    form, to = Format.parse("s12f9"), Cast.parse("s6f2 stochastic5 sat")
    loads = load_words(1, 2, "fc1", "y", 0)
    rand = random_operands(len(sums), 5, loads)
    up = Cast.parse("s20f12 sat")  # to the left

    spec = UpdateSpec.parse({"weight": "s12f10 stochastic8 sat", "momentum": "s10f6 ties_even sat",
                             "grad": "s8f9 sat", "lr": "s6f8", "mu": "u8f8"})
    weight = [code(spec.weight.format) for _ in range(40)]
    momentum = [code(spec.momentum.format) for _ in weight]
    grad = [code(spec.grad.format) for _ in weight]
    rand_weight = random_operands(40, 8, loads)
    new = [sgd(*row[:3], -32, 230, spec, rand_weight=row[3])
           for row in zip(weight, momentum, grad, rand_weight, strict=True)]
    return [
        MacTrace("fc1.forward", mac, iter(terms), bias, sums),
        MacTrace("empty", mac, [([], []), ([1], [4])], [7, 0], [7, 1]),
        CastTrace("fc1.y", form, to, sums,
                  [cast(s, 9, to, r) for s, r in zip(sums, rand, strict=True)], rand, loads),
        CastTrace("fc1.up", form, up, sums, [cast(s, 9, up) for s in sums]),
        UpdateTrace("fc1.weight", spec, -32, 230, weight, momentum, grad, [w for w, _ in new],
                    [m for _, m in new], rand_weight=rand_weight, loads_weight=loads),
    ]


def test_a_recorded_step_passes_through_the_verilog(tmp_path):
    write_step(tmp_path / "v", step_traces(Random(1)), {"step": 12, "recipe": "digits"})
    manifest = read_manifest(tmp_path / "v")
    assert manifest.about["step"] == 12
    names = [file.name for file in manifest.files]
    assert names == ["mac/fc1.forward.hex", "mac/empty.hex", "lfsr/fc1.y.hex",
                     "quantizer/fc1.y.hex", "quantizer/fc1.up.hex", "mac/fc1.weight.momentum.hex",
                     "quantizer/fc1.weight.momentum.hex", "sgd_update/fc1.weight.hex",
                     "mac/fc1.weight.weight.hex",
                     "lfsr/fc1.weight.weight.hex", "quantizer/fc1.weight.weight.hex"]
    assert manifest.files[0].cases == 15 * 3
    assert manifest.files[2].loads == load_words(1, 2, "fc1", "y", 0)
    assert replay(tmp_path / "v", bubbles=True).differences == []


@pytest.mark.parametrize(("index", "field", "message"), [
    (0, "results", r"fc1.forward\[3\]: -?\d+ \+ .* in the engine, .* by the reference"),
    (2, "results", r"fc1.y\[3\]: .* with rand \d+ = -?\d+ in the engine"),
    (2, "rand", r"fc1.y\[3\]: rand \d+ in the engine, \d+ drawn from load word \d+"),
    (4, "new_weight", r"fc1.weight.weight\[3\]: .* in the engine"),
    (4, "new_momentum", r"fc1.weight.momentum\[3\]: .* in the engine"),
])
def test_an_engine_that_errs_is_refused_with_the_equation(tmp_path, index, field, message):
    traces = step_traces(Random(1))
    wrong = list(getattr(traces[index], field))
    wrong[3] ^= 1
    traces[index] = type(traces[index])(**{**vars(traces[index]), field: wrong})
    with pytest.raises(ValueError, match=message):
        write_step(tmp_path / "v", traces, {})
    assert list(tmp_path.iterdir()) == []


def test_a_stochastic_cast_without_its_operand_is_refused(tmp_path):
    trace = CastTrace("y", Format(8, 4), Cast.parse("s4 stochastic8"), [1], [0])
    with pytest.raises(ValueError, match="give rand or loads"):
        write_step(tmp_path / "v", [trace], {})


def test_two_traces_of_one_name_are_refused(tmp_path):
    trace = CastTrace("y", Format(8, 4), Cast.parse("s4"), [1], [0])
    with pytest.raises(ValueError, match=r"y.hex: a second file of this name"):
        write_step(tmp_path / "v", [trace, trace], {})


def test_codes_outside_their_format_are_refused(tmp_path):
    with pytest.raises(ValueError, match="code 128 is outside s8f4"):
        write_step(tmp_path / "v", [CastTrace("y", Format(8, 4), Cast.parse("s4"), [128], [0])], {})
    with pytest.raises(ValueError, match="bias 40000: outside s16f0"):
        write_step(tmp_path / "v", [MacTrace("m", MAC, [([1], [1])], [40000], [0])], {})


@pytest.mark.parametrize("seed", range(20))
def test_updates_of_any_formats_are_exact_on_the_mac(tmp_path, seed):
    random = Random(seed)
    form = lambda most: f"{random.choice('su')}{random.randint(2, most)}f{random.randint(-3, 9)}"  # noqa: E731
    spec = UpdateSpec.parse({"weight": f"{form(16)} ties_even sat", "momentum": f"{form(12)} sat",
                             "grad": form(10), "lr": form(8), "mu": form(8)})
    code = lambda cast: random.choice((cast.format.lo, cast.format.hi,  # noqa: E731
                                       random.randint(cast.format.lo, cast.format.hi)))
    lr, mu = code(spec.lr), code(spec.mu)
    rows = [[code(spec.weight), code(spec.momentum), code(spec.grad)] for _ in range(30)]
    new = [sgd(*row, lr, mu, spec) for row in rows]
    trace = UpdateTrace("u", spec, lr, mu, *map(list, zip(*rows, strict=True)),
                        [w for w, _ in new], [m for _, m in new])
    files = read_manifest(write_step(tmp_path / "v", [trace], {})).files
    assert all(record["ovf_o"] == 0 for file in files if file.unit == "mac"
               for record in values(file))


def parts_traces(random: Random) -> list:
    """An update with weight decay and Nesterov momentum, one that shrinks, one with a buffer."""
    loads = load_words(1, 2, "fc1", "w", 0)
    rands = [random_operands(20, 4, loads) for _ in range(3)]
    traces = []
    for name, parts in (("ahead", {"decay": "u8f12", "nesterov": "s11f7 stochastic4 sat"}),
                        ("shrunk", {"shrink": "u8f12"})):
        spec = UpdateSpec.parse({"weight": "s12f10 stochastic4 sat", "momentum": "s10f6 to_odd sat",
                                 "grad": "s8f9 sat", "lr": "s6f8", "mu": "u8f8"} | parts)
        rows = [[random.randint(to.format.lo, to.format.hi)
                 for to in (spec.weight, spec.momentum, spec.grad)] for _ in range(20)]
        ahead = rands[2] if spec.nesterov else [None] * 20
        new = [sgd(*row, -32, 230, spec, rand_weight=rw, decay=200, rand_nesterov=rn)
               for row, rw, rn in zip(rows, rands[1], ahead, strict=True)]
        traces.append(UpdateTrace(
            name, spec, -32, 230, *map(list, zip(*rows, strict=True)), [w for w, _ in new],
            [m for _, m in new], rand_weight=rands[1], loads_weight=loads, decay=200,
            loads_nesterov=loads if spec.nesterov else None))
    spec = BufferSpec.parse("{weight: s8f7 stochastic4 sat, buffer: s14f12 sat, grad: s8f10}")
    rows = [[random.randint(to.format.lo, to.format.hi)
             for to in (spec.weight, spec.buffer, spec.grad)] for _ in range(20)]
    new = [buffered_sgd(*row, 2, spec, r) for row, r in zip(rows, rands[0], strict=True)]
    traces.append(BufferTrace("held", spec, 2, *map(list, zip(*rows, strict=True)),
                              [w for w, _ in new], [b for _, b in new], rands[0], loads))
    return traces


def test_every_kind_of_update_passes_through_the_verilog(tmp_path):
    write_step(tmp_path / "v", parts_traces(Random(3)), {})
    names = {file.name for file in read_manifest(tmp_path / "v").files if file.unit != "lfsr"}
    assert names == {f"{unit}/{name}.hex" for unit, parts in {
        "mac": ["ahead.decay", "ahead.momentum", "ahead.nesterov", "ahead.weight",
                "shrunk.momentum", "shrunk.shrink", "shrunk.weight", "held.buffer", "held.weight",
                "held.rest"],
        "quantizer": ["ahead.momentum", "ahead.nesterov", "ahead.weight", "shrunk.momentum",
                      "shrunk.weight", "held.buffer", "held.step", "held.weight", "held.rest"],
    }.items() for name in parts}
    assert replay(tmp_path / "v").differences == []


@pytest.mark.parametrize(("index", "field", "message"), [
    (0, "new_weight", r"ahead.weight\[3\]: .* in the engine"),
    (1, "new_momentum", r"shrunk.momentum\[3\]: .* in the engine"),
    (2, "new_weight", r"held.weight\[3\]: .* in the engine"),
    (2, "new_buffer", r"held.rest\[3\]: .* in the engine")])
def test_an_engine_that_errs_in_an_update_is_refused(tmp_path, index, field, message):
    trace = parts_traces(Random(3))[index]
    wrong = list(getattr(trace, field))
    wrong[3] ^= 1
    with pytest.raises(ValueError, match=message):
        write_step(tmp_path / "v", [type(trace)(**{**vars(trace), field: wrong})], {})
