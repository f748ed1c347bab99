"""What the learned casts of an operation note for their thresholds, from forward to backward.

A cast by a `learned` rule, q = cast(x), moves with its threshold's logarithm by `threshold_step` of
`emu.reference`. While an operation runs forward its learned casts note these steps, and let all
gradients pass: so the operation hands back the gradient of q. The threshold's is made of that, and
then the mask of what saturated is applied.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch

from emu import engine
from emu.nn.audit import allow_sums_of
from emu.number import Cast

READ = 60  # bits of the largest of a gradient that is on no grid; what is finer is rounded to odd
_state = threading.local()


class Note(NamedTuple):
    """One learned cast: its setting, whose steps (of `frac`), and where gradients pass.

    `operand` is the place of what was cast among the operation's tensors, -1 for its result.
    """

    setting: str
    operand: int
    steps: np.ndarray
    frac: int
    passes: np.ndarray | None

    def slope(self, codes: np.ndarray, frac: int) -> Fraction:
        """dL / (ln 2 dlog2_t), exactly, for the gradient (codes, frac) of the cast's result."""
        return engine.dot_exactly(codes, self.steps) / Fraction(2) ** (frac + self.frac)


class Tape:
    """A context in which the learned casts of these settings note what their thresholds need.

    It yields the notes. An operation begins one each time: hence no generator.
    """

    def __init__(self, settings: tuple[str, ...], tensors: tuple[torch.Tensor | None, ...]):
        self.settings, self.tensors, self.notes = settings, list(tensors), []

    def __enter__(self) -> list[Note]:
        self.outer, _state.tape = getattr(_state, "tape", None), self
        return self.notes

    def __exit__(self, *error) -> None:
        _state.tape = self.outer


def is_open() -> bool:
    """Whether an operation notes in this thread."""
    return getattr(_state, "tape", None) is not None


def wanted(setting: str) -> bool:
    """Whether a learned cast of this setting is to note."""
    tape = getattr(_state, "tape", None)
    return tape is not None and setting in tape.settings


@contextmanager
def observing(callback: Callable[[object, str, np.ndarray], None]) -> Iterator[None]:
    """A context in which each learned cast shows the callback its layer, setting and values."""
    outer, _state.observer = getattr(_state, "observer", None), callback
    try:
        yield
    finally:
        _state.observer = outer


def observer() -> Callable[[object, str, np.ndarray], None] | None:
    """Whom learned casts are to show what they meet."""
    return getattr(_state, "observer", None)


def note(label: str, setting: str, tensor: torch.Tensor | None, codes: np.ndarray, frac: int,
         found: engine.Casted, to: Cast) -> None:
    """Note the cast `found` of codes, read from a tensor of the operation or (None) its result.

    Raises ValueError for a tensor that the operation made itself.
    """
    tape, operand = _state.tape, -1
    if tensor is not None:
        places = [i for i, x in enumerate(tape.tensors) if x is tensor]
        if not places:
            raise ValueError(f"{label}: {to} is learned, and what it casts here is no tensor that "
                             "the operation was given; use another rule")
        operand = places[0]
        tape.tensors[operand] = None  # of one that is given twice each place is cast once
    tape.notes.append(Note(setting, operand, *engine.threshold_steps(codes, frac, found, to),
                           found.inside if found.outside else None))


def read(tensor: torch.Tensor) -> tuple[np.ndarray, int]:
    """A float gradient as (codes, frac): exactly, or where it is on no grid to `READ` bits."""
    floats = tensor.detach().numpy()
    most = float(np.max(np.abs(floats), initial=0.0))
    return engine.encode(floats, min(READ - math.frexp(most)[1], 512))


def gradient_of(threshold: torch.Tensor, slope: Fraction) -> torch.Tensor:
    """The gradient of log2_t: slope, rounded to float once, times ln 2.

    It trains a float master, so autograd may add several in float.
    """
    found = torch.full_like(threshold, float(slope) * math.log(2))
    allow_sums_of(found)
    return found
