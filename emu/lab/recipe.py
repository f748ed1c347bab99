"""A recipe: network, training and hardware of one experiment, in YAML."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
import yaml

from emu import nn
from emu.lab.hardware import expand, merged
from emu.lab.losses import LOSSES
from emu.lab.models import MODELS
from emu.lab.stages import Software
from emu.nn import functions
from emu.nn.calibrate import METHODS
from emu.value import check_keys, unknown

RECIPES = Path(__file__).parents[1] / "recipes"
KINDS = {kind: getattr(torch.nn, kind) for kind in [*functions.KINDS, "Flatten"]
         if hasattr(torch.nn, kind)} | {
        "Activation": nn.Activation, "Adder2d": nn.Adder2d, "SEConv2d": nn.SEConv2d}


@dataclass(frozen=True)
class Training:
    """SGD with momentum; the learning rate is multiplied by `decay` at each of `milestones`.

    `phases` is a schedule: from each of these epochs on (the first is 0) another `lr`, or settings
    of the `hardware` that replace earlier ones, such as narrower gradients.
    """

    epochs: int
    batch: int
    lr: float
    momentum: float = 0.0
    milestones: tuple[int, ...] = ()
    decay: float = 0.5
    phases: Mapping | None = None

    def __post_init__(self):
        for name in ("epochs", "batch"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"recipe training.{name} {value!r}: needs a whole number of at "
                                 "least 1")
        for name in ("lr", "momentum", "decay"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 64:
                raise ValueError(f"recipe training.{name} {value!r}: needs a number from 0 to 64")
        if not isinstance(self.milestones, tuple | list) or any(
                type(epoch) is not int for epoch in self.milestones):
            raise ValueError(f"recipe training.milestones {self.milestones!r}: needs a list of "
                             "epochs")
        object.__setattr__(self, "milestones", tuple(self.milestones))
        self._check_phases()

    def _check_phases(self) -> None:
        if self.phases is None:
            return
        if not isinstance(self.phases, Mapping) or any(
                type(epoch) is not int or epoch < 1 for epoch in self.phases):
            raise ValueError(f"recipe training.phases {self.phases!r}: needs a mapping of epochs, "
                             "from 1 on, to settings")
        for epoch, phase in self.phases.items():
            check_keys(phase, ["lr", "hardware"], f"recipe training.phases.{epoch}")

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch."""
        rate = self.lr
        for _, phase in self.until(epoch):
            rate = phase.get("lr", rate)
        return rate * self.decay ** sum(epoch >= milestone for milestone in self.milestones)

    def until(self, epoch: int) -> list[tuple[int, Mapping]]:
        """The phases that have begun, in their order."""
        return sorted((start, phase) for start, phase in (self.phases or {}).items()
                      if start <= epoch)


@dataclass(frozen=True)
class Thresholds:
    """How `learned` thresholds begin and are trained (TQT).

    The network first trains in float by `pretrain`, or takes the state dict in the file `weights`;
    then `batches` batches calibrate it by the methods of `emu.nn.calibrate`, and its own training
    moves the thresholds by Adam at the rate `lr`, up to the epoch `freeze`.
    """

    pretrain: Training | None = None
    weights: str | None = None
    batches: int = 8
    weight: str = "3sd"
    bias: str = "max"
    acti: str = "entropy_j"
    lr: float = 0.01
    freeze: int | None = None

    def __post_init__(self):
        if self.pretrain is not None and self.weights is not None:
            raise ValueError("recipe thresholds: pretrain and weights are two beginnings; give one")
        for role in ("weight", "bias", "acti"):
            if getattr(self, role) not in (*METHODS, "ig"):
                raise unknown(f"recipe thresholds.{role}", getattr(self, role),
                              [*METHODS, "ig"])
        for name, least in (("batches", 1), ("freeze", 0)):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < least):
                raise ValueError(f"recipe thresholds.{name} {value!r}: needs a whole number of at "
                                 f"least {least}")
        if isinstance(self.lr, bool) or not isinstance(self.lr, int | float) or self.lr < 0:
            raise ValueError(f"recipe thresholds.lr {self.lr!r}: needs a number of at least 0")


@dataclass(frozen=True)
class Recipe:
    """One experiment. `hardware` is an `emu.nn.Config`, or `{preset: NAME}` with changes to it.

    `loss` is `host` (cross-entropy in float64), `table` (by tables, in integers) or `squares`;
    `thresholds` is for what the hardware learns.

    `network` names modules in order, or is one of `emu.lab.models`.

    `record_batch` is the batch of a recorded step, small enough for an RTL simulator; every
    `monitor`-th step of the training is watched, none where it is 0. With `software` it is the
    first of two stages (see `emu.lab.stages`); `start` is the run folder of the first stage.
    """

    about: str
    data: str
    network: Mapping | str
    training: Training
    hardware: Mapping
    seed: int = 0
    record_batch: int = 8
    monitor: int = 10
    software: Software | None = None
    start: str | None = None
    thresholds: Thresholds | None = None
    loss: str = "host"

    def __post_init__(self):
        if self.loss not in LOSSES:
            raise unknown("recipe loss", self.loss, LOSSES)
        object.__setattr__(self, "hardware", expand(self.hardware))
        for name, least in (("seed", 0), ("record_batch", 1), ("monitor", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"recipe {name} {value!r}: needs a whole number of at least "
                                 f"{least}")

    @classmethod
    def parse(cls, items: Mapping) -> Recipe:
        """A recipe from its mapping; raises ValueError naming an unknown or missing key."""
        check_keys(items, [f.name for f in fields(cls)], "recipe")
        network = items.get("network", {"": None})
        if isinstance(network, str) and network not in MODELS:
            raise unknown("recipe network", network, MODELS)
        if not isinstance(network, Mapping | str) or not network:
            raise ValueError(f"recipe network {network!r}: needs a mapping of names to modules, or "
                             f"one of {', '.join(MODELS)}")
        for key in ("about", "data", "network", "training", "hardware"):
            if key not in items:
                raise ValueError(f"recipe: {key!r} is missing")
        parts = {"training": _training(items["training"], "training")}
        if items.get("thresholds") is not None:
            given = items["thresholds"]
            check_keys(given, [f.name for f in fields(Thresholds)], "recipe thresholds")
            first = given.get("pretrain")
            parts["thresholds"] = Thresholds(**{**given, "pretrain": first and _training(
                first, "thresholds.pretrain")})
        if items.get("software") is not None:
            given = items["software"]
            check_keys(given, [f.name for f in fields(Software)], "recipe software")
            for key in ("iterations", "buffer", "lr"):
                if key not in given:
                    raise ValueError(f"recipe software: {key!r} is missing")
            parts["software"] = Software(**given)
        return cls(**{**items, **parts})

    @classmethod
    def load(cls, name: str) -> Recipe:
        """A shipped recipe by name, or a YAML file by path."""
        shipped = {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}
        path = shipped.get(name, Path(name))
        if not path.is_file():
            raise unknown("recipe", name, shipped)
        try:
            return cls.parse(yaml.safe_load(path.read_text()))
        except yaml.YAMLError as error:
            raise ValueError(f"{path}: no YAML: {' '.join(str(error).split())}") from None

    def with_hardware(self, text: str) -> Recipe:
        """The recipe with changes of its hardware: a YAML mapping, or the name of a preset.

        Raises ValueError for a text that is neither.
        """
        try:
            changes = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"hardware {text!r}: no YAML: {error}") from None
        if isinstance(changes, Mapping):
            changes = merged(self.hardware, changes)
        elif not isinstance(changes, str):
            raise ValueError(f"hardware {text!r}: needs a mapping such as {{default: {{...}}}}, or "
                             "the name of a preset")
        return replace(self, hardware=changes)

    def as_dict(self) -> dict:
        """Plain values, in the order of the fields, for YAML and comparison."""
        items = {key: value for key, value in asdict(self).items() if value is not None}
        first = items.get("thresholds", {}).get("pretrain")
        for training in filter(None, (items["training"], first)):
            training["milestones"] = list(training["milestones"])
            if training["phases"] is None:  # as recipes were before there were any
                del training["phases"]
        if items["loss"] == "host":
            del items["loss"]
        return items

    def float_model(self, shape: tuple[int, ...], classes: int) -> torch.nn.Module:
        """The network in float64 for inputs of `shape`, initialised from `seed`.

        `in_features`, `in_channels` and `num_features` follow from the shape if left out.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            if isinstance(self.network, str):
                return MODELS[self.network](shape, classes).double()
            x, modules = torch.zeros(1, *shape), OrderedDict()
            for name, entry in self.network.items():
                modules[name], x = _module(name, entry, x)
        return torch.nn.Sequential(modules).double().train()


def _training(items: Mapping, where: str) -> Training:
    check_keys(items, [f.name for f in fields(Training)], f"recipe {where}")
    for key in ("epochs", "batch", "lr"):
        if key not in items:
            raise ValueError(f"recipe {where}: {key!r} is missing")
    return Training(**items)


def _module(name: str, entry: object, x: torch.Tensor) -> tuple[torch.nn.Module, torch.Tensor]:
    """The module of one line of `network`, for an input like `x`, and its output."""
    kind, arguments = entry, {}
    if isinstance(entry, Mapping) and len(entry) == 1:
        kind, arguments = next(iter(entry.items()))
    if not isinstance(name, str) or "." in name or not isinstance(kind, str) or not isinstance(
            arguments, Mapping):
        raise ValueError(f"recipe network {name!r}: {entry!r}: write NAME: MODULE or NAME: "
                         "{MODULE: {argument: value}}, without a dot in the name")
    if kind not in KINDS:
        raise unknown(f"module of network.{name}", kind, KINDS)
    sized = {"Linear": {"in_features": x.shape[-1]},
             **{key: {"in_channels": x.shape[1]} for key in ("Conv2d", "Adder2d", "SEConv2d")},
             "BatchNorm1d": {"num_features": x.shape[1]},
             "BatchNorm2d": {"num_features": x.shape[1]}}.get(kind, {})
    try:
        module = KINDS[kind](**{**sized, **arguments})
        with torch.no_grad():
            return module, module.eval()(x)  # which moves no statistics
    except (TypeError, RuntimeError, ValueError, IndexError, AttributeError) as error:
        raise ValueError(f"recipe network.{name} {entry}: on an input of {tuple(x.shape)}: "
                         f"{str(error).splitlines()[0]}") from None
