"""Records of what the hardware did, against the accounts of the definition."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from engine_cases import accounted, filled, joined, numbers, operands, watched
from hypothesis import given
from hypothesis import strategies as st
from strategies import DETERMINISTIC, casts, codes, examples, macs, updates

import emu
from emu import Cast, Format, MacSpec, Overflow, Rounding, engine, reference

SAT = MacSpec.parse("{a: s4, b: s4, acc: s7 sat}")
ONE_BYTE = MacSpec.parse("{a: s8, b: s8, acc: s8 sat}")


def defined(a, b, mac, bias=None, axis=1):
    """What the definition gives for a matmul: results, channels, first."""
    biases = [0] * b.shape[1] if bias is None else [int(code) for code in bias]
    return accounted(reference.matmul_terms(a.tolist(), b.tolist()), mac, biases * len(a),
                     (a.shape[0], b.shape[1]), axis)


def check(a, b, mac, bias=None):
    """Results, accounts and first overflow of a watched matmul, and that watching moves no bit."""
    want = defined(a, b, mac, bias)
    assert watched(engine.matmul, a, b, mac, bias) == want, str(mac)
    assert engine.matmul(a, b, mac, bias).reshape(-1).tolist() == want[0], str(mac)


def every(form: str, length: int) -> np.ndarray:
    """All sequences of codes of a format, as rows."""
    of = Format.parse(form)
    return np.array(list(product(range(of.lo, of.hi + 1), repeat=length)))


@pytest.mark.parametrize("overflow", Overflow)
@pytest.mark.parametrize(("a", "b", "length"), [("s3", "s3", 2), ("s2", "s2", 3), ("s2", "u1", 4)])
def test_every_sequence_of_small_operands_agrees(a, b, length, overflow):
    rows, columns = every(a, length)[::2], every(b, length)[::7].T
    for lanes in range(1, length + 1):
        mac = MacSpec(Format.parse(a), Format.parse(b), Cast(Format(3), 0, overflow), lanes=lanes)
        check(rows, columns, mac)


@pytest.mark.parametrize("rounding", DETERMINISTIC)
def test_every_rounded_product_agrees(rounding):
    rows, columns = every("s3", 2)[::5], every("s3", 2)[::11].T
    for overflow, frac in product(Overflow, (-3, -1, 1)):
        mac = MacSpec(Format(3), Format(3), Cast(Format(3, frac), 0, overflow),
                      Cast(Format(2, frac), rounding, overflow))
        check(rows, columns, mac)


@pytest.mark.parametrize("rounding", DETERMINISTIC)
@pytest.mark.parametrize("reload", [False, True])
def test_every_rounding_between_two_accumulators_agrees(reload, rounding):
    rows, columns = every("s3", 2)[::5], every("s3", 2)[::11].T
    for overflow in Overflow:
        mac = MacSpec(Format(3), Format(3), Cast(Format(4), 0, overflow), tile=1, reload=reload,
                      outer=Cast(Format(3, -1), rounding, overflow))
        check(rows, columns, mac)


NARROW = macs(operands=(1, 8), products=(1, 20), accs=(2, 12), fracs=(-8, 8), lanes=4)
WIDE = macs(operands=(12, 32), products=(16, 64), accs=(24, 62), fracs=(-8, 8), lanes=4)
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 3))


def drawn(mac, shape, seed):
    """Operands and bias (a, b, bias) of a MAC."""
    M, K, N = shape
    return (filled((M, K), mac.a, seed), filled((K, N), mac.b, seed + 1),
            filled((N,), mac.result.format, seed + 2))


@examples(60)
@given(NARROW | WIDE, SHAPES, st.integers(0, 99))
def test_every_mac_agrees(mac, shape, seed):
    a, b, bias = drawn(mac, shape, seed)
    check(a, b, mac, bias)


@pytest.mark.parametrize("overflow", Overflow)
@pytest.mark.parametrize("text", [
    "{a: s32, b: s32, acc: s62}", "{a: u32, b: s31, acc: s62}", "{a: u31, b: u31, acc: u62}",
    "{a: s31, b: s31, acc: s62, lanes: 2}", "{a: s32, b: s32, product: s62f-2 ties_even sat, "
    "acc: s62f-2}", "{a: s32, b: s30, product: s62f2 to_neg sat, acc: s62f2}",
    "{a: u32, b: u31, product: u30f-34 to_pos sat, acc: s40f-34}",
    "{a: s32, b: s32, acc: s62, tile: 2, outer: s62f-1 ties_away}",
    "{a: s32, b: s30, acc: s60, tile: 2, outer: s58f-2 ties_away, reload: true}",
])
@pytest.mark.parametrize("times", [1, 9])
def test_exact_sums_beyond_int64_agree(text, overflow, times):
    mac = MacSpec.parse(text)
    mac = MacSpec(mac.a, mac.b, Cast(mac.acc.format, 0, overflow), mac.product, mac.lanes, 1,
                  mac.tile, mac.outer, mac.reload)
    rows, columns = every("s2", 2), np.array([[mac.b.lo, mac.b.hi]] * 2 * times)
    a = np.select([rows == -2, rows == -1, rows == 0], [mac.a.lo, mac.a.lo + 1, 1], mac.a.hi)
    for bias in (mac.result.format.lo, 0, mac.result.format.hi):
        check(np.tile(a, times), columns, mac, [bias] * 2)


@pytest.mark.parametrize("length", [1, 2, 3, 2**20])
def test_the_least_products_of_32_bits_add_up(length):
    lo = -2**31
    with emu.monitor() as seen:
        out = emu.matmul(np.full((1, length), lo), np.full((length, 1), lo),
                         MacSpec.parse("{a: s32, b: s32, acc: s62 sat}"))
    acc = seen[0].channels[0].acc
    assert out.tolist() == [[2**61 - 1]]
    assert (acc.high, acc.exact_high) == (2**62 + (2**61 - 1) * (length > 1), length * 2**62)
    assert acc.exact_bits == 63 + (length - 1).bit_length() - (length == 3)


LEVELS = [
    str(SAT), "{a: s4, b: s4, acc: s6, lanes: 2}", "{a: s4, b: s4, acc: s20}",
    "{a: s4, b: s4, acc: s6 sat, tile: 2, outer: s7f-1 ties_even}",
    "{a: s4, b: s4, acc: s6 sat, tile: 2, outer: s5f-1 ties_even sat, reload: true}"]


@pytest.mark.parametrize("shape", [(2, 3, 0), (1, 1, 1), (9, 5, 3), (3, 2, 129), (1030, 1, 1)])
@pytest.mark.parametrize("text", LEVELS)
def test_every_shape_agrees(text, shape):
    mac = MacSpec.parse(text)
    a, b, bias = drawn(mac, shape, 0)
    check(a, b, mac, bias)


@pytest.mark.parametrize("seed", range(4))
def test_the_first_overflow_is_the_first_in_the_result(seed):
    a, b, _ = drawn(SAT, (60, 3, 4), seed)
    check(a, b, SAT)


@pytest.mark.parametrize("text", LEVELS)
def test_no_outputs_and_no_terms_have_accounts(text):
    mac = MacSpec.parse(text)
    _, channels, first = watched(engine.matmul, np.ones((0, 3), int), np.ones((3, 2), int), mac)
    assert [any(channel.values()) for channel in channels] == [False, False]
    lo, hi = mac.result.format.lo, mac.result.format.hi
    got = watched(engine.matmul, np.ones((2, 0), int), np.ones((0, 3), int), mac, [lo, 0, hi])
    assert got == accounted([([], [])] * 6, mac, [lo, 0, hi] * 2, (2, 3), 1)
    assert first is got[2] is None


def test_rows_may_be_the_channels():
    a, b, _ = drawn(SAT, (3, 9, 4), 0)

    def of_rows():
        with engine.named("place", 0):
            return engine.matmul(a, b, SAT)

    assert watched(of_rows) == defined(a, b, SAT, axis=0)


def test_a_channel_is_the_output_of_a_convolution():
    x, w = filled((2, 4, 3, 4), SAT.a, 0), filled((4, 2, 2, 2), SAT.b, 1)
    terms = reference.conv2d_terms(x.tolist(), w.tolist(), groups=2)
    want = accounted(terms, SAT, [0] * 48, (2, 4, 2, 3), 1)
    assert watched(engine.conv2d, x, w, SAT, groups=2) == want
    assert len({channel["acc.overflows"] for channel in want[1]}) > 1


EVERY_CAST = [Cast(Format(width, frac, signed), rounding, overflow)
              for width, frac, signed, rounding, overflow in product(
                  (1, 3), (-1, 1), (False, True), DETERMINISTIC, Overflow)
              if (width, signed, overflow) != (1, True, Overflow.SAT_SYM)]


def watched_casts(values, to, accounts):
    """(codes, channels, first) of the definition, one channel, from an account for each value."""
    first = next(((index,) for index, account in enumerate(accounts) if account.overflows), None)
    return joined(map(numbers, accounts)), first and (first, values[first[0]])


def one_channel(seen):
    """The numbers of a record of one channel, and (output, value) of its first overflow."""
    record, = seen
    channel, = record.channels
    first = record.first and (record.first.output, record.first.a[0])
    return numbers(channel), first


@pytest.mark.parametrize("frac", [-1, 1, 3])
def test_every_small_cast_agrees(frac):
    values = list(range(-18, 18))
    for to in EVERY_CAST:
        with engine.monitor() as seen:
            engine.cast(values, frac, to)
        want = watched_casts(values, to, [reference.watch_cast(x, frac, to) for x in values])
        assert one_channel(seen) == want, str(to)


@examples(60)
@given(st.data(), casts((1, 63)), st.integers(-520, 520))
def test_every_cast_agrees(data, to, frac):
    values = data.draw(st.lists(codes(Format(64)), min_size=1, max_size=9))
    rand = data.draw(operands(to, len(values)))
    with engine.monitor() as seen:
        engine.cast(values, frac, to, rand if to.rand_bits else None)
    want = watched_casts(values, to, [reference.watch_cast(x, frac, to, r)
                                      for x, r in zip(values, rand, strict=True)])
    assert one_channel(seen) == want


def test_the_sums_of_a_cast_may_leave_int64():
    to, values = Cast.parse("s62f-2 to_neg sat"), [2**63 - 1] * 50
    with engine.monitor() as seen:
        engine.cast(values, 0, to)
    assert seen[0].total.error == 50 * Fraction(-3, 4)
    assert seen[0].total.bias == Fraction(-3, 4)


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_a_cast_has_a_channel_for_each_index_of_an_axis(axis):
    x, to = filled((3, 4, 5), Format(8), 0), Cast.parse("s4f-2 ties_even sat")
    with engine.monitor() as seen, engine.named("x", axis):
        engine.cast(x, 0, to)
    parts = [x] if axis is None else np.moveaxis(x, axis, 0)
    want = [joined(numbers(reference.watch_cast(code, 0, to)) for code in part.ravel().tolist())
            for part in parts]
    assert [numbers(channel) for channel in seen[0].channels] == want
    index = tuple(np.argwhere(~engine.cast_full(x, 0, to).inside)[0].tolist())
    assert (seen[0].first.output, seen[0].first.a) == (index, (x[index],))
    assert seen[0].first.value == Fraction(int(x[index]), 4)


@pytest.mark.parametrize("rounding", DETERMINISTIC)
def test_every_quotient_agrees(rounding):
    x, divisor = filled((3, 2, 5), Format(8), 0), np.array([[1, 2, 3, 5, 6], [7, 9, 4, 3, 2]])
    to = Cast(Format(4, 1), rounding, Overflow.SAT)
    with engine.monitor() as seen, engine.named("y", 0):
        engine.divide(x, divisor, 2, to)
    want = [joined(numbers(reference.watch_divide(code, by, 2, to))
                   for code, by in zip(plane.ravel().tolist(), divisor.ravel().tolist(),
                                       strict=True)) for plane in x]
    assert seen[0].operation == "divide"
    assert [numbers(channel) for channel in seen[0].channels] == want


@pytest.mark.parametrize("operation", [lambda x: engine.cast(x, 0, Cast.parse("s4")),
                                       lambda x: engine.divide(x, [[3]], 0, Cast.parse("s4"))])
def test_casts_of_nothing_have_accounts(operation):
    with engine.monitor() as seen, engine.named("x", 1):
        operation(np.ones((0, 2, 1, 1), int))
    assert [any(numbers(channel).values()) for channel in seen[0].channels] == [False, False]


@examples(40)
@given(st.data(), updates() | updates(24), st.integers(0, 99))
def test_a_watched_update_is_two_casts(data, spec, seed):
    lr, mu = (data.draw(codes(cast.format)) for cast in (spec.lr, spec.mu))
    rands = [data.draw(operands(cast, 6)) for cast in (spec.momentum, spec.weight)]
    weight, momentum, grad = (filled((2, 3), getattr(spec, name).format, seed + i)
                              for i, name in enumerate(("weight", "momentum", "grad")))
    rands = [np.reshape(rand, (2, 3)) for rand in rands]
    want = engine.sgd(weight, momentum, grad, lr, mu, spec, *rands)
    with engine.monitor() as seen, engine.named("fc"):
        got = engine.sgd(weight, momentum, grad, lr, mu, spec, *rands)
    assert [np.array(part).tolist() for part in got] == [np.array(part).tolist() for part in want]
    assert [record.label for record in seen] == ["fc.momentum", "fc.weight"]
    assert [record.total.overflows for record in seen] == [got.outside_momentum,
                                                           got.outside_weight]
    assert [len(record.channels) for record in seen] == [2, 2]


def test_a_step_of_the_update_has_its_own_bias():
    spec = emu.UpdateSpec.parse({"weight": "s8f0 to_neg sat", "momentum": "s8f2 to_neg sat",
                                 "grad": "s8f3", "lr": "u4f1", "mu": "u1f0"})
    with emu.monitor() as seen:
        engine.sgd([[5], [6]], [[0], [0]], [[3], [-4]], 3, 0, spec)
    # momentum = floor(3/8 * 4) = 1, floor(-4/8 * 4) = -2; weight = 5 - 3/8 and 6 + 6/8.
    assert [record.total.error for record in seen] == [Fraction(-1, 2), Fraction(-5, 8)
                                                       - Fraction(3, 4)]


def test_nothing_is_recorded_outside():
    with emu.monitor() as seen:
        pass
    emu.cast([1], 0, Cast.parse("s4"))
    assert (seen, engine.watching()) == ([], None)


def test_an_inner_monitor_takes_what_is_inside():
    with emu.monitor() as outer:
        with emu.monitor() as inner:
            emu.cast([1], 0, Cast.parse("s4"))
        emu.cast([1], 0, Cast.parse("s5"))
    assert [str(record.spec.format) for record in inner + outer] == ["s4f0", "s5f0"]


def test_an_error_ends_the_watch():
    with pytest.raises(ValueError, match="outside s4f0"), emu.monitor(), engine.named("x"):
        emu.matmul([[8]], [[1]], SAT)
    assert engine.watching() is None


def test_labels_follow_one_another():
    with emu.monitor() as seen, engine.named("net"), engine.named("fc"):
        emu.cast([1], 0, Cast.parse("s4"))
        with engine.named("", 0):
            emu.cast([[1]] * 3, 0, Cast.parse("s4"))
    assert [(r.label, len(r.channels)) for r in seen] == [("net.fc", 1), ("net.fc", 3)]


def test_records_of_one_place_join():
    parts = [drawn(SAT, (2, 9, 3), seed)[:2] for seed in range(4)]
    records = []
    for a, b in parts:
        with emu.monitor() as seen:
            emu.matmul(a, b, SAT)
        records += seen
    whole = sum(records[1:], records[0])
    want = [joined(channel) for channel in zip(*(
        defined(a, b, SAT)[1] for a, b in parts), strict=True)]
    assert [numbers(channel) for channel in whole.channels] == want
    assert numbers(whole.total) == joined(want)
    assert (whole.calls, whole.total.outputs) == (4, 24)
    assert whole.first == next(record.first for record in records if record.first)


def test_records_of_other_channels_do_not_join():
    with emu.monitor() as seen:
        for columns in (1, 2):
            emu.matmul([[1]], [[1] * columns], SAT)
    with pytest.raises(ValueError, match="records of 1 and 2 channels"):
        seen[0] + seen[1]


@pytest.mark.parametrize(("low", "high", "bits"), [
    (0, 0, 0), (0, 1, 1), (-1, 0, 0), (-1, 1, 1), (-128, 127, 7), (-129, 0, 8), (0, 128, 8),
    (-2**62, 2**62 - 1, 62), (0, 2**70, 71)])
def test_bits_are_those_of_the_format_without_its_sign(low, high, bits):
    account = engine.RegisterAccount(low=low, high=high, exact_low=low, exact_high=high)
    assert (account.bits, account.exact_bits) == (bits, bits)
    assert engine.CastAccount(low=Fraction(low), high=high + Fraction(1, 2)).bits == bits


def test_a_wider_accumulator_by_exact_bits_does_not_overflow():
    a, b, _ = drawn(ONE_BYTE, (6, 40, 5), 0)
    with emu.monitor() as seen:
        emu.matmul(a, b, ONE_BYTE)
    for less in (0, 1):
        width = seen[0].total.acc.exact_bits + 1 - less
        with emu.monitor() as again:
            emu.matmul(a, b, MacSpec.parse(f"{{a: s8, b: s8, acc: s{width} sat}}"))
        assert (again[0].total.acc.overflows > 0) is bool(less)


def test_a_record_reads_as_a_sentence():
    with emu.monitor() as seen:
        emu.matmul([[100, 100, -100], [100, 100, 100]], np.ones((3, 1), int), ONE_BYTE)
        emu.cast([1, 2], 1, Cast.parse("s4"))
    assert [str(record) for record in seen] == [
        "matmul {a: s8f0, b: s8f0, acc: s8f0 to_neg sat}: 2 outputs, 1 overflowed transiently and "
        "1 persistently; 6 steps, 3 overflowed; first output [0, 0], step 1, a [100], b [1], "
        "register 100: acc 200",
        "cast s4f0 to_neg wrap: 2 values, 0 out of range, bias -0.250 steps"]


@pytest.mark.parametrize("mode", [mode for mode in Rounding if mode != Rounding.STOCHASTIC])
def test_the_bias_of_a_rounding_is_that_of_its_ties_and_rests(mode):
    # Over all codes of 8 fraction bits, 4 of which are dropped: a whole period of every mode.
    with emu.monitor() as seen:
        emu.cast(np.arange(-128, 128), 8, Cast(Format(8, 4), mode))
    want = {"TO_NEG": Fraction(-15, 32), "TO_POS": Fraction(15, 32),
            "TIES_NEG": Fraction(-1, 32), "TIES_POS": Fraction(1, 32)}.get(mode.name, 0)
    assert seen[0].total.bias == want
