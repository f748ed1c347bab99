"""What a FixedConfig is on the hardware of `emu.nn`: the resolver of a scope's sites.

Every quantisation of nics_fix is a cast in two's complement, ties to even, saturating. Its `auto`
takes the range of max|x| + 1e-5, here without a float logarithm. What is not fixed still enters an
integer multiplier: in 24 bits and a sign, as float32 has them, with a range of its own each time;
its gradient is a float, and so are the products of a layer whose error is not fixed.
"""

from __future__ import annotations

from emu.compat.nics_fix.config import Datum, Section
from emu.nn import Layer, Site
from emu.number import Cast, Format, Overflow, Rounding
from emu.rule import Rule
from emu.spec import PASS_OPERANDS, LayerSpec

AUTO, FIXED = "auto:max+1e-5", "fixed"
MODES = Rounding.TIES_EVEN, Overflow.SAT
WIDE = Rule(25, True, AUTO, *MODES)  # of what is not fixed
EXACT = {"acc": "s62 sat"}  # an accumulator that no layer fills
# The tensors of a LayerSpec whose modes a section says.
DATA = {"w": 0, "b": 0, "y": 1}
GRADIENTS = {"grad_w": 0, "grad_b": 0, "error": 1}


def cast_of(mode: str | int | None, width: int) -> Cast | Rule | None:
    """The cast of a mode."""
    if mode is None:
        return None
    if isinstance(mode, int):
        return Cast(Format(width, width - 1 - mode), *MODES)
    return Rule(width, True, AUTO if mode == "auto" else FIXED, *MODES)


def mode_of(datum: Datum, training: bool) -> str | int | None:
    """The mode of a phase."""
    return datum.training if training else datum.not_training


class Resolver:
    """The hardware of each site of a scope.

    `sections` has the section of each module by its name, `inputs` the widths of what enters it in
    training and in evaluation, where a fixed operation made it.
    """

    def __init__(self):
        self.sections: dict[str, Section] = {}
        self.inputs: dict[str, tuple[int, int]] = {}

    def resolve(self, site: Site) -> LayerSpec:
        """The hardware of one site, in its phase."""
        name, _, inner = site.path.partition(".")
        section = self.sections[name]
        found: dict = {}
        for key, which in DATA.items():
            datum = section[which].data_config
            found[key] = cast_of(mode_of(datum, site.training), datum.bit_width)
        for key, which in GRADIENTS.items():
            datum = section[which].gradient_config
            found[key] = cast_of(datum.training, datum.bit_width)
        if "forward" in site.uses:
            width = self.inputs.get(site.path)
            found["x"] = Rule(width[not site.training], True, FIXED, *MODES) if width else WIDE
            found |= {key: found[key] or WIDE for key in ("w", "b", "y")}
            passes = PASS_OPERANDS if found["error"] else ["forward"]
            found |= dict.fromkeys(passes, section.mac or EXACT)
        elif inner:  # a function that a module calls
            found = dict.fromkeys(("x", "w", "b"), WIDE)
        if inner:  # what leaves the module is cast
            found["y"] = WIDE
        return LayerSpec.parse({key: found[key] for key in site.uses if key in found})

    def __str__(self) -> str:
        return f"{AUTO} {FIXED}"  # its hardware has state


def prepare(layer: Layer) -> None:
    """Let scales that are fixed before anything chose them be 2^0, as nics_fix does."""
    for name in (*DATA, *GRADIENTS):
        for spec in (layer.spec, layer.evaluation):
            rule = getattr(spec, name)
            if isinstance(rule, Rule) and rule.fixed:
                layer.fracs.setdefault(name, rule.width - 1)


class Scale:
    """The exponent of one quantisation: the range is 2^value."""

    def __init__(self, layer: Layer, name: str, training: bool):
        self.layer, self.name, self.training = layer, name, training

    @property
    def cast(self) -> Cast | Rule | None:
        """The cast of its phase, of the other one where that has none."""
        casts = (self.layer.cast_of(self.name, phase) for phase in (self.training,
                                                                    not self.training))
        return next((cast for cast in casts if cast not in (None, WIDE)), None)

    @property
    def value(self) -> int | None:
        """The exponent; None where nothing is fixed, or nothing has chosen one yet."""
        cast = self.cast
        if isinstance(cast, Cast):
            return cast.format.width - 1 - cast.format.frac
        if cast is None or self.name not in self.layer.fracs:
            return None
        return cast.width - 1 - self.layer.fracs[self.name]

    def assign(self, value: int) -> None:
        """Store another exponent; raises ValueError where the configuration says it."""
        if not isinstance(self.cast, Rule):
            raise ValueError(f"scale {self.layer.site}.{self.name}: is {self.cast} by the "
                             "configuration; write fixed or auto there")
        self.layer.fracs[self.name] = self.cast.width - 1 - value

    def __repr__(self) -> str:
        return f"<scale of {self.layer.site}.{self.name}: {self.value}>"
