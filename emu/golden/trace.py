"""One recorded training step as vectors: every value an engine computed, derived again.

What the engine says is only compared; the lines are written from `emu.reference`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from emu.golden.flagged import FlagQuantizerSpec, flag_records, flag_unit
from emu.golden.units import (
    QuantizerSpec,
    Record,
    Unit,
    lfsr_records,
    lfsr_unit,
    mac_parameters,
    mac_records,
    mac_unit,
    quantizer_records,
    quantizer_unit,
)
from emu.golden.update import is_whole, update_records, update_unit
from emu.golden.vectors import VectorWriter, vector_set
from emu.kind import AnyCast, FlagCast
from emu.number import Cast, Format
from emu.reference import STREAMS, cast, random_operands
from emu.spec import ONE, MacSpec
from emu.update import BufferSpec, UpdateSpec


@dataclass(frozen=True)
class MacTrace:
    """Every output of one pass of one layer."""

    name: str  # e.g. "fc1.forward"
    mac: MacSpec
    terms: Iterable[tuple[list[int], list[int]]]  # operands of each output, reference.*_terms
    bias: Sequence[int] | None  # one for each output, or None
    results: Sequence[int]  # what the engine computed, one for each output
    axes: dict[str, list] | None = None  # of "sums" and "terms": (name, size), slowest first


@dataclass(frozen=True)
class CastTrace:
    """Every element of one cast."""

    name: str
    form: Format  # of the codes
    cast: AnyCast
    codes: Sequence[int]
    results: Sequence[int]
    rand: Sequence[int] | None = None  # the stochastic operand of each element
    loads: Sequence[int] | None = None  # what its 16 LFSRs were loaded with
    made: str | None = None  # the formula of codes that no unit computes


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
    decay: int = 0  # a code of the spec's decay or shrink
    rand_nesterov: Sequence[int] | None = None
    loads_nesterov: Sequence[int] | None = None


@dataclass(frozen=True)
class BufferTrace:
    """The update of one parameter tensor through a gradient buffer; the learning rate is 2^-shift.
    """

    name: str
    spec: BufferSpec
    shift: int
    weight: Sequence[int]
    buffer: Sequence[int]
    grad: Sequence[int]
    new_weight: Sequence[int]
    new_buffer: Sequence[int]
    rand: Sequence[int] | None = None
    loads: Sequence[int] | None = None


Trace = MacTrace | CastTrace | UpdateTrace | BufferTrace


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
    writer.add(f"mac/{trace.name}.hex", unit, [("step", _mac_steps(trace))], axes=trace.axes)


def _mac_steps(trace: MacTrace) -> Iterator[Record]:
    mask = (1 << trace.mac.result.format.width) - 1
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
                             f"{_signed(want, trace.mac.result.format)} by the reference "
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
    unit = _cast_unit(trace)
    writer.add(f"{unit.module}/{trace.name}.hex", unit, [("step", _cast_lines(trace, unit))],
               loads=None if trace.loads is None else list(trace.loads),
               made=None if trace.made is None else {"value_i": trace.made})


def _cast_unit(trace: CastTrace) -> Unit:
    """The quantizer, or flag_quantizer, of a cast."""
    if isinstance(trace.cast, FlagCast):
        return flag_unit(FlagQuantizerSpec(trace.form, trace.cast))
    if not isinstance(trace.cast, Cast):
        raise ValueError(f"{trace.name}: no RTL unit casts to {trace.cast}; use a plain cast that "
                         "saturates, or a flagged one")
    return quantizer_unit(QuantizerSpec(trace.form, trace.cast))


def _cast_lines(trace: CastTrace, unit: Unit) -> Iterator[Record]:
    form, names = trace.cast.format, [field.name for field in unit.fields]
    flagged = isinstance(trace.cast, FlagCast)
    result = names.index("operand_o" if flagged else "code_o")
    shift = (unit.source.coarse if flagged else unit.source).shift
    mask = (1 << form.width) - 1
    rands = trace.rand if trace.cast.rand_bits else [0] * len(trace.codes)
    cases = ((_inside(code, trace), shift, rand)
             for code, rand in zip(trace.codes, rands, strict=True))
    lines = (flag_records if flagged else quantizer_records)(unit.source, cases)
    for i, (record, got) in enumerate(zip(lines, trace.results, strict=True)):
        if record[result] != got & mask:
            raise ValueError(f"{trace.name}[{i}]: {trace.codes[i]} ({trace.form}) to {trace.cast}"
                             f"{f' with rand {record[2]}' if trace.cast.rand_bits else ''} = {got} "
                             f"in the engine, {_signed(record[result], form)} by the reference")
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
    """As hardware would: products and exact sums on the mac, a cast at the end of each sum."""
    spec, name = trace.spec, trace.name
    weight = _Codes(trace.weight, spec.weight.format)
    gradient = _Codes(trace.grad, spec.grad.format)
    if spec.decay is not None:
        gradient = _add_product(writer, f"{name}.decay", gradient, weight, trace.decay,
                                spec.decay.format)
    total = _add_product(writer, f"{name}.momentum", gradient,
                         _Codes(trace.momentum, spec.momentum.format), trace.mu, spec.mu.format)
    _write_cast(writer, CastTrace(f"{name}.momentum", total.form, spec.momentum, total.codes,
                                  trace.new_momentum, trace.rand_momentum, trace.loads_momentum))
    direction = _Codes(trace.new_momentum, spec.momentum.format)
    if spec.direction is not None:
        direction = _Codes(total.codes, spec.direction.format)
    if spec.nesterov is not None:
        ahead = _add_product(writer, f"{name}.nesterov", gradient, direction, trace.mu,
                             spec.mu.format)
        direction = _reference_cast(writer, f"{name}.nesterov", ahead, spec.nesterov,
                                    trace.rand_nesterov, trace.loads_nesterov)
    if spec.shrink is not None:
        weight = _add_product(writer, f"{name}.shrink", weight, weight, -trace.decay,
                              _minus(spec.shrink.format))
    if is_whole(spec):
        _write_whole(writer, trace)
    moved = _add_product(writer, f"{name}.weight", weight, direction, -trace.lr,
                         _minus(spec.lr.format))
    _write_cast(writer, CastTrace(f"{name}.weight", moved.form, spec.weight, moved.codes,
                                  trace.new_weight, trace.rand_weight, trace.loads_weight))


def _write_whole(writer: VectorWriter, trace: UpdateTrace) -> None:
    """The update once more, as one unit does it: its parts show where the engine differs."""
    spec, count = trace.spec, len(trace.weight)
    rands = [rand if rand is not None else
             random_operands(count, to.rand_bits, list(loads)) if to.rand_bits else [0] * count
             for to, rand, loads in (
                 (spec.momentum, trace.rand_momentum, trace.loads_momentum),
                 (spec.weight, trace.rand_weight, trace.loads_weight))]
    cases = ((*codes, trace.lr, trace.mu, *drawn) for codes, drawn in zip(
        zip(trace.weight, trace.momentum, trace.grad, strict=True), zip(*rands, strict=True),
        strict=True))
    writer.add(f"sgd_update/{trace.name}.hex", update_unit(spec),
               [("step", update_records(spec, cases))])


def _write_buffered(writer: VectorWriter, trace: BufferTrace) -> None:
    """As hardware would: three sums on the mac, and the casts of the buffer and of its step."""
    spec, name = trace.spec, trace.name
    to, own = spec.buffer, spec.weight
    sums = _add_product(writer, f"{name}.buffer", _Codes(trace.buffer, to.format),
                        _Codes(trace.grad, spec.grad.format), 1, ONE)
    held = _reference_cast(writer, f"{name}.buffer", sums, to)
    drop = spec.dropped(trace.shift)
    high = held.form.with_frac(own.format.frac + drop)
    whole = Cast(Format(max(to.format.width - drop + 1, 2), own.format.frac), own.rounding,
                 rand_bits=own.rand_bits)
    step = _reference_cast(writer, f"{name}.step", _Codes(held.codes, high), whole,
                           trace.rand, trace.loads)
    moved = _add_product(writer, f"{name}.weight", _Codes(trace.weight, own.format), step, -1,
                         Format(1))
    _write_cast(writer, CastTrace(f"{name}.weight", moved.form, Cast(
        own.format, overflow=own.overflow), moved.codes, trace.new_weight))
    rest = _add_product(writer, f"{name}.rest", _Codes(held.codes, high), step, -1, Format(1))
    _write_cast(writer, CastTrace(f"{name}.rest", rest.form, Cast(high), rest.codes,
                                  trace.new_buffer))


class _Codes(NamedTuple):
    """Codes of one format."""

    codes: Sequence[int]
    form: Format


def _minus(form: Format) -> Format:
    """What holds the negated codes of `form`, by one bit more."""
    return Format(form.width + 1, form.frac)


def _add_product(writer: VectorWriter, name: str, addend: _Codes, operand: _Codes, factor: int,
                 form: Format) -> _Codes:
    """Write addend + operand * factor, a code of `form`, as MACs of one product; the exact sums."""
    mac, align = exact_mac(operand.form, form, addend.form)
    zeros = mac.product.format.frac
    bias = [code << align for code in addend.codes]
    sums = [x + (code * factor << zeros) for x, code in zip(bias, operand.codes, strict=True)]
    terms = (([code], [factor]) for code in operand.codes)
    _write_mac(writer, MacTrace(name, mac, terms, bias, sums))
    return _Codes(sums, mac.acc.format.with_frac(operand.form.frac + form.frac + zeros))


def _reference_cast(writer: VectorWriter, name: str, found: _Codes, to: Cast, rand=None,
                    loads=None) -> _Codes:
    """Write a cast whose result the engine does not tell, and which what follows shows."""
    if to.rand_bits and rand is None and loads is not None:
        rand = random_operands(len(found.codes), to.rand_bits, list(loads))
    rands = rand if rand is not None else [None] * len(found.codes)
    results = [cast(code, found.form.frac, to, r)
               for code, r in zip(found.codes, rands, strict=True)]
    _write_cast(writer, CastTrace(name, found.form, to, found.codes, results, rand, loads))
    return _Codes(results, to.format)


def exact_mac(a: Format, b: Format, addend: Format | None = None) -> tuple[MacSpec, int]:
    """A MAC that adds one product to an addend and loses nothing; the addend's left shift.

    Raises ValueError where no accumulator holds the sum.
    """
    finer = a.frac + b.frac if addend is None else max(a.frac + b.frac, addend.frac)
    zeros, align = finer - a.frac - b.frac, 0 if addend is None else finer - addend.frac
    corners = [x * y << zeros for x in (a.lo, a.hi) for y in (b.lo, b.hi)]
    low, high = (0, 0) if addend is None else (addend.lo << align, addend.hi << align)
    total = Format.holding(min(corners) + low, max(corners) + high, zeros)
    # the bias is a code of the accumulator: signed where the addend is
    acc = Cast(Format(max(total.width, 2), zeros, total.signed))
    return MacSpec(a.with_frac(0), b.with_frac(0), acc, Cast(Format(64, zeros))), align


_WRITERS = {MacTrace: _write_mac, CastTrace: _write_cast, UpdateTrace: _write_update,
            BufferTrace: _write_buffered}
