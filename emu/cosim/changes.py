"""A change of a spec or of the rule behind it, and whether it gives what a module answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from emu.number import Cast, Format, Overflow, Rounding

Case = tuple  # as the records functions of `emu.golden.units` take it
Told = list[tuple[int, bool]]  # the result after each step of a case, and whether it overflowed


@dataclass(frozen=True)
class Change:
    """One way to compute something else: what of it is told, case by case."""

    words: str
    told: Callable[[Sequence[Case]], Iterator[Told]]
    sticky: bool = True  # an overflow is told until the next dot product


@dataclass(frozen=True)
class Said:
    """What a module answered to cases: (bits of the result, overflow or None) of each step.

    Where it answers last steps only, these alone stand here.
    """

    cases: Sequence[Case]
    answers: Sequence[Sequence[tuple[int, int | None]]]
    every: bool  # step is answered
    width: int  # of the result

    def differences(self, change: Change) -> Iterator[int]:
        """How many answers of each case are not what the change tells."""
        mask = (1 << self.width) - 1
        for told, answers in zip(change.told(self.cases), self.answers, strict=True):
            before, found = False, []
            for code, over in told:
                before = over or (change.sticky and before)
                found.append((code & mask, int(before)))
            yield sum(bits != code or over not in (None, told_over)
                      for (code, told_over), (bits, over) in zip(
                          found if self.every else found[-1:], answers, strict=True))


def explaining(changes: Sequence[Change], said: Said) -> list[Change]:
    """The changes that give every answer."""
    return [change for change in changes if not any(said.differences(change))]


def swapped(name: str, new: object, old: object) -> str:
    return f"{name}: {new} instead of {old}"


def modes(cast: Cast, rounds: bool = True) -> Iterator[Cast]:
    """Every other overflow and rounding of a cast that draws nothing."""
    for mode in Overflow:
        if mode != Overflow.SAT_SYM or cast.format.width > 1:
            yield replace(cast, overflow=mode)
    for mode in list(Rounding)[:-1] if rounds else ():
        yield replace(cast, rounding=mode, rand_bits=0)


def widths(cast: Cast) -> Iterator[Cast]:
    """One bit wider and narrower, and the other sign."""
    form = cast.format
    least = 2 if cast.overflow == Overflow.SAT_SYM else 1
    others = [replace(form, width=form.width + by) for by in (-1, 1)
              if least <= form.width + by <= 64]
    yield from (replace(cast, format=other) for other in (*others, other_sign(form)))


def other_sign(form: Format) -> Format:
    return replace(form, signed=not form.signed)


def each(told: Callable[[Case], Told], cases: Sequence[Case]) -> Iterator[Told]:
    return map(told, cases)


def bits_as(code: int, form: Format) -> int:
    """The code of a format that its low bits are."""
    bits = code & (1 << form.width) - 1
    return bits - (bits > form.hi) * (1 << form.width)
