"""What the hardware did in a training: what the run folder holds and the tables show."""

import copy
import dataclasses
import json
from fractions import Fraction

import numpy as np
import pytest
from engine_cases import joined, numbers

from emu import Cast, MacSpec, engine
from emu.lab import train as lab
from emu.lab.recipe import Recipe
from emu.lab.run import METRICS, MONITOR, WEIGHTS, curves
from emu.lab.telemetry import Telemetry

SAT = MacSpec.parse("{a: s8, b: s8, acc: s8 sat}")
TWO = MacSpec.parse("{a: s8, b: s8, product: s8f-2 ties_even sat, acc: s8f-2 sat, tile: 2, "
                    "outer: s7f-3 sat}")


def recipe(monitor, epochs=1):
    """The shipped MLP, watched every so many steps."""
    chosen = Recipe.load("digits-mlp-int8")
    return dataclasses.replace(chosen, monitor=monitor, training=dataclasses.replace(
        chosen.training, epochs=epochs))


def step(seed):
    """The records of a small step: two MACs and two casts."""
    rng = np.random.default_rng(seed)
    a, b = rng.integers(-128, 128, (2, 4, 4))
    with engine.monitor() as seen:
        with engine.named("fc1.forward"):
            engine.matmul(a // 8, b // 8, SAT)
        with engine.named("fc2.forward"):
            engine.matmul(a, b, TWO)
        with engine.named("fc2.y", 1):
            engine.cast(a, 3, Cast.parse("s4 sat"))
        with engine.named("fc1.x"):
            engine.cast(a // 64, 0, Cast.parse("s4 sat"))
    return seen


def gathered(steps) -> Telemetry:
    """The telemetry of some watched steps, each followed by one that is not."""
    found = Telemetry()
    for seed in steps:
        found.add(2 * seed, step(seed))
        found.add(2 * seed + 1, None)
    return found


def contents(telemetry) -> tuple:
    return (telemetry.watched, telemetry.steps, telemetry.records, telemetry.first_steps)


def test_a_text_is_parsed_to_the_same():
    found = gathered(range(3))
    assert contents(Telemetry.parse(str(found))) == contents(found)
    assert str(Telemetry.parse(str(found))) == str(found)


def test_parts_join_to_the_whole():
    whole = gathered(range(2))
    whole += gathered(range(2, 5))
    assert contents(whole) == contents(gathered(range(5)))


def test_the_first_overflow_knows_its_training_step():
    found = Telemetry()
    with engine.monitor() as quiet, engine.named("fc1.forward"):
        engine.matmul(np.ones((4, 4), int), np.ones((4, 4), int), SAT)
    found.add(7, quiet)
    assert found.first_steps == {}
    found.add(8, step(0)[:1])
    found.add(9, step(1)[:1])
    assert found.first_steps == {"fc1.forward": 8}
    assert found.records["fc1.forward"].first == step(0)[0].first


def test_the_file_has_a_line_for_each_operation():
    lines = str(gathered(range(2))).splitlines()
    assert [line.partition(":")[0] for line in lines[1:-1]] == [
        '"fc1.forward"', '"fc2.forward"', '"fc2.y"', '"fc1.x"']
    item = json.loads(str(gathered(range(2))))["operations"]["fc1.forward"]
    assert item["total"]["transient"] == sum(item["channels"]["transient"])
    assert (item["calls"], len(item["channels"]["acc.exact_high"])) == (2, 4)


def test_tables_go_by_layer():
    found = gathered(range(3))
    one, two = found.records["fc1.forward"].total, found.records["fc2.forward"].total
    assert list(found.accumulators()) == [
        ("fc1.forward", "192", *(f"{number:,}" for number in (
            one.overflowing_steps, one.transient, one.persistent)),
         f"{one.acc.exact_bits + 1} of 8"),
        ("fc2.forward", "192", *(f"{number:,}" for number in (
            two.overflowing_steps, two.transient, two.persistent)),
         f"{two.acc.exact_bits + 1} of 8 / {two.outer.exact_bits + 1} of 7")]
    assert min(one.transient, one.persistent, two.acc.overflows, two.outer.overflows) > 0
    # fc1.x is neither out of range nor biased
    assert [row[:2] for row in found.casts()] == [
        ("fc2.forward.product", "192"), ("fc2.forward.spill", "96"), ("fc2.y", "48")]
    y = found.records["fc2.y"].total
    assert list(found.casts())[-1][2:] == (str(y.overflows), f"{y.bits + 1} of 4",
                                           f"{float(y.bias):+.4f}")


@pytest.mark.parametrize(("codes", "want"), [
    ([9], ["+0.4375"]),  # 9/16 of a step becomes 1
    ([9, 7], []),  # and 7/16 becomes 0
    ([9, 7, 7], ["-0.1458"]),
    ([9] + [0] * 7, ["+0.0547"]),
    ([9] + [0] * 8, []),  # 7/144 is below 1/20
])
def test_only_biased_casts_are_shown(codes, want):
    found = Telemetry()
    with engine.monitor() as seen, engine.named("fc1.x"):
        engine.cast(codes, 4, Cast.parse("s4 ties_even sat"))
    found.add(0, seen)
    assert [row[4] for row in found.casts()] == want


def test_an_overflow_into_the_symmetric_range_asks_for_a_bit_more():
    found = Telemetry()
    with engine.monitor() as seen, engine.named("fc1.x"):
        engine.cast([-8], 0, Cast.parse("s4 to_neg sat_sym"))
    found.add(0, seen)
    assert next(found.casts())[3] == "5 of 4"


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """Runs of two epochs, by how often they were watched."""
    return {monitor: lab.train(recipe(monitor, 2), tmp_path_factory.mktemp("run") / str(monitor))
            for monitor in (0, 7)}


def test_watching_moves_no_weight(watched):
    assert len({(run.path / WEIGHTS).read_bytes() for run in watched.values()}) == 1


def test_every_so_many_steps_are_watched(watched):
    # 45 steps an epoch: 0, 7, ... 42, then 49, ... 84.
    assert [(line["steps"], line["watched"]) for line in watched[7].metrics] == [(45, 7), (45, 6)]
    found = Telemetry.parse((watched[7].path / MONITOR).read_text())
    assert (found.watched, found.steps) == (13, 90)
    assert {record.calls for record in found.records.values()} == {13}
    assert {first % 7 for first in found.first_steps.values()} == {0}


def test_batches_of_other_sizes_add_up():
    """The rows of a layer norm are its channels, and the last batch of an epoch has fewer."""
    to, sizes = Cast.parse("s4 sat"), (4, 4, 3, 2)
    found = Telemetry()
    for at, rows in enumerate(sizes):
        with engine.monitor() as seen, engine.named("norm.xhat", 0):
            engine.cast(np.full((rows, 5), 9), 0, to)
        found.add(at, seen)
    record = found.records["norm.xhat"]
    assert (record.total.values, record.total.overflows, record.calls) == (65, 65, 4)
    assert len(record.channels) == 1 and Telemetry.parse(str(found)).records == found.records


def test_the_epochs_add_up_to_the_whole(watched):
    found = Telemetry.parse((watched[7].path / MONITOR).read_text())
    for label, record in found.records.items():
        epochs = joined(line["counts"][label] for line in watched[7].metrics)
        total = numbers(record.total)
        assert epochs.items() <= {**total, "outputs": getattr(record.total, "outputs", 0)}.items()


def test_every_part_of_every_layer_is_recorded(watched):
    parts = {"x", "w", "b", "preload", "forward", "error", "grad_weight", "grad_w", "grad_bias",
             "grad_b", *(f"update.{name}.{cast}" for name in ("weight", "bias")
                         for cast in ("grad", "lr", "mu", "momentum", "weight"))}
    want = {f"fc1.{part}" for part in parts} | {f"fc2.{part}" for part in parts}
    assert set(watched[7].telemetry.records) == want | {"fc2.grad_input"}


def test_what_is_recorded_is_what_a_monitor_sees(watched):
    run = watched[7]
    images = lab.load("digits")
    machine = lab.Machine.build(recipe(7), images)
    machine.model.train()
    machine.enter(recipe(7), 0)
    want = Telemetry()
    for number, (x, y) in enumerate(lab._batches(recipe(7), images, 0, None, "")):
        with engine.monitor() as seen:
            lab._step(machine, x, y)
        want.add(number, None if number % 7 else seen)
    assert run.metrics[0]["counts"] == want.counts()


def test_nothing_is_watched_where_nothing_is_to_be(watched):
    run = watched[0]
    assert [line["counts"] for line in run.metrics] == [{}, {}]
    assert json.loads((run.path / MONITOR).read_text()) == {
        "watched": 0, "steps": 90, "operations": {}}
    assert curves(run.metrics).startswith(b"\x89PNG")


def test_an_epoch_may_be_without_a_watched_step(watched):
    metrics = copy.deepcopy(watched[7].metrics)
    metrics[0].update(watched=0, counts={})
    assert curves(metrics).startswith(b"\x89PNG")


def test_a_resumed_run_has_the_same_telemetry(watched, tmp_path):
    lab.train(recipe(7), tmp_path / "run")
    lab.train(recipe(7, 2), tmp_path / "run", resume=True)
    for file in (METRICS, MONITOR):
        assert (tmp_path / "run" / file).read_bytes() == (watched[7].path / file).read_bytes()


def test_a_run_goes_on_as_it_was_watched(watched):
    with pytest.raises(ValueError, match="was started with another monitor"):
        lab.train(recipe(1, 3), watched[7].path, resume=True)


def test_steps_are_not_watched_less_than_never():
    with pytest.raises(ValueError, match="recipe monitor -1: needs a whole number of at least 0"):
        recipe(-1)


def test_fractions_survive_the_text():
    found = Telemetry()
    with engine.monitor() as seen, engine.named("pool.y"):
        engine.divide([[7, 8]], [[3, 3]], 0, Cast.parse("s8 ties_even sat"))
    found.add(0, seen)
    assert Telemetry.parse(str(found)).records["pool.y"].total.error == Fraction(-1, 3) + Fraction(
        1, 3)
    assert Telemetry.parse(str(found)).records["pool.y"].total.high == Fraction(8, 3)


def test_quotients_by_many_divisors_keep_telemetry_short():
    """Their exact errors have denominators that grow with every step."""
    telemetry, rng = Telemetry(), np.random.default_rng(1)
    to = Cast.parse("s16f8 ties_even sat")
    exact = Fraction(0)
    for step in range(40):
        x, divisor = rng.integers(-9999, 9999, (2, 3)), rng.integers(30000, 60000, (2, 3))
        with engine.monitor() as seen:
            codes = engine.divide(x, divisor, 0, to).codes
        exact += sum(code - Fraction(int(a) << 8, int(d)) for code, a, d in
                     zip(codes.ravel().tolist(), x.ravel(), divisor.ravel(), strict=True))
        telemetry.add(step, seen)
    (record,) = telemetry.records.values()
    assert abs(record.total.error - exact) < Fraction(1, 2**50) and exact.denominator > 2**1000
    assert record.total.error.denominator <= 2**64
    assert str(Telemetry.parse(str(telemetry))) == str(telemetry)
