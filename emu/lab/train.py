"""Train a recipe bit-exactly, into a run folder that can be resumed, compared and recorded."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from emu import engine, golden, nn
from emu.lab import stages
from emu.lab.data import Images, load
from emu.lab.hardware import fitted, merged, prepared
from emu.lab.losses import LOSSES, Loss
from emu.lab.models import plain
from emu.lab.recipe import Recipe, Training
from emu.lab.record import Recorder
from emu.lab.run import Run, write
from emu.lab.telemetry import Telemetry
from emu.nn.backend import Backend

Progress = Callable[..., None]  # what runs, and optionally how many of how many are done


class Machine(NamedTuple):
    """A fixed model with what changes while it trains."""

    model: torch.nn.Module
    optimizer: nn.SGD
    backend: Backend
    loss: Loss
    ranges: stages.Ranges  # what the first of two stages has measured
    thresholds: torch.optim.Adam | None = None  # which moves float masters: the learned log2_t

    @classmethod
    def build(cls, recipe: Recipe, images: Images, computes: type[Backend] = Backend) -> Machine:
        """The recipe's network on its hardware, as it is before the first step."""
        backend, start = computes(recipe.seed), recipe.start and Path(recipe.start)
        model = float_model(recipe, images)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            config = prepared(recipe.hardware, model)
        nn.fix(model, config, backend, stages.strategies(start) if start else None,
               recipe.software is not None)
        if start:
            stages.begin(model, start)
        machine = cls(model, nn.SGD(model, recipe.training.lr, recipe.training.momentum), backend,
                      LOSSES[recipe.loss](recipe.hardware, backend), {})
        if recipe.thresholds is None:
            return machine
        with torch.no_grad():  # functions, as additions, have their thresholds once they have run
            model.eval()(torch.from_numpy(images.train_x[:1]))
        learned = list(dict.fromkeys(nn.thresholds(model.train()).values()))
        if not learned:
            raise ValueError("recipe thresholds: the hardware learns none in a module of its own; "
                             "give a setting such as 's8 learned ties_even sat'")
        return machine._replace(thresholds=torch.optim.Adam(learned, recipe.thresholds.lr))

    @property
    def in_software(self) -> bool:
        """Whether backward passes compute in float."""
        return any(layer.hardware.float_backward for layer in nn.layers(self.model).values())

    def enter(self, recipe: Recipe, epoch: int) -> None:
        """The learning rate and the hardware of an epoch."""
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.training.rate(epoch)
        hardware = recipe.hardware
        for _, phase in recipe.training.until(epoch):
            hardware = merged(hardware, phase.get("hardware", {}))
        if hardware is not recipe.hardware:
            nn.reconfigure(self.model, fitted(hardware, self.model))
        if recipe.thresholds:
            freeze = recipe.thresholds.freeze
            nn.freeze_thresholds(self.model, frozen=freeze is not None and epoch >= freeze)

    def state(self) -> dict:
        """Everything the next step depends on."""
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
                 "loss": self.loss.state_dict()}
        if self.ranges:
            state["ranges"] = self.ranges
        if self.thresholds:
            state["thresholds"] = self.thresholds.state_dict()
        return state

    def load(self, state: dict) -> None:
        """Continue from `state`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.loss.load_state_dict(state.get("loss", {}))
        self.ranges.update(state.get("ranges", {}))
        if self.thresholds:
            self.thresholds.load_state_dict(state["thresholds"])


def train(recipe: Recipe, out: Path, resume: bool = False, record: Path | None = None,
          progress: Progress | None = None, computes: type[Backend] = Backend) -> Run:
    """Train on the hardware and leave a run folder; with `record` also one step as vectors.

    Bit-exact: the weights are the same bytes for any number of threads, and for a run that was
    stopped after an epoch and resumed, and for whatever backend `computes` them. Raises ValueError
    for a folder that is already a run (unless `resume`), and for a recipe whose hardware is not
    complete.
    """
    images = load(recipe.data)
    machine = Machine.build(recipe, images, computes)
    _rehearse(recipe, images, record, computes)
    run = Run.resume(out, recipe) if resume else Run.create(out, recipe, machine.model)
    if run.epochs:
        machine.enter(recipe, run.epochs - 1)
        machine.load(run.state())
    elif recipe.thresholds:
        _begin(recipe, images, machine, progress)
    for epoch in range(run.epochs, recipe.training.epochs):
        metrics, telemetry = _epoch(recipe, images, machine, epoch, progress)
        run.add_epoch(metrics, telemetry, machine.state())
    if recipe.software is not None:
        for name, content in stages.hand_over(machine.model, machine.ranges,
                                              recipe.software).items():
            write(out / name, content)
    run.finish(machine.model)
    if record is not None:
        record_step(recipe, images, machine, run.epochs, record, progress)
    return run


def _rehearse(recipe: Recipe, images: Images, record: Path | None, computes: type[Backend]
              ) -> None:
    """One step on two images, so that what is refused is refused before anything is written."""
    machine = Machine.build(recipe, images, computes)
    if record is not None:
        golden.check_replaceable(record)
        recorder = _recorded(machine)
    machine.model.train()
    _step(machine, torch.from_numpy(images.train_x[:2]), torch.from_numpy(images.train_y[:2]))
    if recipe.software is not None:
        stages.check(machine.model)
    if record is not None:
        golden.check_traces(recorder.traces)


def float_model(recipe: Recipe, images: Images) -> torch.nn.Module:
    """The recipe's network in float64 for these images."""
    return recipe.float_model(images.train_x.shape[1:], int(images.train_y.max()) + 1)


def float_accuracy(recipe: Recipe, progress: Progress | None = None) -> float:
    """Test accuracy of the same network, data and schedule in plain float64 torch."""
    images = load(recipe.data)
    first = recipe.thresholds and recipe.thresholds.pretrain
    model = _trained_in_float(recipe, images, first or recipe.training, progress)
    return _accuracy(model, images.test_x, images.test_y)


def _trained_in_float(recipe: Recipe, images: Images, training: Training,
                      progress: Progress | None) -> torch.nn.Module:
    """The recipe's network, trained in plain float64 torch."""
    model = plain(float_model(recipe, images))
    optimizer = torch.optim.SGD(model.parameters(), training.lr, training.momentum)
    recipe = replace(recipe, training=training)
    for epoch in range(training.epochs):
        for group in optimizer.param_groups:
            group["lr"] = training.rate(epoch)
        for x, y in _batches(recipe, images, epoch, progress, "float epoch"):
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def _begin(recipe: Recipe, images: Images, machine: Machine, progress: Progress | None) -> None:
    """Give a machine that learns thresholds its first weights, and calibrate it."""
    given = recipe.thresholds
    if given.pretrain:
        state = _trained_in_float(recipe, images, given.pretrain, progress).state_dict()
        machine.model.load_state_dict(state, strict=False)
    elif given.weights:
        try:
            state = torch.load(given.weights, weights_only=True)
            wrong = machine.model.load_state_dict(state, strict=False)
        except (OSError, RuntimeError, pickle.UnpicklingError) as error:
            raise ValueError(f"recipe thresholds.weights {given.weights}: no state of this network "
                             f"({str(error).splitlines()[0]})") from None
        lost = [key for key in wrong.missing_keys if not key.endswith("_log2_t")]
        if lost or wrong.unexpected_keys:
            raise ValueError(f"recipe thresholds.weights {given.weights}: "
                             f"{(lost + wrong.unexpected_keys)[0]} is in the "
                             f"{'network' if lost else 'file'} alone")
    batches = (x for x, _ in _batches(recipe, images, 0, None, ""))
    nn.calibrate(machine.model, islice(batches, given.batches), given.weight, given.bias,
                 given.acti)


def _recorded(machine: Machine) -> Recorder:
    """Let a recorder compute for `machine`, its loss too, from here on."""
    recorder = Recorder(machine.backend)
    nn.use_backend(machine.model, recorder)
    nn.use_backend(machine.loss, recorder)
    return recorder


def record_step(recipe: Recipe, images: Images, machine: Machine, epoch: int, out: Path,
                progress: Progress | None = None) -> Path:
    """Write the step that would come next, the first of `epoch`, as golden vectors.

    Its batch is cut to `record_batch` images.
    """
    copy = Machine.build(recipe, images)
    copy.enter(recipe, epoch - 1)
    copy.load(machine.state())
    copy.enter(recipe, epoch)
    recorder = _recorded(copy)
    x, y = next(_batches(recipe, images, epoch, None, ""))
    x, y = x[:recipe.record_batch], y[:recipe.record_batch]
    copy.model.train()
    _step(copy, x, y)
    about = {"about": f"training step {machine.backend.step} of: {recipe.about}",
             "batch": len(x), "seed": recipe.seed, "made": dict(recorder.tables)}
    if recipe.loss == "host":
        about["made"]["loss"] = "cross-entropy on the host, in float64"
    if copy.thresholds:
        about["made"]["thresholds"] = "log2_t by Adam on the host, in float"
    return golden.write_step(out, recorder.traces, about, progress)


def _epoch(recipe: Recipe, images: Images, machine: Machine, epoch: int,
           progress: Progress | None) -> tuple[dict, Telemetry]:
    """One pass over the training data: the metrics of the epoch, and what the hardware did."""
    machine.model.train()
    machine.enter(recipe, epoch)
    losses, telemetry = [], Telemetry()
    steps = recipe.training.epochs * -(-len(images.train_x) // recipe.training.batch)
    measured = steps - recipe.software.iterations if recipe.software else steps
    for x, y in _batches(recipe, images, epoch, progress, f"epoch {epoch + 1}"):
        step = machine.backend.step
        watch = recipe.monitor > 0 and step % recipe.monitor == 0
        with engine.monitor() if watch else nullcontext() as seen:
            losses.append(_step(machine, x, y))
        telemetry.add(step, seen)
        if step == max(measured, 0):
            machine.ranges.clear()  # a run that was continued has measured before
        if step >= measured:
            stages.measure(machine.model, machine.ranges)
    metrics = {"epoch": epoch + 1, "lr": machine.optimizer.param_groups[0]["lr"],
               "loss": float(np.mean(losses)),
               "test_accuracy": _accuracy(machine.model, images.test_x, images.test_y),
               "steps": telemetry.steps, "watched": telemetry.watched,
               "counts": telemetry.counts()}
    return metrics, telemetry


def _step(machine: Machine, x: torch.Tensor, y: torch.Tensor) -> float:
    with nn.audit():
        loss = machine.loss(machine.model(x), y)
        machine.optimizer.zero_grad()
        if machine.thresholds:
            machine.thresholds.zero_grad()
        with nn.host() if machine.in_software else nullcontext():
            loss.backward()
        machine.optimizer.step()
    if machine.thresholds:
        machine.thresholds.step()
    return loss.item()


def _batches(recipe: Recipe, images: Images, epoch: int, progress: Progress | None, what: str):
    """The training data of one epoch in an order that depends on seed and epoch only."""
    order = np.random.default_rng([recipe.seed, epoch]).permutation(len(images.train_x))
    for start in range(0, len(order), recipe.training.batch):
        chosen = order[start:start + recipe.training.batch]
        yield torch.from_numpy(images.train_x[chosen]), torch.from_numpy(images.train_y[chosen])
        if progress:
            progress(what, start + len(chosen), len(order))


@torch.no_grad()
def _accuracy(model: torch.nn.Module, x: np.ndarray, y: np.ndarray) -> float:
    model.eval()
    right = sum(int((model(torch.from_numpy(x[i:i + 500])).argmax(1).numpy() == y[i:i + 500]).sum())
                for i in range(0, len(x), 500))
    return right / len(x)
