"""The Verilog equals its definition for all inputs; a wrong one, or no verdict, never passes."""

from pathlib import Path

import pytest

from emu.cosim import hardware, prove, replay, solver
from emu.cosim.claims import Question, questions
from emu.cosim.places import rtl_sources
from emu.golden import read_manifest
from emu.golden.cases import from_text
from emu.number import Overflow, Rounding

MAC = "{a: s4, b: s4, product: s6f-2 ties_even sat, acc: s8f-2 sat}"
TILED = "{a: s3, b: s3, acc: s6 sat, tile: 2, outer: s6f-1 ties_even sat}"
# Each would pass for the real thing at a glance.
BUGS = [
    ("quantizer", "(tie && odd)", "(tie && !odd)", "s8f6 -> s4f0 ties_even sat"),
    ("quantizer", "above || tie;", "lost;", "s8f6 -> s4f0 ties_pos sat"),
    ("quantizer", "(tie && negative);", "(tie && !negative);", "s8f6 -> s4f0 ties_zero sat"),
    ("quantizer", "rand_i, {GUARD{1'b0}", "rand_i, {GUARD{1'b1}", "s8f6 -> s4f0 stochastic3 wrap"),
    ("quantizer", "|(rest << 1)", "|(rest << 2)", "s8f6 -> s4f0 ties_neg sat"),
    ("quantizer", "rounded > HI", "rounded >= HI", "s8f6 -> s4f0 to_neg sat_zero"),
    ("quantizer", "? -HI : ~HI", "? ~HI : ~HI", "s8f6 -> s4f0 to_pos sat_sym"),
    ("quantizer", "> LIMIT ? LIMIT", "> LIMIT ? 9'd0", "s8f6 -> s4f0 to_neg sat"),
    ("mac", "load ? bias : acc_o", "!load ? bias : acc_o", MAC),
    ("mac", "ACC_SIGNED != 0 && base", "ACC_SIGNED == 0 && base", MAC),
    ("mac", "? count + 1'b1", "? count + 2'd2", MAC),
    ("mac_tiled", "counted && !tile_opens", "counted", TILED),
    ("mac_tiled", "inner_closes ? total : base", "inner_closes && !last ? total : base", TILED),
    ("mac_tiled", ".ROUNDING(O_ROUNDING)", ".ROUNDING(O_ROUNDING ^ 3)", TILED),
    ("lfsr", "32'h80200003", "32'h80200007", "lfsr8"),
    ("lfsr", "state_i == 32'd0 ? 32'd1 : state_i", "state_i", "lfsr4"),
]


def wrong(folder: Path, module: str, old: str, new: str) -> Path:
    text = (hardware() / "rtl" / f"{module}.v").read_text()
    assert text.count(old) == 1
    path = folder / f"{module}.v"
    path.write_text(text.replace(old, new))
    return path


def test_the_verilog_equals_its_definition():
    asked = prove.standard_proofs()
    done = prove.prove(asked)
    assert [proof.difference for proof in done if proof.difference] == []
    assert len(done) == len(asked) >= 70
    assert sum(proof.solvers == ("bitwuzla", "z3") for proof in done) >= 20


def test_the_list_has_every_mode_and_the_corners():
    units = [unit for unit, _ in prove.standard_proofs()]
    quantizers = [unit.parameters for unit in units if unit.module == "quantizer"]
    assert {(p["ROUNDING"], p["OVERFLOW"]) for p in quantizers} == {
        (rounding, overflow) for rounding in Rounding for overflow in Overflow}
    assert {p["IN_WIDTH"] for p in quantizers} >= {1, 2, 12, 48, 64}
    assert {p["OUT_WIDTH"] for p in quantizers} >= {1, 2, 5, 32, 64}
    assert any(p["OUT_WIDTH"] > p["IN_WIDTH"] for p in quantizers)
    macs = [unit.parameters for unit in units if unit.module == "mac"]
    assert any(p["ACC_WIDTH"] < p["P_WIDTH"] for p in macs)
    assert any(p["P_WIDTH"] == 1 for p in macs)
    assert {p["PIPELINE"] for p in macs} == {0, 1, 2}


@pytest.mark.parametrize(("module", "old", "new", "spec"), BUGS)
def test_a_bug_gives_a_counterexample_that_vectors_show(module, old, new, spec, tmp_path):
    bad = wrong(tmp_path, module, old, new)
    proof, = prove.prove([(from_text(spec), {})], [bad])
    assert " => " in proof.difference and ", expected " in proof.difference
    stored = prove.store([proof], tmp_path / "found")
    assert read_manifest(stored).files[0].oracle == "reference"
    if not module.startswith("mac"):
        return
    report = replay(stored, rtl=[bad])
    assert report.differences[0] == proof.difference
    assert replay(stored).ok


@pytest.mark.parametrize(("module", "old", "new", "what"), [
    ("lfsr", ".d_i(en_i)", ".d_i(en_i && !load_i)", "draws after a load"),
    ("mac", ".en_i(en_i && valid)", ".en_i(valid)", "a clock without en_i"),
    ("mac", "{valid, valid && last}", "{valid, last}", "a step"),
    ("mac", "(ovf_o && !load)", "ovf_o", "a step"),
    ("mac", "!(&count)", "1'b1", "a step"),
    ("register", "if (!rst_ni) value_q <= RESET_VALUE;\n        else if (en_i) value_q <= d_i;\n"
     "    end\n  endgenerate", "if (en_i) value_q <= d_i;\n    end\n  endgenerate", "reset"),
])
def test_a_bug_beyond_vectors_is_named_by_what_fails(module, old, new, what, tmp_path):
    unit = from_text("lfsr8" if module == "lfsr" else MAC)
    proof, = prove.prove([(unit, {})], [wrong(tmp_path, module, old, new)])
    assert what in proof.difference and proof.case is None
    assert prove.store([proof], tmp_path / "found") is None


def test_other_words_for_the_same_are_proved(tmp_path):
    same = wrong(tmp_path, "quantizer", "wire lost  = half || lower;", "wire lost  = |rest;")
    proof, = prove.prove([(from_text("s12f14 -> s5f0 to_odd sat"), {})], [same])
    assert proof.difference is None


def test_the_rounding_port_is_proved_in_every_mode(tmp_path):
    bad = wrong(tmp_path, "quantizer", "default:    round_up = 1'b0;",
                "default:    round_up = rounding == 4'd14 && lost;")
    unit = from_text("s8f6 -> s4f0 stochastic3 sat")
    assert prove.prove([(unit, {})], [bad])[0].difference is None
    proof, = prove.prove([(unit, {"ROUNDING_PORT": 1})], [bad])
    assert proof.difference is not None


def test_nothing_asked_is_an_error():
    with pytest.raises(ValueError, match="no unit to prove"):
        prove.prove([])


@pytest.mark.parametrize(("command", "message"), [
    (["sh", "-c", "kill -9 $$"], r"died \(status -9\)"),
    (["sh", "-c", "echo out of memory; exit 3"], r"died \(status 3\): out of memory"),
    (["echo", "unknown"], "no verdict: unknown"),
    (["true"], "no verdict: it printed nothing"),
    (["sleep", "9"], "no verdict in 1 s"),
])
def test_no_verdict_is_an_error(monkeypatch, command, message):
    monkeypatch.setattr(solver, "_command", lambda *_: command)
    with pytest.raises(RuntimeError, match=message):
        prove.prove([(from_text("s4f2 -> s2f0 sat"), {})], seconds=1)


def test_solvers_that_disagree_are_an_error(monkeypatch):
    monkeypatch.setattr(prove, "satisfiable", lambda texts, solver, _: [solver == "z3", True])
    with pytest.raises(RuntimeError, match="bitwuzla and z3 disagree"):
        prove.prove([(from_text("s4f2 -> s2f0 sat"), {})])


def test_a_claim_about_nothing_is_an_error():
    question = next(questions(from_text("s4f2 -> s2f0 sat"), {}, rtl_sources()))
    empty = Question("a cast", question.model, question.claims, [False], {}, question.tell)
    with pytest.raises(RuntimeError, match="a cast: this can never be"):
        prove.first_failure([empty], "bitwuzla", 60)


def test_foreign_verilog_is_refused_with_the_reason(tmp_path):
    cases = [("module other; endmodule", "replaces nothing"),
             ("module quantizer(; endmodule", "mine.v:1: ERROR: syntax error"),
             ("module quantizer(input a, output b); assign b = a; endmodule", "IN_WIDTH")]
    for text, message in cases:
        (tmp_path / "mine.v").write_text(text)
        with pytest.raises((ValueError, RuntimeError), match=message):
            prove.prove([(from_text("s4f2 -> s2f0 sat"), {})], [tmp_path / "mine.v"])


def test_a_missing_tool_names_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(solver.ToolMissing, match="apt-get install yosys"):
        prove.prove([(from_text("s4f2 -> s2f0 sat"), {})])
