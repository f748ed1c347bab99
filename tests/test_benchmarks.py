"""What the benchmarks conclude is right; how long anything took is not tested."""

import importlib
from pathlib import Path

import numpy as np
import pytest

PLACE = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """Imports a benchmark by its name."""
    monkeypatch.syspath_prepend(PLACE)
    return importlib.import_module


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
