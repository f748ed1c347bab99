"""What the hardware did in the watched steps of a training, joined over them.

As text it is JSON, a line for every operation: the totals, the numbers of each channel, and the
first overflow with its operands. Fractions are texts such as "-3/8"; those of quotients by many
divisors, which would take ever more digits, are rounded to 2^-64 of a step.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fractions import Fraction

from emu.engine import CastAccount, First, MacAccount, Record, RegisterAccount
from emu.kind import AnyCast
from emu.rule import parse_cast
from emu.spec import MacSpec

STAGES = {"product": CastAccount, "acc": RegisterAccount, "spill": CastAccount,
          "outer": RegisterAccount}
FINEST = 1 << 64  # the greatest denominator
LEAST_BIAS = Fraction(1, 20)  # of a step: what `casts` shows although nothing was out of range


class Telemetry:
    """A record of every operation, joined over `watched` of `steps` training steps."""

    def __init__(self):
        self.records: dict[str, Record] = {}
        self.first_steps: dict[str, int] = {}  # the training step of each record's first overflow
        self.watched = self.steps = 0

    def add(self, step: int, seen: list[Record] | None) -> None:
        """One training step, and its records if it was watched."""
        self.steps += 1
        self.watched += seen is not None
        for record in seen or []:
            self._join(record, step)

    def __iadd__(self, other: Telemetry) -> Telemetry:
        self.watched, self.steps = self.watched + other.watched, self.steps + other.steps
        for label, record in other.records.items():
            self._join(record, other.first_steps.get(label))
        return self

    def _join(self, record: Record, step: int | None) -> None:
        known = self.records.get(record.label)
        if record.first and not (known and known.first):
            self.first_steps[record.label] = step
        if known and len(known.channels) != len(record.channels):
            # The rows of a layer norm are its channels, and another batch has other rows.
            known, record = (replace(each, channels=(each.total,)) for each in (known, record))
        self.records[record.label] = _limited(known + record if known else record)

    def counts(self) -> dict[str, dict[str, int]]:
        """The whole numbers of every operation's totals."""
        return {label: {name: number for name, number in _numbers(record.total).items()
                        if type(number) is int} for label, record in self.records.items()}

    def __str__(self) -> str:
        lines = (f"{json.dumps(label)}: {json.dumps(_as_dict(record, self.first_steps.get(label)))}"
                 for label, record in self.records.items())
        return (f'{{"watched": {self.watched}, "steps": {self.steps}, "operations": {{\n'
                + ",\n".join(lines) + "\n}}\n")

    @classmethod
    def parse(cls, text: str) -> Telemetry:
        """The telemetry of a text."""
        items, found = json.loads(text), cls()
        found.watched, found.steps = items["watched"], items["steps"]
        for label, item in items["operations"].items():
            found.records[label] = _parse(label, item)
            if item["first"]:
                found.first_steps[label] = item["first"]["training_step"]
        return found

    def accumulators(self) -> Iterator[tuple[str, ...]]:
        """A row for each MAC: its name, steps, overflowing steps, transient, persistent, bits."""
        for label, record in self._by_layer():
            total, spec = record.total, record.spec
            if isinstance(total, MacAccount):
                pairs = [(total.acc, spec.acc), (total.outer, spec.outer)]
                bits = " / ".join(_bits(account, account.exact_bits, to)
                                  for account, to in pairs if account)
                yield (label, *(f"{number:,}" for number in (
                    total.steps, total.overflowing_steps, total.transient, total.persistent)), bits)

    def casts(self) -> Iterator[tuple[str, ...]]:
        """A row for each cast, those inside MACs too: its name, values, out of range, bits, bias.

        Left out are those with nothing out of range and a bias below `LEAST_BIAS` steps.
        """
        for label, record in self._by_layer():
            total, spec = record.total, record.spec
            found = ([(label, total, spec)] if isinstance(total, CastAccount) else
                     [(f"{label}.product", total.product, spec.product),
                      (f"{label}.spill", total.spill, spec.outer)])
            for name, account, to in found:
                if account and (account.overflows or abs(account.bias) >= LEAST_BIAS):
                    yield (name, f"{account.values:,}", f"{account.overflows:,}",
                           _bits(account, account.bits, to), f"{float(account.bias):+.4f}")

    def _by_layer(self) -> list[tuple[str, Record]]:
        """The records by layer, as they were first met."""
        order = list(dict.fromkeys(label.split(".")[0] for label in self.records))
        return sorted(self.records.items(), key=lambda item: order.index(item[0].split(".")[0]))


def _bits(account: CastAccount | RegisterAccount, magnitude: int, to: AnyCast) -> str:
    """The width that would have been enough, and the one that there is."""
    enough, width = magnitude + to.format.signed, to.format.width
    return f"{max(enough, width + 1) if account.overflows else enough} of {width}"


def _numbers(account) -> dict[str, int | Fraction]:
    """The numbers of an account by their dotted names."""
    found = {}
    for name, value in vars(account).items():
        if name not in STAGES:
            found[name] = value
        elif value is not None:
            found |= {f"{name}.{key}": number for key, number in vars(value).items()}
    return found


def _limited(record: Record) -> Record:
    """The record with fractions of denominators up to 2^64."""
    if isinstance(record.spec, MacSpec):
        return record
    return replace(record, channels=tuple(
        replace(account, **{name: Fraction(round(getattr(account, name) * FINEST), FINEST)
                            for name in ("low", "high", "error")
                            if getattr(account, name).denominator > FINEST})
        for account in record.channels))


def _plain(value):
    return str(value) if isinstance(value, Fraction) else value


def _exact(value):
    return Fraction(value) if isinstance(value, str) else value


def _as_dict(record: Record, step: int | None) -> dict:
    channels = [_numbers(channel) for channel in record.channels]
    first = record.first and {**vars(record.first), "value": str(record.first.value),
                              "training_step": step}
    return {"operation": record.operation, "spec": str(record.spec), "calls": record.calls,
            "total": {name: _plain(value) for name, value in _numbers(record.total).items()},
            "first": first,
            "channels": {name: [_plain(channel[name]) for channel in channels]
                         for name in channels[0]}}


def _parse(label: str, item: Mapping) -> Record:
    names, columns = list(item["channels"]), item["channels"].values()
    channels = tuple(_parse_account(dict(zip(names, map(_exact, row), strict=True)))
                     for row in zip(*columns, strict=True))
    parse = MacSpec.parse if isinstance(channels[0], MacAccount) else parse_cast
    first = item["first"] and First(**{
        name: tuple(value) if isinstance(value, list) else _exact(value) if name == "value"
        else value for name, value in item["first"].items() if name != "training_step"})
    return Record(item["operation"], label, parse(item["spec"]), channels, first,
                  item["calls"])


def _parse_account(numbers: Mapping) -> MacAccount | CastAccount:
    if "steps" not in numbers:
        return CastAccount(**numbers)
    stages = {stage: {name.partition(".")[2]: number for name, number in numbers.items()
                      if name.startswith(f"{stage}.")} for stage in STAGES}
    return MacAccount(**{name: number for name, number in numbers.items() if "." not in name},
                      **{stage: STAGES[stage](**part) for stage, part in stages.items() if part})
