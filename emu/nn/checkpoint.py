"""Activation checkpointing: what torch computes again in backward, it computes on the hardware.

`torch.utils.checkpoint` calls its function a second time in the backward pass, where no scope need
be open. So its two entries are given a function that then runs in the frame, and from the states,
in which it ran first. For models without fixed operations nothing changes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from torch.utils import checkpoint

from emu.nn import scope
from emu.nn.models import resumed
from emu.nn.replay import Stretch


class _Twice:
    """A function that runs first in a frame of now, or in none, and later again as then."""

    def __init__(self, function: Callable):
        self.function, self.stretch, self.started = function, Stretch(), False
        frame = scope.top()
        self.frame = None if frame is None else frame.again()

    def first(self, *args, **kwargs):
        """The first run, where it is to be called here."""
        self.started = True
        with self.stretch.first():
            return self.function(*args, **kwargs)

    def again(self, *args, **kwargs):
        """The run in backward."""
        with self.stretch.again():
            if self.frame is None:
                return self.function(*args, **kwargs)
            with resumed(self.frame.again()):
                return self.function(*args, **kwargs)

    def __call__(self, *args, **kwargs):
        return (self.again if self.started else self.first)(*args, **kwargs)


def _reentrant(forward: Callable) -> Callable:
    """CheckpointFunction.forward, which calls the function; its backward calls it again."""
    @functools.wraps(forward)
    def twice(ctx, run_function, *args):
        return forward(ctx, _Twice(run_function), *args)
    return staticmethod(twice)


def _not_reentrant(generator: Callable) -> Callable:
    """The generator around a function that its caller runs; it keeps it for backward."""
    @functools.wraps(generator)
    def twice(fn, *args, **kwargs):
        function = _Twice(fn)
        around = generator(function.again, *args, **kwargs)
        with function.stretch.first():
            return (yield from around)
    return twice


checkpoint.CheckpointFunction.forward = _reentrant(checkpoint.CheckpointFunction.forward)
checkpoint._checkpoint_without_reentrant_generator = _not_reentrant(
    checkpoint._checkpoint_without_reentrant_generator)
