"""One module's hardware at work: its spec, its backend, and the binary points its rules chose."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from emu import engine
from emu.kind import AnyCast
from emu.nn import border, tape
from emu.nn.backend import Backend, Place
from emu.nn.config import Site
from emu.nn.hardware import Hardware
from emu.nn.replay import current
from emu.nn.strategy import Call
from emu.number import Cast, Format, Overflow
from emu.rule import Rule
from emu.spec import LayerSpec, MacSpec

LEARN = "x", "w", "b", "y"  # the settings whose rules may be learned


class Codes(NamedTuple):
    """A tensor inside the hardware: codes, their format, and where gradients pass (None: all)."""

    codes: np.ndarray
    form: Format
    passes: np.ndarray | None


class Port(NamedTuple):
    """What is known of one tensor or pass of a layer, in one phase, before there is any data."""

    value: Cast | Rule | MacSpec | None  # of its setting; None where the layer has none
    place: Place
    label: str  # for messages
    cast: AnyCast | None  # the value where it is one: then all is known before there is any data
    masks: bool  # whether gradients stop where that saturates
    rule: bool  # whether the value is one, and whether that is learned
    learned: bool


class Layer:
    """An operation's site, spec and backend; `fracs` is the state of its rules.

    A rule chooses its binary point in training only: evaluation uses the last one, or, where
    there is none yet, one that it does not keep. A rule for the next tensor (`@previous`) uses the
    last one in training too; a `fixed` one always does, and is refused where there is none.
    `channels` is the axis of x, y and error that holds the channels; that of parameters is 0.

    A `learned` rule has a threshold 2^log2_t: a parameter `<setting>_log2_t` of the module, which
    `parameters` holds, under another name where `names` has one. While that is NaN it is not chosen
    yet: the first nonzero tensor of the training chooses as `auto:max` would, the middle of the
    range's log2_t.
    """

    def __init__(self, site: str, spec: LayerSpec, hardware: Hardware,
                 channels: int | None = None, evaluation: LayerSpec | None = None,
                 kind: str = "", uses: tuple[str, ...] = (),
                 parameters: dict[str, torch.nn.Parameter] | None = None, prefix: str = "",
                 names: Mapping[str, str] | None = None):
        self.site, self.hardware, self.channels = site, hardware, channels
        self._be(spec, spec if evaluation is None else evaluation)
        self.kind, self.uses = kind, uses  # those of its Site
        nest = hardware.strategies.of(Site(site, kind, uses), spec)
        self.nest = nest if nest.strategies else None
        self._fracs: dict[str, int] = {}
        self.exact = True
        self._parameters = parameters
        self.threshold_keys = {  # of what is learned: the names of its thresholds in the module
            name: (names or {}).get(f"{prefix}{name}", f"{prefix}{name}") + "_log2_t"
            for name in LEARN if any(
                isinstance(rule := getattr(each, name), Rule) and rule.learned
                for each in (self.spec, self.evaluation))}
        self._make_thresholds()

    def become(self, spec: LayerSpec, evaluation: LayerSpec) -> None:
        """Be this hardware in training, and that in evaluation."""
        if (spec, evaluation) != (self.spec, self.evaluation):
            self._be(spec, evaluation)
            self.hardware.become(self.site, spec, evaluation)

    def _be(self, spec: LayerSpec, evaluation: LayerSpec) -> None:
        self.spec, self.evaluation = spec, evaluation
        self._ports: dict[tuple[str, bool], Port] = {}
        self._results: dict[tuple[str, bool, int], Format] = {}
        self._preloads: dict[tuple[bool, int], tuple[Place, Cast]] = {}

    def _make_thresholds(self) -> None:
        if self._parameters is None:
            return
        like = next(iter(self._parameters.values()), None)
        dtype = torch.get_default_dtype() if like is None else like.dtype
        for key in self.threshold_keys.values():
            self._parameters.setdefault(key, torch.nn.Parameter(
                torch.tensor([float("nan")], dtype=dtype)))

    @property
    def thresholds(self) -> dict[str, torch.nn.Parameter]:
        """The log2_t (1,) of each setting that is learned."""
        return {name: self._parameters[key] for name, key in self.threshold_keys.items()
                if self._parameters is not None}

    def share_threshold(self, name: str, with_: torch.nn.Parameter) -> None:
        """Let another's threshold be that of the setting `name`."""
        self._parameters[self.threshold_keys[name]] = with_

    @property
    def fracs(self) -> dict[str, int]:
        """The binary points that the rules chose last, by the tensor's name."""
        return current(self, self._fracs)

    @fracs.setter
    def fracs(self, value: dict[str, int]) -> None:
        now = self.fracs
        if value is not now:
            now.clear()
            now.update(value)

    @property
    def backend(self) -> Backend:
        """What computes."""
        return self.hardware.backend

    def texts(self) -> dict[str, str]:
        """Each setting as text: a rule with its binary point, evaluation's after a bar if other."""
        found = {}
        for name in vars(self.spec):
            both = [getattr(spec, name) for spec in (self.spec, self.evaluation)]
            texts = [f"{value} (f{frac})" if isinstance(value, Rule) and (
                frac := self.stored(name, value)) is not None else str(value or "none")
                for value in both]
            if any(value is not None for value in both):
                found[name] = texts[0] if texts[0] == texts[1] else " | ".join(texts)
        return found

    def port(self, name: str, training: bool) -> Port:
        """What is known of one tensor or pass, by its name.

        `x.1` is a second tensor that the setting x casts: its rule has a state of its own.
        """
        found = self._ports.get((name, training))
        if found is None:
            setting = _setting(name)
            axis = self.channels if setting in ("x", "y", "error") else 0
            if name in ("forward", "grad_input", "grad_weight"):
                axis = None  # which the operation itself says
            spec = self.spec if training else self.evaluation
            value = getattr(spec, setting, None)
            is_rule, cast = isinstance(value, Rule), value if isinstance(value, AnyCast) else None
            found = self._ports[name, training] = Port(
                value, Place(self.site, name, training, axis), f"{self.site}.{name}", cast,
                cast is not None and _stops(spec, cast), is_rule, is_rule and value.learned)
        return found

    def cast_of(self, name: str, training: bool) -> AnyCast | Rule | None:
        """The cast or rule of one tensor in this phase, None where it leaves as it is."""
        return self.port(name, training).value

    def mac(self, name: str, training: bool = True) -> MacSpec:
        """The MAC of one pass in this phase; raises ValueError where there is none."""
        found = self.port(name, training).value
        return found or self._missing(name, "a MAC such as {acc: s24 sat}")

    def place(self, name: str, training: bool) -> Place:
        """The name of one operation of this layer."""
        return self.port(name, training).place

    def unit(self, name: str, training: bool) -> tuple[Place, MacSpec]:
        """The place and the MAC of one pass; raises ValueError where there is none."""
        found = self._ports.get((name, training)) or self.port(name, training)
        return found.place, found.value or self.mac(name, training)

    def result(self, name: str, training: bool, frac: int) -> Format:
        """The format of the accumulators of one pass, whose products have `frac`."""
        found = self._results.get((name, training, frac))
        if found is None:
            form = self.mac(name, training).result.format
            found = self._results[name, training, frac] = form.with_frac(frac + form.frac)
        return found

    def _missing(self, name: str, what: str):
        raise ValueError(f"layer {self.site!r}: has no {name}; the configuration must give it "
                         f"{what}")

    def enter(self, name: str, tensor: torch.Tensor, training: bool) -> Codes:
        """A tensor of any finite floats, cast by the spec's `name` (x, w, b, error)."""
        if self.nest is None or not training:
            port = self._ports.get((name, training))
            if port is None or port.cast is None:
                return self._enter(name, tensor, training)
            floats, to = border.to_numpy(tensor, port.label), port.cast
            try:
                found = self.hardware.backend.quantize(port.place, floats, to)
            except ValueError as error:
                raise ValueError(f"{port.label}: {error}") from None
            return Codes(found.codes, to.format,
                         found.inside if found.outside and port.masks else None)
        before = tensor.detach().double()
        given = before.clone() if before.data_ptr() == tensor.data_ptr() else before
        return self._after(name, self._enter(name, self._before(name, given, training), training),
                           training)

    def _before(self, name: str, tensor: torch.Tensor, training: bool) -> torch.Tensor:
        """The tensor after the strategies' pre hooks."""
        _, place, label, to, *_ = self.port(name, training)
        floats = border.to_numpy(tensor, label)
        if to is None:
            to, _ = self._choose(name, training, lambda rule, last: engine.cast_for(
                rule, floats, last))
        return self.nest.run("pre", tensor, Call(place, to.format, self.backend))

    def _after(self, name: str, found: Codes, training: bool) -> Codes:
        """What the strategies' post hooks make of codes, in the cast that gave them."""
        to, place, label, *_ = self.port(name, training)
        label = f"{label} after its cast"
        values = border.to_tensor(found.codes, found.form, torch.float64, label)
        after = self.nest.run("post", values, Call(place, found.form, self.backend))
        if after is values and not values._version:
            return found
        try:
            again = self.backend.quantize(place.part("post"), border.to_numpy(after, label),
                                          to.with_frac(found.form.frac))
        except ValueError as error:
            raise ValueError(f"{label}: {error}") from None
        return found._replace(codes=again.codes)

    def _enter(self, name: str, tensor: torch.Tensor, training: bool) -> Codes:
        _, place, label, to, _, _, learned = self.port(name, training)
        floats = border.to_numpy(tensor, label)
        if learned:
            self._show(name, lambda: floats.astype(np.float64))
        chosen = None
        if to is None:
            to, chosen = self._choose(name, training, lambda rule, last: engine.cast_for(
                rule, floats, last))
        try:
            found = self.hardware.backend.quantize(place, floats, to)
        except ValueError as error:
            raise ValueError(f"{label}: {error}") from None
        if chosen is not None:
            self.fracs[name] = chosen
        if learned and tape.wanted(_setting(name)):
            tape.note(label, _setting(name), tensor, *engine.encode_for(floats, to), found, to)
            return Codes(found.codes, to.format, None)
        return self._codes(name, found, to, training)

    def requantise(self, name: str, codes: np.ndarray, form: Format, training: bool) -> Codes:
        """Codes of `form` cast by the spec's `name` (y, grad_w, grad_b)."""
        if self.nest is None or not training:
            port = self._ports.get((name, training))
            if port is None or port.cast is None:
                return self._requantise(name, codes, form, training)
            to = port.cast
            found = self.hardware.backend.cast(port.place, codes, form, to)
            return Codes(found.codes, to.format,
                         found.inside if found.outside and port.masks else None)
        given = border.each_to_tensor(codes, form, torch.float64, f"{self.site}.{name}")
        before = self._before(name, given, training)
        found = (self._requantise(name, codes, form, training)
                 if before is given and not given._version else
                 self._enter(name, before, training))
        return self._after(name, found, training)

    def _requantise(self, name: str, codes: np.ndarray, form: Format, training: bool) -> Codes:
        _, place, label, to, _, _, learned = self.port(name, training)
        if learned:
            self._show(name, lambda: np.ldexp(codes.astype(np.float64), -form.frac))
        if to is None:
            to, chosen = self._choose(name, training, lambda rule, last: engine.cast_for_codes(
                rule, codes, form.frac, last))
            if chosen is not None:
                self.fracs[name] = chosen
        found = self.hardware.backend.cast(place, codes, form, to)
        if learned and tape.wanted(_setting(name)):
            tape.note(label, _setting(name), None, codes, form.frac, found, to)
            return Codes(found.codes, to.format, None)
        return self._codes(name, found, to, training)

    def _show(self, name: str, values) -> None:
        """Show who observes what a learned cast is about to meet."""
        callback = tape.observer()
        if callback is not None:
            callback(self, _setting(name), values())

    def leave(self, name: str, codes: np.ndarray, form: Format, training: bool) -> Codes:
        """Codes of `form` cast by the spec's `name` where it has one, else as they are."""
        if self.port(name, training).value is None:
            return Codes(codes, form, None)
        return self.requantise(name, codes, form, training)

    def _choose(self, name: str, training: bool, choose) -> tuple[AnyCast, int | None]:
        """(the cast that the spec's rule becomes, the frac to keep): see `Layer`."""
        rule = self.port(name, training).value or self._missing(
            name, "a cast such as 's8f4 ties_even sat'")
        if rule.constant is not None:
            return rule.with_frac(rule.constant), None
        last = self.stored(name, rule)
        if rule.learned and last is None:
            return self._begin(name, rule, training, choose), None
        if rule.fixed:
            try:
                return rule.stored(last), None
            except ValueError as error:
                raise ValueError(f"layer {self.site!r}: {name} {error}") from None
        if last is not None and not training:
            return rule.with_frac(last), None
        chosen = choose(rule, last)
        used = rule.with_frac(last) if rule.previous and last is not None else chosen
        return used, chosen.format.frac if training else None

    def stored(self, name: str, rule: Rule) -> int | None:
        """The binary point that is stored for a tensor with this rule, None where there is none."""
        if not rule.learned:
            return self.fracs.get(name)
        threshold = self.thresholds.get(_setting(name))
        log2_t = math.nan if threshold is None else threshold.item()
        return None if math.isnan(log2_t) else rule.with_range(math.ceil(log2_t)).format.frac

    def _begin(self, name: str, rule: Rule, training: bool, choose) -> Cast:
        """The cast of a learned rule whose threshold is not chosen yet; training keeps it."""
        threshold = self.thresholds.get(_setting(name))
        if threshold is None:
            raise ValueError(f"layer {self.site!r}: {name} {rule} needs a module that has its "
                             "threshold; use emu.nn.fix on the model")
        auto = replace(rule, scale="auto:max")
        one, other = (choose(auto, last) for last in (0, 1))
        if training and one == other:  # zeros choose nothing
            exponent = rule.width - rule.signed - one.format.frac
            with torch.no_grad():
                threshold.data.fill_(exponent - 0.5)
        return one

    def _codes(self, name: str, found: engine.Casted, to: AnyCast, training: bool) -> Codes:
        """What a cast gave, at the format where its rule has it read."""
        port = self.port(name, training)
        return Codes(found.codes, port.value.read(to) if port.rule else to.format,
                     self.passes(found.inside, to, training) if found.outside else None)

    def passes(self, inside: np.ndarray | None, to: AnyCast, training: bool) -> np.ndarray | None:
        """Where gradients pass a cast that was `inside` its range there (None: everywhere)."""
        spec = self.spec if training else self.evaluation
        return inside if _stops(spec, to) else None

    def divide(self, name: str, codes: np.ndarray, divisor: np.ndarray, form: Format,
               training: bool) -> Codes:
        """Codes (..., H, W) of `form` over whole divisors (H, W), in the spec's cast `name`."""
        to, place, *_, rule, _ = self.port(name, training)
        if rule:
            raise ValueError(f"layer {self.site!r}: {name} {to} divides by an area that is no "
                             "power of two, which needs a fixed binary point; give it a Cast")
        if to is None:
            self._missing(name, "a cast")
        if not isinstance(to, Cast):
            raise ValueError(f"layer {self.site!r}: {name} {to}: a division rounds to one grid; "
                             "give it a plain cast")
        found = self.backend.divide(place, codes, divisor, form, to)
        return self._codes(name, found, to, training)

    def preload(self, bias: Codes, form: Format, training: bool) -> Codes:
        """Bias codes as codes of the accumulator's `form`, by a cast with the bias's own modes.

        Gradients pass where they pass both casts.
        """
        plan = self._preloads.get((training, form.frac))
        if plan is None:
            own = self.cast_of("b", training)
            plan = self._preloads[training, form.frac] = self.place("preload", training), Cast(
                form, own.rounding, own.overflow, own.rand_bits)
        place, to = plan
        cast = self.hardware.backend.cast(place, bias.codes, bias.form, to)
        if bias.passes is None and not cast.outside:
            return Codes(cast.codes, to.format, None)
        passes = self.passes(cast.inside if cast.outside else None, to, training)
        both = [p for p in (bias.passes, passes) if p is not None]
        return Codes(cast.codes, to.format, np.logical_and.reduce(both) if both else None)


def _setting(name: str) -> str:
    """The setting of a LayerSpec that a tensor's name begins with."""
    return name.partition(".")[0]


def _stops(spec: LayerSpec, to: AnyCast) -> bool:
    """Whether gradients stop where a cast saturates."""
    return spec.mask != "all" and to.overflow != Overflow.WRAP
