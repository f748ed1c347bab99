"""One recorded training step as vectors: every value an engine computed, derived again.

What the engine says is only compared; the lines are written from `emu.reference`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from emu.golden.units import (
    QuantizerSpec,
    Record,
    lfsr_records,
    lfsr_unit,
    mac_parameters,
    mac_records,
    mac_unit,
    quantizer_records,
    quantizer_unit,
)
from emu.golden.vectors import VectorWriter, vector_set
from emu.number import Cast, Format
from emu.reference import STREAMS, random_operands
from emu.spec import MacSpec, UpdateSpec


@dataclass(frozen=True)
class MacTrace:
    """Every output of one pass of one layer."""

    name: str  # e.g. "fc1.forward"
    mac: MacSpec
    terms: Iterable[tuple[list[int], list[int]]]  # operands of each output, reference.*_terms
    bias: Sequence[int] | None  # one for each output, or None
    results: Sequence[int]  # what the engine computed, one for each output


@dataclass(frozen=True)
class CastTrace:
    """Every element of one cast."""

    name: str
    form: Format  # of the codes
    cast: Cast
    codes: Sequence[int]
    results: Sequence[int]
    rand: Sequence[int] | None = None  # the stochastic operand of each element
    loads: Sequence[int] | None = None  # what its 16 LFSRs were loaded with


@dataclass(frozen=True)
class UpdateTrace:
    """The SGD update of one parameter tensor; lr and mu are codes of their casts."""

    name: str
    spec: UpdateSpec
    lr: int
    mu: int
    weight: Sequence[int]
    momentum: Sequence[int]
    grad: Sequence[int]
    new_weight: Sequence[int]
    new_momentum: Sequence[int]
    rand_momentum: Sequence[int] | None = None
    rand_weight: Sequence[int] | None = None
    loads_momentum: Sequence[int] | None = None
    loads_weight: Sequence[int] | None = None


Trace = MacTrace | CastTrace | UpdateTrace


def write_step(out: Path, traces: Iterable[Trace], about: dict, progress=None) -> Path:
    """Write a step's traces as a vector set, one file for each pass, cast and draw.

    `progress` is called with the name of each file and how many are done. Raises ValueError at
    the first value that differs from the reference; nothing is written then.
    """
    with vector_set(out, about, progress) as writer:
        for trace in traces:
            _WRITERS[type(trace)](writer, trace)
    return Path(out)


def check_traces(traces: Iterable[Trace]) -> None:
    """Raise ValueError, before a step is recorded, for a MAC that no RTL unit can be."""
    for trace in traces:
        if isinstance(trace, MacTrace):
            mac_parameters(trace.mac)


def _write_mac(writer: VectorWriter, trace: MacTrace) -> None:
    unit = mac_unit(trace.mac)
    writer.add(f"mac/{trace.name}.hex", unit, [("step", _mac_steps(trace))])


def _mac_steps(trace: MacTrace) -> Iterator[Record]:
    mask = (1 << trace.mac.acc.format.width) - 1
    biases = [0] * len(trace.results) if trace.bias is None else trace.bias
    for i, ((a, b), bias, got) in enumerate(
            zip(trace.terms, biases, trace.results, strict=True)):
        want = bias & mask  # no terms, no step: the bias stays
        for record in mac_records(trace.mac, a, b, bias):
            yield record
        if a:
            want = record[6]
        if want != got & mask:
            terms = " + ".join(f"{x}*{y}" for x, y in list(zip(a, b, strict=True))[:4])
            more = " + ..." if len(a) > 4 else ""
            raise ValueError(f"{trace.name}[{i}]: {bias} + {terms}{more} = {got} in the engine, "
                             f"{_signed(want, trace.mac.acc.format)} by the reference "
                             f"({len(a)} terms, {trace.mac})")


def _signed(bits: int, form: Format) -> int:
    return bits - (1 << form.width) if bits > form.hi else bits


def _write_cast(writer: VectorWriter, trace: CastTrace) -> None:
    bits = trace.cast.rand_bits
    if trace.loads is not None and len(trace.loads) != STREAMS:
        raise ValueError(f"{trace.name}: {len(trace.loads)} load words; there are {STREAMS} LFSRs")
    if bits and trace.rand is None and trace.loads is not None:
        trace = CastTrace(**{**vars(trace), "rand": random_operands(
            len(trace.codes), bits, list(trace.loads))})
    if bits and trace.rand is None:
        raise ValueError(f"{trace.name}: {trace.cast} needs the random operand of every element; "
                         "give rand or loads")
    if bits and trace.loads is not None:
        _write_draws(writer, trace)
    unit = quantizer_unit(QuantizerSpec(trace.form, trace.cast))
    writer.add(f"quantizer/{trace.name}.hex", unit, [("step", _cast_lines(trace))],
               loads=None if trace.loads is None else list(trace.loads))


def _cast_lines(trace: CastTrace) -> Iterator[Record]:
    spec = QuantizerSpec(trace.form, trace.cast)
    form = trace.cast.format
    shift, mask = spec.shift, (1 << form.width) - 1
    rands = trace.rand if trace.cast.rand_bits else [0] * len(trace.codes)
    cases = ((_inside(code, trace), shift, rand)
             for code, rand in zip(trace.codes, rands, strict=True))
    lines = quantizer_records(spec, cases)
    for i, (record, got) in enumerate(zip(lines, trace.results, strict=True)):
        if record[3] != got & mask:
            raise ValueError(f"{trace.name}[{i}]: {trace.codes[i]} ({trace.form}) to {trace.cast}"
                             f"{f' with rand {record[2]}' if trace.cast.rand_bits else ''} = {got} "
                             f"in the engine, {_signed(record[3], form)} by the reference")
        yield record


def _inside(code: int, trace: CastTrace) -> int:
    if not trace.form.lo <= code <= trace.form.hi:
        raise ValueError(f"{trace.name}: code {code} is outside {trace.form}, whose codes go from "
                         f"{trace.form.lo} to {trace.form.hi}")
    return code


def _write_draws(writer: VectorWriter, trace: CastTrace) -> None:
    """The operands once more as draws, stream after stream from one LFSR."""
    bits, count = trace.cast.rand_bits, len(trace.codes)
    loads = list(trace.loads)
    for i, (got, want) in enumerate(zip(trace.rand, random_operands(count, bits, loads),
                                        strict=True)):
        if got != want:
            raise ValueError(f"{trace.name}[{i}]: rand {got} in the engine, {want} drawn from "
                             f"load word {loads[i % STREAMS]} by the reference")
    runs = [(word, len(range(stream, count, STREAMS))) for stream, word in enumerate(loads)]
    writer.add(f"lfsr/{trace.name}.hex", lfsr_unit(bits), [("step", lfsr_records(bits, runs))],
               loads=loads)


def _write_update(writer: VectorWriter, trace: UpdateTrace) -> None:
    """As hardware would: a product and an exact sum on the mac, then the cast, twice."""
    spec, lr = trace.spec, trace.spec.lr.format
    # -lr needs one more bit: it is at least -hi, and 2^(width-1) where lr is the lowest code.
    minus_lr = Format(lr.width + 1, lr.frac)
    for part, addends, addend, codes, factor, form, cast, results, rand, loads in (
            ("momentum", trace.grad, spec.grad, trace.momentum, trace.mu, spec.mu.format,
             spec.momentum, trace.new_momentum, trace.rand_momentum, trace.loads_momentum),
            ("weight", trace.weight, spec.weight, trace.new_momentum, -trace.lr, minus_lr,
             spec.weight, trace.new_weight, trace.rand_weight, trace.loads_weight)):
        name = f"{trace.name}.{part}"
        mac, align = _exact_mac(spec.momentum.format, form, addend.format)
        bias = [x << align for x in addends]
        product = mac.product.format.frac
        sums = [x + (code * factor << product)
                for x, code in zip(bias, codes, strict=True)]
        terms = (([code], [factor]) for code in codes)
        _write_mac(writer, MacTrace(name, mac, terms, bias, sums))
        frac = form.frac + spec.momentum.format.frac + product
        _write_cast(writer, CastTrace(name, mac.acc.format.with_frac(frac), cast, sums, results,
                                      rand, loads))


def _exact_mac(a: Format, b: Format, addend: Format) -> tuple[MacSpec, int]:
    """A MAC that adds one product to an addend and loses nothing; the addend's left shift."""
    finer = max(a.frac + b.frac, addend.frac)
    zeros, align = finer - a.frac - b.frac, finer - addend.frac
    corners = [x * y << zeros for x in (a.lo, a.hi) for y in (b.lo, b.hi)]
    total = Format.holding(min(corners) + (addend.lo << align),
                           max(corners) + (addend.hi << align), zeros)
    # the bias is a code of the accumulator: signed where the addend is
    acc = Cast(Format(max(total.width, 2), zeros, total.signed))
    return MacSpec(a.with_frac(0), b.with_frac(0), acc, Cast(Format(64, zeros))), align


_WRITERS = {MacTrace: _write_mac, CastTrace: _write_cast, UpdateTrace: _write_update}
