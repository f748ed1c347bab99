"""What the engine's tests share: seeded arrays of codes, and the definition's results as lists."""

from collections.abc import Iterable
from fractions import Fraction

import numpy as np
from hypothesis import strategies as st
from strategies import casts, codes, formats

from emu import Cast, Format, MacSpec, engine, reference

U64 = Format(64, 0, signed=False)  # the one format that int64 does not hold
held_formats = formats((1, 64), (0, 0)).filter(lambda form: form != U64)
held_casts = casts((1, 64), (0, 0)).filter(lambda to: to.format != U64)


def operands(to: Cast, count: int) -> st.SearchStrategy[list[int]]:
    """The random operands of a cast, one for each element; 0 where the cast draws none."""
    one = codes(Format(to.rand_bits, 0, signed=False)) if to.rand_bits else st.just(0)
    return st.lists(one, min_size=count, max_size=count)


def filled(shape: tuple, form: Format, seed: int) -> np.ndarray:
    """Seeded codes of a format; every fourth one is a bound, so that sums drift and overflow."""
    generator = np.random.default_rng(seed)
    inner = generator.integers(form.lo, form.hi, shape, np.int64, endpoint=True)
    bounds = np.where(generator.random(shape) < 0.7, form.hi, form.lo)
    return np.where(generator.random(shape) < 0.25, bounds, inner)


def stepped(terms: Iterable[tuple[list[int], list[int]]], mac: MacSpec, biases: Iterable[int]
            ) -> list[int]:
    """The results of the definition, one for each output."""
    return [reference.dot(a, b, mac, bias)
            for (a, b), bias in zip(terms, biases, strict=True)]


def numbers(account) -> dict[str, int | Fraction]:
    """The numbers of an account of the engine or of the definition, by their dotted names."""
    found = {}
    for name in getattr(account, "_fields", None) or vars(account):
        value = getattr(account, name)
        if hasattr(value, "values"):
            found |= {f"{name}.{key}": number for key, number in numbers(value).items()}
        elif value is not None and name not in ("first", "outputs"):
            found[name] = value
    return found


def joined(accounts: Iterable[dict]) -> dict:
    """Counts added up; extremes joined by their names."""
    total = {}
    for account in accounts:
        for name, number in account.items():
            join = (min if name.endswith("low") else max if name.endswith("high") else
                    lambda x, y: x + y)
            total[name] = join(total.get(name, 0), number)
    return total


def accounted(terms, mac: MacSpec, biases: Iterable[int], shape: tuple, axis: int) -> tuple:
    """(results, numbers of each channel, first overflow) of the definition.

    `terms` and `biases` are of each output of `shape`, row-major; `axis` holds the channels.
    """
    results, channels, first = [], [[] for _ in range(shape[axis])], None
    for index, (a, b), bias in zip(np.ndindex(shape), terms, biases, strict=True):
        account = reference.watch_dot(a, b, mac, bias)
        results.append(reference.dot(a, b, mac, bias))
        channels[index[axis]].append(numbers(account))
        if first is None and account.first is not None:
            stage, step, register, value = account.first[:4]
            part = slice(step * mac.lanes, (step + 1) * mac.lanes)
            first = index, stage, step, tuple(a[part]), tuple(b[part]), register, value
    return results, [joined(channel) for channel in channels], first


def watched(operation, *arguments, **options) -> tuple:
    """(results, numbers of each channel, first overflow) of a watched operation of the engine."""
    with engine.monitor() as seen:
        out = operation(*arguments, **options)
    record, = seen
    return (out.reshape(-1).tolist(), [numbers(channel) for channel in record.channels],
            record.first and tuple(vars(record.first).values()))
