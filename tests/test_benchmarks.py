"""What the benchmarks conclude is right; how long anything took is not tested."""

import importlib
from pathlib import Path

import numpy as np
import pytest

from emu import MacSpec

PLACE = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """Imports a benchmark by its name."""
    monkeypatch.syspath_prepend(PLACE)
    return importlib.import_module


@pytest.mark.parametrize("name", sorted(path.stem for path in PLACE.glob("*.py")))
def test_every_benchmark_runs_without_arguments(load, name):
    assert load(name).main.__defaults__ or not load(name).main.__code__.co_argcount


def test_a_turn_is_an_untimed_call_then_timed_ones(load, monkeypatch):
    race = load("race")
    clock, calls = [0], []
    monkeypatch.setattr(race, "TURN", 4)
    monkeypatch.setattr(race.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(race.time, "sleep", lambda seconds: calls.append("pause"))

    def function(name, seconds):
        def run():
            clock[0] += seconds if calls[-1:] == [name] else 99  # slow after anything else
            calls.append(name)
        return run

    times = race.race({"fast": function("fast", 1), "slow": function("slow", 8)}, rounds=2)
    turns = ["pause", *["fast"] * 5, "pause", *["slow"] * 2]
    assert calls == ["fast", "slow", *turns, *turns]
    assert {name: list(seconds) for name, seconds in times.items()} == {
        "fast": [1, 1], "slow": [8, 8]}


def test_a_ratio_is_taken_within_each_round(load):
    race = load("race")
    times = {"base": np.array([2.0, 20, 6, 4, 40]), "mine": np.array([1.0, 10, 6, 1, 10])}
    assert race.ratio(times, "mine", "base") == 2
    assert race.quartiles(times, "mine", "base").tolist() == [2, 2, 4]


MAC = MacSpec.parse("{a: s8, b: s8, acc: s8 sat}")
A, B = np.array([[100, 100, -50], [100, 100, 0]], np.int8), np.ones((3, 1), np.int8)


@pytest.mark.parametrize("sums, equal", [
    ([[77], [127]], "every step"), ([[127], [127]], "at the end"), ([[150], [200]], "exact sum"),
    ([[77], [126]], "none")])
def test_a_verdict_says_what_sums_equal(load, sums, equal):
    assert load("peers").verdict(np.array(sums, np.float32), A, B, MAC) == equal


@pytest.mark.parametrize("package, call, equal", [
    ("torch", "mm", "exact sum"), ("torch", "mm, fake_quantize", "at the end"),
    ("torch", "loop over k", "every step"), ("apytypes", "@", "exact sum"),
    ("apytypes", "@ with accumulator", "none"), ("apytypes", "loop over k, cast", "every step")])
def test_a_peer_does_what_its_line_says(load, package, call, equal):
    peers = load("peers")
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-128, 128, (8, 8)).astype(np.int8) for _ in "ab")
    sums = peers.PEERS[package, call].build(a, b, MAC.acc.format)()
    assert peers.verdict(sums, a, b, MAC) == equal


def test_a_missing_peer_is_a_line(load, monkeypatch, capsys):
    race, peers = load("race"), load("peers")
    monkeypatch.setattr(peers, "race", lambda functions: race.race(functions, rounds=1))
    monkeypatch.setattr(peers, "PEERS", {
        key: peer for key, peer in peers.PEERS.items() if key[0] in ("brevitas", "torch")})
    monkeypatch.setitem(importlib.sys.modules, "brevitas.nn", None)
    peers.compare(8, 10)
    said = capsys.readouterr().out
    assert "torch" in said and "\nbrevitas: not measured, " in said
    assert said.rstrip().endswith("(qtorch needs g++ too)")
