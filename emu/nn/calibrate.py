"""Where learned thresholds begin: statistics of what their casts meet on a few batches.

Statistics are floats on the host; what follows from one is an integer exponent. Methods, of a
tensor x of `width` bits:

- `max`: the largest |x|;
- `3sd`: |mean| and three standard deviations;
- `entropy`: the range whose cast loses the least information, KL(P || Q) of the magnitudes' P and
  what is left of it, Q (Migacz, 8-bit inference with TensorRT, 2017);
- `entropy_j`: the same by the symmetric KL(P || Q) + KL(Q || P), as TQT has it;
- `ig`: no statistic: 2^0 for weights, 2^(width / 2) for a bias, 2^(width - 1) for activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch

from emu.nn import tape
from emu.nn.modules import layers
from emu.nn.thresholds import log2_of
from emu.value import unknown

BINS, GROUPS = 2048, 128  # of a histogram of magnitudes, and what a candidate range is merged into
TINY = 1e-12  # the least probability
ROLES = {"w": "weight", "b": "bias", "x": "acti", "y": "acti"}


def largest(x: np.ndarray) -> float:
    """The largest magnitude, 0 where there are no values."""
    return float(np.max(np.abs(x), initial=0.0))


def three_sigma(x: np.ndarray) -> float:
    """|mean| and three standard deviations of a sample, of one value its magnitude."""
    return abs(float(x.mean())) + 3 * float(x.std(ddof=1)) if x.size > 1 else largest(x)


def least_divergence(x: np.ndarray, symmetric: bool = False, bins: int = BINS,
                     groups: int = GROUPS) -> float:
    """The range of magnitudes that a cast to `groups` levels changes least, by information.

    Zeros, which every range holds and rectifiers make, are left out. Of a histogram of |x|: for
    each i from `groups` on, P is the first i bins, the tail's mass in the last of them, and Q
    those bins merged into equal groups (the last takes the rest), each spread evenly over its bins.
    The range ends in the middle of the best i.
    """
    top = largest(x)
    if not top:
        return 0.0
    counts = np.histogram(np.abs(x[x != 0]), bins, (0.0, top))[0].astype(np.float64)
    ends = range(min(groups, bins - 1), bins)
    divergence = [_divergence(counts, i, groups, symmetric) for i in ends]
    return (ends[int(np.argmin(divergence))] + 0.5) * top / bins


def _divergence(counts: np.ndarray, i: int, groups: int, symmetric: bool) -> float:
    width = max(i // groups, 1)
    starts = np.arange(0, min(groups * width, i), width)
    sizes = np.diff(np.append(starts, i))
    q = np.repeat(np.add.reduceat(counts[:i], starts) / sizes, sizes)
    p = counts[:i].copy()
    p[-1] += counts[i:].sum()
    p, q = (np.maximum(part / max(part.sum(), TINY), TINY) for part in (p, q))
    return float(((p - q if symmetric else p) * np.log(p / q)).sum())


METHODS: dict[str, Callable[[np.ndarray], float]] = {
    "max": largest, "3sd": three_sigma, "entropy": least_divergence,
    "entropy_j": lambda x: least_divergence(x, symmetric=True)}


def initial(method: str, role: str, x: np.ndarray, width: int) -> float | None:
    """log2_t of a tensor by a method; None where it is all zero. Raises ValueError for another."""
    if method == "ig":
        return {"weight": 0.0, "bias": width / 2, "acti": width - 1.0}[role]
    if method not in METHODS:
        raise unknown("method", method, [*METHODS, "ig"])
    threshold = METHODS[method](x)
    return log2_of(threshold) if threshold else None


def observe(model: torch.nn.Module, batches: Iterable[torch.Tensor]) -> dict[str, np.ndarray]:
    """What every learned cast of a fixed model met on the batches, in evaluation: its values.

    By site and setting, as `emu.nn.thresholds` names them; nothing of the model changes but that
    functions that run for the first time get their thresholds.
    """
    found: dict[str, list[np.ndarray]] = {}

    def keep(layer, setting: str, values: np.ndarray) -> None:
        found.setdefault((id(layer), setting), []).append(values.reshape(-1))

    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), tape.observing(keep):
            for batch in batches:
                model(batch)
    finally:
        for module, mode in training.items():
            module.training = mode
    return {f"{path}.{setting}": np.concatenate(found[id(layer), setting])
            for path, layer in layers(model).items() for setting in layer.threshold_keys
            if (id(layer), setting) in found}


def calibrate(model: torch.nn.Module, batches: Iterable[torch.Tensor], weight: str = "3sd",
              bias: str = "max", acti: str = "entropy_j") -> dict[str, float]:
    """Set every learned threshold of a fixed model by what its cast meets on the batches.

    `weight`, `bias` and `acti` (x and y) are methods; a shared threshold becomes the largest of
    its tensors'. Tensors that are all zero, and sites that did not run, stay as they are. Returns
    log2_t by name. Raises ValueError for an unknown method and a model that learns nothing.
    """
    methods = {"weight": weight, "bias": bias, "acti": acti}
    for role, method in methods.items():
        initial(method, role, np.ones(1), 8)  # refused before anything runs
    values, every, chosen = observe(model, batches), layers(model), {}
    if not any(layer.threshold_keys for layer in every.values()):
        raise ValueError("the model has no learned cast; give a setting such as "
                         "'s8 learned ties_even sat'")
    for name, x in values.items():
        path, _, setting = name.rpartition(".")
        rule, role = every[path].cast_of(setting, True), ROLES[setting]
        log2_t = initial(methods[role], role, x, rule.width)
        if log2_t is not None:
            chosen[name] = log2_t
    best: dict[torch.nn.Parameter, float] = {}
    for name, log2_t in chosen.items():
        path, _, setting = name.rpartition(".")
        threshold = every[path].thresholds[setting]
        best[threshold] = max(log2_t, best.get(threshold, log2_t))
    with torch.no_grad():
        for threshold, log2_t in best.items():
            threshold.fill_(log2_t)
    return chosen
