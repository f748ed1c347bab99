"""A user's module fed with golden cases through its adapter, and what it answered."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import numpy as np

from emu.cosim import adapter, tools
from emu.cosim.drive import DRAIN, Case, Stream, fitting, owed, steps_of
from emu.cosim.engines import through
from emu.cosim.joints import joints, wires_of
from emu.cosim.places import hardware
from emu.cosim.portmap import PortMap
from emu.golden.units import Unit

MAX_SPACING = 64  # clocks that a module may need for a step


@dataclass(frozen=True)
class Answers:
    """What a module said, in its order."""

    codes: dict[str, np.ndarray]  # by role
    unknown: np.ndarray  # which answers had an X
    moved: int  # steps that the module took

    def __len__(self) -> int:
        return len(self.unknown)


class Bench:
    """A module, the map of its ports, the cases of `listed` and what they should answer.

    The cases come as fast as the module takes them and then, where it has a valid, once more with
    idle clocks and stalls drawn from `seed`. Raises ValueError where map and module do not fit,
    RuntimeError where the module does not elaborate.
    """

    def __init__(self, found: PortMap, unit: Unit, listed: list[Case], sources: Sequence[Path],
                 backend: str, seed: int):
        self.found, self.unit, self.listed, self.sources = found, unit, listed, list(sources)
        self.backend, self.seed = backend, seed
        self.cases = fitting(found, unit, listed)
        self.steps = steps_of(unit, self.cases)
        self.passes = 2 if "valid" in found.inputs else 1
        self.once = owed(found, self.steps)
        self.owed = self.once * self.passes
        if not self.owed:
            raise ValueError(f"{found.path}: the spec {found.spec} has no case that these ports "
                             "can be given, so nothing would be checked")
        self.face = adapter.interface(found, unit)
        try:
            self.wires = wires_of(found, sources)
            self.joined = joints(found, self.face, self.wires)
        except ValueError as error:
            raise ValueError(f"{found.path}: {error}") from None

    def by(self, found: PortMap) -> Bench:
        """The same bench by another map."""
        return Bench(found, self.unit, self.listed, self.sources, self.backend, self.seed)

    def run(self, most: int = MAX_SPACING, waves: Path | None = None) -> Answers:
        """The answers of the module, steps coming at up to `most` clocks until it can follow.

        `waves` is a file for its waves.
        """
        self.spacing = 1
        while True:
            stream = Stream(self.found, self.face, self.spacing)
            stream.feed(self.steps)
            if self.passes == 2:
                stream.feed(self.steps, Random(self.seed))
            stream.drain()
            out = self._through(stream, waves=waves)
            if not out["lost_o"].any():
                break
            self.spacing *= 2
            if self.spacing > most:
                raise RuntimeError(f"{self.found.top}: is not ready for a step in "
                                   f"{most} clocks; is outputs.ready of "
                                   f"{self.found.path} the right port, and its reset?")
        seen = np.flatnonzero(out["seen_o"])
        return Answers({port.name[:-2]: out[port.name][seen] for port in self.face.outputs
                        if port.name[:-2] not in adapter.TOLD}, out["unknown_o"][seen] != 0,
                       int(out["moved_o"].sum()))

    def wrong(self, got: Answers) -> list[int]:
        """Which answers are not what was owed, or X."""
        count = min(len(got), len(self.owed))
        wrong = got.unknown[:count].copy()
        for role, codes in got.codes.items():
            want = np.array([step.want[role] for step in self.owed], codes.dtype)
            wrong |= codes[:count] != want[:count]
        return np.flatnonzero(wrong).tolist()

    def resets_at_once(self) -> bool | None:
        """Whether reset acts before the clock's edge; None where the outputs do not show it.

        Only Icarus tells the two apart: elsewhere a clock is one moment.
        """
        if not self.found.reset or self.backend != "icarus":
            return None
        outputs = {role: pieces for role, pieces in self.found.outputs.items() if role != "ready"}
        always = self.by(replace(self.found, outputs=outputs))
        stream = Stream(always.found, always.face, DRAIN)
        result = next(iter(self.once[0].want))
        stream.feed([next(steps for steps in self.steps if steps[-1].want[result])])
        stream.reset()
        out = always._through(stream, always=True)
        at = len(stream.rows) - DRAIN  # the clock of reset
        before, during, after = (
            [out[port.name][i] for port in always.face.outputs if port.name != "moved_o"]
            for i in (at - 1, at, at + 1))
        unknown = out["unknown_o"][at - 1:at + 2].any()
        return None if unknown or before == after else during != before

    def _through(self, stream: Stream, always: bool = False, waves: Path | None = None
                 ) -> dict[str, np.ndarray]:
        with tempfile.TemporaryDirectory(prefix="emu-cosim-") as folder:
            path = Path(folder) / f"{adapter.NAME}.v"
            path.write_text(adapter.adapter(self.found, self.face, self.wires, self.joined,
                                            always))
            sources = [*self.sources, path, hardware() / "tb" / f"{adapter.QUEUE}.v"]
            try:
                return through(adapter.NAME, {}, sources, self.face, stream.arrays(self.face),
                               self.backend, waves)
            except tools.ToolMissing:
                raise
            except RuntimeError as error:
                raise RuntimeError(str(error).replace(adapter.NAME, self.found.top)) from None
