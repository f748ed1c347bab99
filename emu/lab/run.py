"""The run folder: what a training leaves behind, each file written whole or not at all.

config.yaml          the recipe, and the hardware of every layer as it was resolved
metrics.jsonl        one line per epoch: loss, accuracy, and what overflowed in the watched steps
monitor.json         what every operation did in all watched steps, channel by channel
weights.safetensors  master weights and operands as integer codes, their formats in the header
curves.png           loss, accuracy and overflows over the epochs
checkpoint.pt        the state after the last epoch, for --resume

The first of two stages leaves strategy.yaml and start.pt for the second (see `emu.lab.stages`).
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import torch
import yaml
from safetensors.torch import save

from emu import __version__, nn
from emu.engine import narrowed
from emu.lab.recipe import Recipe
from emu.lab.telemetry import Telemetry

CONFIG, METRICS, MONITOR, WEIGHTS, CURVES, CHECKPOINT = (
    "config.yaml", "metrics.jsonl", "monitor.json", "weights.safetensors", "curves.png",
    "checkpoint.pt")


class Run:
    """A run folder, the metrics in it, and what the hardware did."""

    def __init__(self, path: Path, metrics: list[dict], telemetry: Telemetry | None = None):
        self.path, self.metrics, self.telemetry = path, metrics, telemetry or Telemetry()

    @classmethod
    def create(cls, path: Path, recipe: Recipe, model: torch.nn.Module) -> Run:
        """A new run folder; raises ValueError if it exists or cannot be written."""
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ValueError(f"run folder {path}: exists already; --resume continues it, --out "
                             "names another")
        layers = {name: {key: str(value) for key, value in vars(layer.spec).items()
                         if value is not None} for name, layer in nn.layers(model).items()}
        config = {"emu": __version__, "recipe": recipe.as_dict(), "layers": layers}
        try:
            path.mkdir(parents=True, exist_ok=True)
            write(path / CONFIG, yaml.safe_dump(config, sort_keys=False).encode())
        except OSError as error:
            raise ValueError(f"run folder {path}: cannot be written ({error.strerror}); --out "
                             "names another") from None
        return cls(path, [])

    @classmethod
    def resume(cls, path: Path, recipe: Recipe) -> Run:
        """The run in `path`; raises ValueError if there is none, or it is of another recipe."""
        if not (path / CONFIG).is_file():
            raise ValueError(f"run folder {path}: has no {CONFIG} to resume; leave --resume out "
                             "to start")
        try:
            config = yaml.safe_load((path / CONFIG).read_text())
            config["recipe"]["training"]["epochs"] = recipe.training.epochs  # may grow
            kept = _checkpoint(path)
            run = cls(path, json.loads(kept["metrics"]),
                      Telemetry.parse(kept["monitor"]))
        except FileNotFoundError:
            run = cls(path, [])  # stopped before the first epoch's end
        except Exception as error:  # whatever a damaged file makes yaml, json or torch raise
            raise ValueError(f"run folder {path}: {CONFIG} or {CHECKPOINT} is damaged "
                             f"({type(error).__name__}); start again in another folder") from None
        for key, value in recipe.as_dict().items():
            if config["recipe"].get(key) != value:
                raise ValueError(f"run folder {path}: was started with another {key}; resume with "
                                 "that recipe, or start in another folder")
        if run.epochs > recipe.training.epochs:
            raise ValueError(f"run folder {path}: has {run.epochs} epochs already, not "
                             f"{recipe.training.epochs}; ask for as many or more")
        write(path / CONFIG, yaml.safe_dump(config, sort_keys=False).encode())
        run._write_reports()
        return run

    @property
    def epochs(self) -> int:
        """How many epochs are done."""
        return len(self.metrics)

    def state(self) -> dict:
        """The state after the last epoch."""
        return _checkpoint(self.path)["state"]

    def add_epoch(self, metrics: dict, telemetry: Telemetry, state: dict) -> None:
        """Keep what one more epoch gave, and the state after it."""
        self.metrics.append(metrics)
        self.telemetry += telemetry
        buffer = io.BytesIO()
        torch.save({"state": state, "metrics": json.dumps(self.metrics),
                    "monitor": str(self.telemetry)}, buffer)
        write(self.path / CHECKPOINT, buffer.getvalue())
        self._write_reports()

    def _write_reports(self) -> None:
        # What the checkpoint has: a stop between the files leaves no epoch half counted.
        write(self.path / METRICS,
              "".join(json.dumps(line) + "\n" for line in self.metrics).encode())
        write(self.path / MONITOR, str(self.telemetry).encode())

    def finish(self, model: torch.nn.Module) -> None:
        """Write the weights as codes, and the curves."""
        tensors, formats = codes(model)
        # One metadata entry, as safetensors writes several in no defined order.
        write(self.path / WEIGHTS, save(tensors, {"formats": json.dumps(formats)}))
        write(self.path / CURVES, curves(self.metrics))


def write(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, then rename it."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _checkpoint(path: Path) -> dict:
    return torch.load(path / CHECKPOINT, weights_only=True)


@torch.no_grad()
def codes(model: torch.nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Integer tensors and their formats: masters (`fc1.weight`) and MAC operands (`fc1.w`)."""
    tensors, formats, modules = {}, {}, dict(model.named_modules())
    for site, layer in nn.layers(model).items():
        for name, operand in (("weight", "w"), ("bias", "b")):
            parameter = getattr(modules.get(site), name, None)  # functions have none
            if parameter is None:
                continue
            master = nn.master_codes(parameter, layer.spec.update, f"{site}.{name}")
            entered = layer.enter(operand, parameter, training=False)
            for key, array, form in (
                    (f"{site}.{name}", master, layer.spec.update.weight.format),
                    (f"{site}.{operand}", entered.codes, entered.form)):
                tensors[key] = torch.from_numpy(narrowed(array, form)).contiguous()
                formats[key] = str(form)
    return tensors, formats


def curves(metrics: list[dict]) -> bytes:
    """Loss, accuracy and the share of overflowing additions per epoch, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    loss, accuracy, overflow = figure.subplots(1, 3)
    epochs = [line["epoch"] for line in metrics]
    loss.plot(epochs, [line["loss"] for line in metrics])
    loss.set(title="training loss", xlabel="epoch", yscale="log")
    accuracy.plot(epochs, [100 * line["test_accuracy"] for line in metrics])
    accuracy.set(title="test accuracy, %", xlabel="epoch")
    watched = [line for line in metrics if line["watched"]]
    for name in dict.fromkeys(name for line in watched for name in line["counts"]):
        counts = [line["counts"][name] for line in watched]
        if any(count.get("overflowing_steps") for count in counts):
            overflow.plot([line["epoch"] for line in watched],
                          [100 * c["overflowing_steps"] / c["steps"] for c in counts], label=name)
    overflow.set(title="additions that overflowed, %", xlabel="epoch")
    if overflow.lines:
        overflow.set_yscale("log")
        overflow.legend(fontsize="x-small")
    else:
        overflow.text(0.5, 0.5, "none" if watched else "not watched", ha="center",
                      transform=overflow.transAxes)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
