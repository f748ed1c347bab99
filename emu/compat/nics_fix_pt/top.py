"""What a model of fix modules can do as a whole: configurations, methods, quantised state."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Mapping

import torch

from emu.compat.nics_fix_pt import configs
from emu.compat.nics_fix_pt.modules import FixModule
from emu.compat.nics_fix_pt.quant import get_int


class FixTopModule(torch.nn.Module):
    """A container with utilities for the fix modules in it, at any depth.

    Each may be called on any other container too: `FixTopModule.set_fix_method(model, FIX_AUTO)`.
    """

    def fix_state_dict(self, destination=None, prefix: str = "", keep_vars: bool = False):
        """The `state_dict`, with the tensors that fix modules used last instead of parameters.

        Before a forward those are the parameters; a `ConvBN_fix` has its folded weight and bias.
        """
        found = self.state_dict(destination=destination, prefix=prefix, keep_vars=keep_vars)
        for path, module in self.named_modules():
            if not isinstance(module, FixModule):
                continue
            before = prefix + (f"{path}." if path else "")
            for name in module.shadows():
                if before + name in found and name not in module._buffers:
                    used = module.__dict__[name]
                    found[before + name] = used if keep_vars else used.detach()
        return found

    def get_fix_configs(self, grad: bool = False, data_only: bool = False) -> dict:
        """The configurations of the data (or gradients) of each child, nested as the model is.

        They are the live dicts; with `data_only` plain numbers, lists and texts, which YAML and
        JSON keep without loss.
        """
        found = {} if data_only else OrderedDict()
        for name, child in self.named_children():
            if not isinstance(child, FixModule):
                found[name] = FixTopModule.get_fix_configs(child, grad, data_only)
            else:
                live = child._configs(grad)
                found[name] = configs.plain(live) if data_only else live
        return found

    def load_fix_configs(self, cfgs: Mapping, grad: bool = False) -> None:
        """Bring the children's configurations to those that `get_fix_configs` gave.

        Values go into the tensors that are there, scales without loss. A fix module that `cfgs`
        does not have keeps its own, with a warning. Raises ValueError for a value that is no
        mapping.
        """
        for name, child in self.named_children():
            if name not in cfgs:
                if any(isinstance(module, FixModule) for module in child.modules()):
                    warnings.warn(f"load_fix_configs: {name!r} is not in the configurations and "
                                  "keeps its own", stacklevel=2)
                continue
            if not isinstance(cfgs[name], Mapping):
                raise ValueError(f"load_fix_configs: {name!r} has {cfgs[name]!r}; needs a mapping "
                                 "as get_fix_configs gives it")
            if isinstance(child, FixModule):
                child.load_configs(cfgs[name], grad)
            else:
                FixTopModule.load_fix_configs(child, cfgs[name], grad)

    def print_fix_configs(self, data_fix_cfg: Mapping | None = None,
                          grad_fix_cfg: Mapping | None = None, prefix_spaces: int = 0) -> None:
        """Print bits, scale and method of each datum (d) and gradient (g); f where it is float."""
        data = FixTopModule.get_fix_configs(self) if data_fix_cfg is None else data_fix_cfg
        grad = FixTopModule.get_fix_configs(self, True) if grad_fix_cfg is None else grad_fix_cfg
        for name in dict.fromkeys([*data, *grad]):
            print(" " * prefix_spaces + name)
            mine = [each.get(name, {}) for each in (data, grad)]
            if any(isinstance(value, Mapping) and _nested(value)
                   for each in mine for value in each.values()):
                FixTopModule.print_fix_configs(self, *mine, prefix_spaces + 2)
                continue
            for part in dict.fromkeys([*mine[0], *mine[1]]):
                texts = [_line(each.get(part)) for each in mine]
                print(" " * (prefix_spaces + 2) + f"{part:<16} d: {texts[0]:<32} g: {texts[1]}")

    def set_fix_method(self, method: int | None = None, method_by_type: Mapping | None = None,
                       method_by_name: Mapping | None = None, grad: bool = False) -> None:
        """Set methods: by name where `method_by_name` has the child, else by type, else `method`.

        `method_by_name` maps a child, or the dotted path of a deeper module, to {datum: method};
        `method_by_type` does so for a class or its name. The data that those leave out keep their
        methods. Raises AssertionError for a datum that a module has no configuration of.
        """
        by_type, by_name = method_by_type or {}, method_by_name or {}
        for name, child in self.named_children():
            if isinstance(child, FixModule):
                given = by_name.get(name, _by_type(by_type, child))
                child.set_methods(method if given is None else given, grad)
            else:
                inner = {path.removeprefix(f"{name}."): each for path, each in by_name.items()
                         if path.startswith(f"{name}.")}
                FixTopModule.set_fix_method(child, method, by_type, {
                    **by_name.get(name, {}), **inner}, grad)

    def clipped_counts(self) -> dict[str, int]:
        """How many codes two's complement clipped where the closed range would not, by datum."""
        return {f"{path}.{name}".lstrip("."): count for path, module in self.named_modules()
                if isinstance(module, FixModule) for name, count in module.nf_clipped.items()}


def _by_type(by_type: Mapping, module: FixModule):
    for cls in type(module).__mro__:
        for key in (cls, cls.__name__):
            if key in by_type:
                return by_type[key]
    return None


def _nested(value: Mapping) -> bool:
    """Whether a mapping holds configurations, and is none itself."""
    return not {"method", "scale", "bitwidth"} & value.keys()


def _line(cfg: Mapping | None) -> str:
    if not cfg:
        return "f"
    known = configs.plain(cfg)
    return (f"bitwidth: {known.get('bitwidth', 'f')}; scale: {_short(known.get('scale', 'f'))}; "
            f"method: {get_int(cfg.get('method', 0))}")


def _short(scale) -> str:
    return "[" + ", ".join(map(_short, scale)) + "]" if isinstance(scale, list) else (
        scale if isinstance(scale, str) else f"{scale:g}")
