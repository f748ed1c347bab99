"""What a fixed model's `state_dict` holds beside parameters, and the model as integer codes.

The extra state of a module says which formats its tensors have, which binary points its rules have
chosen, and where its random draws are: enough for a fresh model to continue bit for bit. It is a
mapping of plain values under the key `<path>._extra_state`. Without those keys a state is a plain
float checkpoint: its parameters are brought onto the grid of their masters.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import fields

import torch

from emu.engine import narrowed
from emu.kind import AnyCast
from emu.nn import border
from emu.nn.hardware import Hardware
from emu.nn.layer import Layer
from emu.nn.scope import Region
from emu.number import Cast, Format, Overflow
from emu.rule import Rule
from emu.spec import LayerSpec

KEY = "_extra_state"  # torch's
SCHEMA = 1
BEYOND = {Overflow.WRAP: "wrap", Overflow.SAT: "saturate", Overflow.SAT_SYM: "saturate",
          Overflow.SAT_ZERO: "become 0"}
INTEGERS = {torch.int64: "s64", torch.int32: "s32", torch.int16: "s16", torch.int8: "s8",
            torch.uint8: "u8", torch.bool: "u1"}  # buffers that are codes already
EXPONENT = Format(16)  # of a threshold's range


def saved(region: Region, own) -> dict | None:
    """The state of a region's hardware, and the model's `own`; None where there is neither."""
    parts = _saved_parts(region)
    if not parts and own is None:
        return None
    backend = region.hardware.backend
    return {"schema": SCHEMA, "generator": {"seed": backend.seed, "step": backend.step},
            "hardware": parts, "model": own}


def _saved_parts(region: Region) -> dict:
    layers = {}
    for name, layer in region.parts.items():
        formats, calls = _formats(layer), _calls(layer)
        if formats or layer.fracs or calls or not layer.exact:
            layers[name] = {"kind": layer.kind, "uses": list(layer.uses),
                            "channels": layer.channels, "formats": formats,
                            "binary_points": dict(layer.fracs), "calls": calls,
                            "exact": layer.exact}
    regions = {name: kept for name, inner in region.regions.items()
               if (kept := _saved_parts(inner))}
    if not layers and not regions:
        return {}
    return {"alone": region.alone, "layers": layers, "regions": regions}


def _calls(layer: Layer) -> dict[str, int]:
    """How often each of a layer's operations has drawn in this step."""
    return {place.name: count for place, count in layer.backend.calls.items()
            if count and place.training and place.site == layer.site}


def _formats(layer: Layer) -> dict[str, str]:
    """The format of each tensor, `s8` where a rule chooses the binary point."""
    found = {}
    for field in fields(LayerSpec):
        value = getattr(layer.spec, field.name) or getattr(layer.evaluation, field.name)
        if isinstance(value, AnyCast):
            found[field.name] = str(value.format)
        elif isinstance(value, Rule):
            found[field.name] = str(value.operand).partition("f")[0]
    if layer.spec.update is not None:
        found["master"] = str(layer.spec.update.weight.format)
    return found


def is_ours(state) -> bool:
    """Whether an extra state is that of a fixed module."""
    return isinstance(state, Mapping) and "schema" in state and "generator" in state


def check(regions: list[tuple[str, Region]], state_dict: Mapping) -> None:
    """Raise ValueError unless the extra states fit the regions, which are given by their prefix."""
    generators: dict[int, dict] = {}
    for prefix, region in regions:
        state = state_dict.get(prefix + KEY)
        if not is_ours(state):
            continue
        if state["schema"] != SCHEMA:
            raise ValueError(f"{prefix}{KEY}: the state has schema {state['schema']!r}, this emu "
                             f"reads {SCHEMA}; load it with the version that wrote it")
        first = generators.setdefault(id(region.hardware.backend), state["generator"])
        if first != state["generator"]:
            raise ValueError(f"{prefix}{KEY}: the generator is at {state['generator']}, that of "
                             f"another layer at {first}; the state is put together from several")
        try:
            scratch = Region(region.path, region.kinds, region.hardware)  # a refusal adds no layer
            _check_parts(prefix.rstrip("."), scratch, state["hardware"])
        except (KeyError, TypeError, AttributeError):
            raise ValueError(f"{prefix}{KEY}: the state is damaged; load one that state_dict() "
                             "gave") from None


def _check_parts(path: str, region: Region, state: dict) -> None:
    for name, kept in state.get("layers", {}).items():
        layer = _layer(region, name, kept)
        ours = _formats(layer)
        for key, text in kept["formats"].items():
            if key in ours and _differ(text, ours[key]):
                where = ".".join(filter(None, [path, name]))
                raise ValueError(
                    f"layer {where!r}: {key} is {text} in the state and {ours[key]} in this model; "
                    f"build the model with the formats of the state, or leave the keys {KEY} out "
                    "of it to load the values alone")
    for name, inner in state.get("regions", {}).items():
        _check_parts(".".join(filter(None, [path, name])), region.part(name), inner)


def _differ(one: str, two: str) -> bool:
    """Whether two formats differ; one without a binary point says nothing about it."""
    widths = [re.sub("f.*", "", text) for text in (one, two)]
    return widths[0] != widths[1] or ("f" in one and "f" in two and one != two)


def _layer(region: Region, name: str, kept: dict) -> Layer:
    return region.layer(name, kept["kind"], tuple(kept["uses"]), kept["channels"])


def make_layers(region: Region, state: dict) -> None:
    """Make the layers that a state which `check` took has: their thresholds are parameters."""
    for name, kept in state.get("layers", {}).items():
        _layer(region, name, kept)
    for name, inner in state.get("regions", {}).items():
        make_layers(region.part(name), inner)


def restore(region: Region, state: dict) -> None:
    """Bring a region's hardware to a state that `check` took."""
    restore_generator(region.hardware, state)
    restore_layers(region, state)


def restore_generator(hardware: Hardware, state: dict) -> None:
    """Bring the random draws to those of a state."""
    backend = hardware.backend
    backend.seed, backend.step = state["generator"]["seed"], state["generator"]["step"]


def restore_layers(region: Region, state: dict) -> None:
    """Bring a region's layers to a state, and no more of its hardware."""
    _restore_parts(region, state["hardware"])


def _restore_parts(region: Region, state: dict) -> None:
    region.alone = state.get("alone", region.alone)
    for name, kept in state.get("layers", {}).items():
        layer = _layer(region, name, kept)
        layer.fracs, layer.exact = dict(kept["binary_points"]), kept["exact"]
        calls = layer.backend.calls
        for place in [place for place in calls if place.site == layer.site]:
            del calls[place]
        calls.update({layer.place(each, True): count for each, count in kept["calls"].items()})
    for name, inner in state.get("regions", {}).items():
        _restore_parts(region.part(name), inner)


def masters(module: torch.nn.Module, region: Region
            ) -> list[tuple[torch.nn.Parameter, torch.Tensor]]:
    """The parameters of a module and their values in the master format; changes nothing."""
    return [(tensor, _gridded(layer, name, tensor, to, tensor.dtype))
            for name, tensor, layer, to in _in_format(module, region)]


@torch.no_grad()
def put(values: list[tuple[torch.nn.Parameter, torch.Tensor]]) -> None:
    """Give parameters their values."""
    for parameter, value in values:
        parameter.copy_(value)


def _in_format(module: torch.nn.Module, region: Region
             ) -> Iterator[tuple[str, torch.Tensor, Layer, Cast]]:
    """A module's own tensors that live in a format, each with its layer and the cast to it."""
    layer = region.parts.get("")
    if layer is not None and layer.spec.update is not None:
        for name, parameter in module.named_parameters(recurse=False):
            if name not in region.threshold_keys():
                yield name, parameter, layer, layer.spec.update.weight
    if layer is not None and layer.spec.norm is not None:
        for name in ("running_mean", "running_var"):
            buffer, to = getattr(module, name, None), getattr(layer.spec.norm, name)
            if buffer is not None and to is not None:
                yield name, buffer, layer, to


def _gridded(layer: Layer, name: str, value: torch.Tensor, to: Cast, dtype: torch.dtype,
             loading: bool = False) -> torch.Tensor:
    """The value in its format; where it is loaded, a warning says how much of it is outside."""
    label = f"{layer.site}.{name}"
    codes, frac = border.to_codes_for(value, to, label)
    found = layer.backend.cast(layer.place(f"master.{name}", False), codes,
                               border.holding(codes, frac), to)
    if loading and found.outside:
        low, high = (code * to.format.step for code in to.range)
        warnings.warn(f"{label}: {found.outside} of {value.numel()} values are outside "
                      f"{to.format}, {low} to {high}: they {BEYOND[to.overflow]}", stacklevel=2)
    return border.to_tensor(found.codes, to.format, dtype, label)


def on_grid(module: torch.nn.Module, region: Region, state_dict: Mapping, prefix: str,
            loading: bool = False) -> dict[str, torch.Tensor]:
    """A state's values for a module, on their grid; raises ValueError where it lies about them."""
    found = {}
    for name, tensor, layer, to in _in_format(module, region):
        value = state_dict.get(prefix + name)
        if not isinstance(value, torch.Tensor) or value.shape != tensor.shape or (
                not value.is_floating_point()):
            continue  # torch says what is wrong with it
        value = value.detach().cpu().double()
        ours = is_ours(state_dict.get(prefix + KEY))
        gridded = _gridded(layer, name, value, to, tensor.dtype, loading=loading and not ours)
        if ours and not torch.equal(gridded.double(), value):
            raise ValueError(f"{prefix}{name}: off the grid of its master format {to.format}, "
                             f"which the state says it has; leave the keys {KEY} out of it to "
                             "bring its values there")
        found[prefix + name] = gridded
    return found


def fix_state_dict(model: torch.nn.Module) -> dict[str, dict]:
    """Every parameter and buffer of a model as `{codes: integers, format: text}`, by its name.

    A parameter with an update is its master weight; one that its layer casts as w or b is that
    operand, as in evaluation; a learned threshold is the exponent of its range (0 while it is not
    chosen); integers are as they are. Raises ValueError for others that are not
    on the grid of any 62-bit format.
    """
    found = {}
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for name, tensor in _own(module):
            codes, form = _codes_of(module, name, tensor, prefix + name)
            found[prefix + name] = {"codes": torch.from_numpy(narrowed(codes, form)).contiguous(),
                                    "format": str(form)}
    return found


def _own(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that a module itself has in its state."""
    yield from module.named_parameters(recurse=False, remove_duplicate=False)
    for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
        if name not in module._non_persistent_buffers_set:
            yield name, buffer


def _codes_of(module: torch.nn.Module, name: str, tensor: torch.Tensor, label: str):
    if tensor.dtype in INTEGERS:
        return tensor.cpu().numpy(), Format.parse(INTEGERS[tensor.dtype])
    region = getattr(module, "_emu_region", None)
    if region is not None:
        for each, _, _, to in _in_format(module, region):
            if each == name:
                return border.codes_in(tensor, to.format, label), to.format
        if name in region.threshold_keys():
            value = tensor.detach().double()
            return torch.ceil(value).nan_to_num(0.0).long().numpy(), EXPONENT
        layer, operand = region.parts.get(""), {"weight": "w", "bias": "b"}.get(name)
        if layer is not None and operand and layer.cast_of(operand, False) is not None:
            entered = layer.enter(operand, tensor, False)
            return entered.codes, entered.form
    codes, frac = border.to_codes(tensor, label)
    return codes, border.holding(codes, frac)


@torch.no_grad()
def load_fix_state_dict(model: torch.nn.Module, codes: Mapping[str, Mapping]) -> None:
    """Give a model the parameters and buffers that `fix_state_dict` gave.

    Raises ValueError, and changes nothing, where a name, shape or master format is another.
    """
    tensors = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items()
               if isinstance(tensor, torch.Tensor)}
    for name in tensors.keys() ^ codes.keys():
        raise ValueError(f"{name}: is in the {'codes' if name in codes else 'model'} alone; load "
                         "them into the model that gave them")
    masters_of = {}
    for path, module in model.named_modules():
        region = getattr(module, "_emu_region", None)
        masters_of |= {f"{path}.{name}".lstrip("."): to.format
                       for name, _, _, to in (_in_format(module, region) if region else ())}
    values = []
    for name, tensor in tensors.items():
        given, form = codes[name]["codes"], Format.parse(codes[name]["format"])
        if name in masters_of and masters_of[name] != form:
            raise ValueError(f"{name}: codes of {form}, and a master format {masters_of[name]} in "
                             "this model; build it with the formats of the codes")
        if given.shape != tensor.shape:
            raise ValueError(f"{name}: codes {tuple(given.shape)}, and {tuple(tensor.shape)} in "
                             "this model")
        for code in (int(given.min()), int(given.max())) if given.numel() else ():
            if not form.lo <= code <= form.hi:
                raise ValueError(f"{name}: code {code} is outside {form}, {form.lo} to {form.hi}")
        values.append((tensor, given if tensor.dtype in INTEGERS else border.to_tensor(
            given.numpy(), form, tensor.dtype, name)))
    put(values)
