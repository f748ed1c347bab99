"""A question to a solver: can the claims about a unit fail?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from emu.cosim.model import Model
from emu.cosim.smt import Number, Truth
from emu.golden.units import Unit

Case = tuple  # as the records functions of `emu.golden.units` take it


@dataclass(frozen=True)
class Question:
    """A claim under what its model assumes, with what a counterexample is told by."""

    what: str
    model: Model
    claims: list  # conditions that should hold together
    covers: list  # conditions that can hold together, or else nothing is claimed
    seen: Mapping[str, Number]  # what of a counterexample is told
    tell: Callable[[dict[str, int]], tuple[Case, Unit, int] | None]
    prefer: Sequence[Sequence[Truth | bool]] = ()  # what makes a counterexample easy to read
    implies: Question | None = None  # a harder one, to be asked only where this fails

    def text(self) -> str:
        """Satisfiable where the claims can fail."""
        return self._asked(f"(not {conjunction(self.claims)})")

    def cover(self) -> str:
        """Satisfiable unless the claims say nothing."""
        return self._asked(conjunction(self.covers))

    def _asked(self, condition: str) -> str:
        return "\n".join(["(set-logic QF_BV)", *self.model.script.lines,
                          f"(assert {condition})", ""])


def conjunction(conditions: list) -> str:
    """Their conjunction."""
    return f"(and true true {' '.join(getattr(c, 'name', str(c).lower()) for c in conditions)})"


def signed_code(bits: int, width: int, signed: bool) -> int:
    """The number that the bits of a port stand for."""
    return bits - (signed and bits >> width - 1 << width)
