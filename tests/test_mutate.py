"""The committed vectors notice every small change of the Verilog but those proved to be none."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from emu.cosim import default_vectors, hardware, mutate
from emu.cosim.netlist import Netlist
from emu.cosim.places import rtl_sources
from emu.cosim.solver import NoVerdict
from emu.cosim.survivors import SELECT, unchanged
from emu.golden import read_manifest
from emu.golden.cases import STRENGTH, from_text
from emu.golden.units import lfsr_records, lfsr_unit
from emu.golden.vectors import vector_set

LFSR = mutate.Design(from_text("lfsr8"), 40, {})


@pytest.fixture(scope="module")
def scores():
    return mutate.mutate(default_vectors())


def test_the_vectors_notice_what_they_must(scores):
    counts = mutate.strength(scores)
    assert set(counts) == {"quantizer", "mac", "lfsr"}
    for unit, count in counts.items():
        assert count["mutants"] >= 400
        assert mutate.share(count) >= mutate.BARS[unit], unit
        assert count["equivalent"] < count["mutants"] / 10
    for score in scores:
        assert score.killed + len(score.equivalent) + len(score.gaps) == score.design.mutants


def test_the_manifest_gives_the_figure(scores):
    assert read_manifest(default_vectors()).about["strength"] == mutate.strength(scores)


def test_what_was_proved_is_kept_for_this_verilog(scores):
    known = json.loads(STRENGTH.read_text())["equivalent"]
    assert {score.key: list(score.equivalent) for score in scores} == known


def vectors(folder: Path, cases: list) -> Path:
    """A set with these cases of lfsr8 only."""
    with vector_set(folder, {}) as writer:
        writer.add("lfsr/lfsr8.hex", lfsr_unit(8), [("some", lfsr_records(8, cases))])
    return folder


def test_weak_vectors_leave_gaps_that_a_case_closes(tmp_path):
    score, = mutate.mutate(vectors(tmp_path / "weak", [(1, 3)]), [LFSR])
    cases = [gap.case for gap in score.gaps if gap.case is not None]
    assert cases and {gap.spec for gap in score.gaps if gap.case is not None} == {"lfsr8"}
    more = vectors(tmp_path / "more", [(None, 40), *cases])
    again, = mutate.mutate(more, [LFSR])
    assert not [gap for gap in again.gaps if gap.case is not None]


def test_gates_are_changed_as_operations_are(tmp_path, monkeypatch):
    gates = dataclasses.replace(LFSR, gates=True)
    score, = mutate.mutate(default_vectors(), [gates])
    assert score.killed + len(score.equivalent) == 40 and not score.gaps
    assert score.key != mutate.mutate(default_vectors(), [LFSR])[0].key
    weak = vectors(tmp_path / "weak", [(1, 3)])

    def undecided(*_):
        raise NoVerdict("bitwuzla gave no verdict in 120 s")

    monkeypatch.setattr(mutate, "unchanged", undecided)
    score, = mutate.mutate(weak, [gates])  # what is not proved to be no change counts against them
    assert {gap.difference for gap in score.gaps} == {
        "it may be no change: bitwuzla gave no verdict in 120 s"}
    assert score.killed + len(score.gaps) == 40


def test_proofs_that_a_mutant_is_no_change_are_right_for_all_inputs():
    design = mutate.Design(from_text("s3f2 -> s2f0 sat"), 40, {"ROUNDING_PORT": 1}, gates=True)
    _, netlist = mutate.changed(design, rtl_sources((), "quantizer"))
    wires = [(name, i) for name, bits in netlist.inputs.items() if name != "mutsel"
             for i in range(len(bits))]
    count = 1 << len(wires)
    ones = (1 << count) - 1
    inputs = {name: [0] * len(bits) for name, bits in netlist.inputs.items()}
    for period, (name, i) in enumerate(wires):  # simulation n has bit `period` of n on this wire
        inputs[name][i] = ones // ((1 << (1 << period)) + 1) << (1 << period)
    answers = []
    for mutant in range(41):
        inputs["mutsel"] = [ones * (mutant >> bit & 1) for bit in range(SELECT)]
        answers.append(netlist.step(inputs, [], ones))
    same = [mutant for mutant in range(1, 41) if answers[mutant] == answers[0]]
    assert same == [mutant for mutant in range(1, 41) if unchanged(netlist, mutant)]
    assert 0 < len(same) < 20


def test_both_proofs_that_a_mutant_is_no_change_agree(monkeypatch):
    """That it does what the unit does, and that it does what the spec says."""
    gates = dataclasses.replace(LFSR, gates=True)
    score, = mutate.mutate(default_vectors(), [gates])
    monkeypatch.setattr(mutate, "unchanged", lambda *_: False)
    again, = mutate.mutate(default_vectors(), [gates])
    assert score.equivalent == again.equivalent and score.equivalent


@pytest.mark.parametrize("spec", [
    "s7f4 -> flag s2f1 to_neg sat",
    "{weight: s6f9 sat_zero, momentum: s5f7 wrap, grad: s4f3, lr: u2f1, mu: u2f2}"])
def test_any_unit_of_the_vectors_can_be_changed(monkeypatch, spec):
    monkeypatch.setattr(mutate, "EACH", 15)
    score, = mutate.mutate(default_vectors(), mutate.designs([spec]))
    assert score.killed + len(score.equivalent) + len(score.gaps) == 15 and score.killed >= 10


def test_a_wrong_unit_fails_before_any_mutant(tmp_path):
    text = (hardware() / "rtl" / "lfsr.v").read_text()
    (tmp_path / "lfsr.v").write_text(text.replace("32'h80200003", "32'h80200007"))
    with pytest.raises(RuntimeError, match="the unchanged unit fails its vectors"):
        mutate.mutate(default_vectors(), [LFSR], [tmp_path / "lfsr.v"])


def test_vectors_of_another_unit_are_an_error():
    other = mutate.Design(from_text("s7f3 -> s3f0 sat"), 10, {})
    with pytest.raises(ValueError, match=r"no vector file of .* has these parameters"):
        mutate.mutate(default_vectors(), [other])


def test_more_mutants_than_there_are_is_an_error():
    with pytest.raises(RuntimeError, match=r"yosys found .* mutants, not 99999"):
        mutate.mutate(default_vectors(), [mutate.Design(from_text("lfsr1"), 99999, {})])


def test_a_netlist_computes_what_its_gates_say():
    cell = lambda kind, **pins: {"type": kind, "connections": {p: [b] for p, b in pins.items()}}  # noqa: E731
    text = json.dumps({"modules": {"top": {
        "ports": {"clk_i": {"direction": "input", "bits": [8]},
                  "a": {"direction": "input", "bits": [2, 3]},
                  "y": {"direction": "output", "bits": [5, 6, "1"]}},
        "cells": {"x": cell("$_XOR_", A=2, B=3, Y=4), "n": cell("$_NOT_", A=4, Y=5),
                  "m": cell("$_MUX_", A=2, B=6, S=3, Y=7),
                  "q": cell("$_DFF_P_", C=8, D=7, Q=6)}}}})
    netlist = Netlist(text, "top")
    a, ones = [0b0011, 0b0101], 0b1111
    outputs, state = netlist.step({"clk_i": [0], "a": a}, [0b1000], ones)
    assert outputs["y"] == [0b1001, 0b1000, 0b1111]
    assert list(state) == [(0b0011 & ~0b0101) | (0b1000 & 0b0101)]
    loop = text.replace('"B": [3], "Y": [4]', '"B": [4], "Y": [4]')
    for wrong, told in ((loop, "1 gates of top feed themselves"),
                        (text.replace('"S": [3]', '"S": [9]'), "nothing drives 1 bits of top"),
                        (text.replace('"C": [8]', '"C": [2]'), "another clock than the rising"),
                        (text.replace("$_MUX_", "$dlatch"), "a cell .dlatch, which is no gate")):
        with pytest.raises(RuntimeError, match=told):
            Netlist(wrong, "top")


def test_update_writes_cases_and_figures_into_the_data(tmp_path, monkeypatch):
    data = tmp_path / "strength.json"
    shutil.copyfile(STRENGTH, data)
    monkeypatch.setattr(mutate, "STRENGTH", data)
    monkeypatch.setattr("emu.golden.cases.STRENGTH", data)
    monkeypatch.setattr(mutate, "designs",
                        lambda gates=False: [mutate.Design(from_text("lfsr16"), 30, {})])
    monkeypatch.setattr(mutate, "write_vectors", lambda folder: None)
    scores = mutate.update(default_vectors())
    kept = json.loads(data.read_text())
    assert kept["strength"] == mutate.strength(scores)
    assert kept["found"] == json.loads(STRENGTH.read_text())["found"]
    assert kept["equivalent"] == {scores[0].key: list(scores[0].equivalent)}
