"""Fix modules: torch modules that quantise their parameters and buffers in each forward.

Masters stay registered; the quantised tensor stands before its master as an attribute of the
instance until something moves, copies or saves the module.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping

import torch

from emu.compat.nics_fix_pt import configs
from emu.compat.nics_fix_pt.hardware import Binding, Border, in_hardware, mac_of
from emu.compat.nics_fix_pt.quant import active, fixed
from emu.compat.nics_fix_pt.scopes import defaults_of
from emu.compat.nics_fix_pt.shadow import Shadow, called, moved

registry: dict[str, type[FixModule]] = {}  # the classes of `nn_fix`, by name


class FixMeta(type):
    """The metaclass of fix modules; subclasses keep their own names."""


class FixModule(torch.nn.Module, metaclass=FixMeta):
    """What every fix module has: configurations of its data and gradients, and their scales.

    `nf_fix_params` and `nf_fix_params_grad` are the dicts that were given, by reference. The scale
    of `name` is also the buffer `<name>_fp_scale` (`<name>_grad_fp_scale`), the same tensor.
    `nf_clipped` counts, by name, the codes that two's complement clipped; `nf_place` is the path
    and the backend that `hardware.use_backend` gave.
    """

    results: tuple[str, ...] = ()  # what is configured and is neither parameter nor buffer

    def __init__(self, *args, **kwargs):
        kwargs = {**defaults_of(type(self)), **kwargs}
        data, grad = kwargs.pop("nf_fix_params", None), kwargs.pop("nf_fix_params_grad", None)
        grad = {} if grad is None else grad
        configs.check(data, f"{type(self).__name__} nf_fix_params")
        configs.check(grad, f"{type(self).__name__} nf_fix_params_grad")
        super().__init__(*args, **kwargs)
        self.nf_fix_params, self.nf_fix_params_grad = data, grad
        self.nf_clipped, self.nf_place = Counter(), None
        for name, is_grad in [*((name, False) for name in data), *((name, True) for name in grad)]:
            owner, leaf = self._owner(name)
            if name not in self.results and (owner is None or (leaf not in owner._parameters and (
                    is_grad or leaf not in owner._buffers))):
                warnings.warn(f"{type(self).__name__}: {name!r} is configured and is no parameter"
                              + ("" if is_grad else " or buffer") + " of it", stacklevel=2)
                owner, leaf = self, name.replace(".", "_")
            cfg = self._configs(is_grad)[name]
            if "scale" in cfg:
                cfg["scale"] = configs.scale_tensor(cfg["scale"])
                owner.register_buffer(_key(leaf, is_grad), cfg["scale"])

    def _configs(self, is_grad: bool) -> dict:
        return self.nf_fix_params_grad if is_grad else self.nf_fix_params

    def _owner(self, name: str) -> tuple[torch.nn.Module | None, str]:
        """The module that holds a tensor of dotted name, None where there is none; its own name."""
        path, _, leaf = name.rpartition(".")
        try:
            return self.get_submodule(path), leaf
        except AttributeError:
            return None, leaf

    def _scales(self) -> Iterator[tuple[dict, torch.nn.Module, str]]:
        """Every configuration that has a scale, with the module and the key of its buffer."""
        for is_grad in (False, True):
            for name, cfg in self._configs(is_grad).items():
                owner, leaf = self._owner(name)
                if owner is not None and _key(leaf, is_grad) in owner._buffers:
                    yield cfg, owner, _key(leaf, is_grad)

    def _config(self, name: str, is_grad: bool) -> dict:
        """A configuration whose scale is the registered buffer."""
        cfg = self._configs(is_grad).get(name, {})
        if "scale" in cfg:
            owner, leaf = (self, name) if "." not in name else self._owner(name)
            buffer = owner._buffers.get(_key(leaf, is_grad)) if owner is not None else None
            if buffer is not None and buffer is not cfg["scale"]:
                if getattr(self, "_is_replica", False):  # of DataParallel: the dict is shared
                    return {**cfg, "scale": buffer}
                cfg["scale"] = buffer
        return cfg

    def load_configs(self, values: Mapping, is_grad: bool) -> None:
        """Write plain configurations into those that there are; a new name gets its own."""
        live = self._configs(is_grad)
        for name, cfg in values.items():
            mine = live.setdefault(name, {})
            if "scale" in mine:
                mine["scale"] = self._config(name, is_grad)["scale"]
            configs.write(mine, cfg)
            owner, leaf = self._owner(name)
            if "scale" in mine and owner is not None and _key(leaf, is_grad) not in owner._buffers:
                owner.register_buffer(_key(leaf, is_grad), mine["scale"])

    def set_methods(self, method: int | Mapping | None, is_grad: bool) -> None:
        """One method for all data, or {datum: method} for those; None changes nothing."""
        live = self._configs(is_grad)
        if not isinstance(method, Mapping):
            method = {} if method is None else dict.fromkeys(live, method)
        for name, each in method.items():
            assert name in live, (f"{type(self).__name__} has no configuration of {name!r}; it has "
                                  + ", ".join(live))
            if each is None or "method" not in live[name]:
                continue
            if isinstance(live[name]["method"], torch.Tensor):
                live[name]["method"].data.fill_(each)
            else:
                live[name]["method"] = each

    def quantized(self, name: str, tensor: torch.Tensor, overrides: Mapping,
                  hardware: bool = False) -> torch.Tensor:
        """A tensor by the configurations of `name` and those that a call gave, for a MAC or not."""
        data, grad = self._config(name, False), self._config(name, True)
        data = {**data, **overrides.get(f"{name}_fix", {})}
        grad = {**grad, **overrides.get(f"{name}_grad_fix", {})}
        if hardware:
            data, grad = in_hardware(data, name), in_hardware(grad, f"{name}_grad")
        return fixed(tensor, data, grad, name, self.nf_clipped)[0]

    def mac(self, overrides: Mapping):
        """What this call's weight has as "mac"; None where it computes in float."""
        mac = mac_of(self.nf_fix_params)
        if mac is None or not active({**self.nf_fix_params.get("weight", {}),
                                      **overrides.get("weight_fix", {})}):
            return None
        return mac

    def binding(self, base: type) -> Binding:
        """The module's place on the engine."""
        if "_nf_binding" not in self.__dict__:
            path, backend = self.nf_place or (type(self).__name__.lower(), None)
            self.__dict__["_nf_binding"] = Binding(base, path, backend)
        return self.__dict__["_nf_binding"]

    def forward(self, inputs, *args, **kwargs):
        """The base module's forward on quantised parameters and buffers.

        `inputs` is its first argument, or a dict with that as "inputs" and configurations for this
        call as "<name>_fix" and "<name>_grad_fix".
        """
        inputs, overrides = called(inputs)
        mac = self.mac(overrides)
        names = dict.fromkeys([*self.nf_fix_params, *self.nf_fix_params_grad])
        names.update(dict.fromkeys(key.removesuffix("_fix").removesuffix("_grad")
                                   for key in overrides))
        if mac is not None:
            names.update(dict.fromkeys(self._parameters))
        used = [found for name in names
                if (found := self._use(name, overrides, mac is not None)) is not None]
        try:
            if mac is None:
                return super().forward(inputs, *args, **kwargs)
            binding = self.binding(type(self))
            binding.ready(mac, inputs, {name: getattr(self, name) for name in self._parameters
                                        if getattr(self, name) is not None}, self.nf_clipped)
            return binding.run(self, super().forward, inputs, *args, **kwargs)
        finally:
            for each in used:
                each.close(self)

    def _use(self, name: str, overrides: Mapping, hardware: bool) -> Shadow | None:
        """Put the quantised tensor of a name before its master; None for what is not there."""
        owner, leaf = (self, name) if "." not in name else self._owner(name)
        if owner is None:
            return None
        master, is_buffer = owner._parameters.get(leaf), False
        if master is None:
            master = owner._buffers.get(leaf)
            is_buffer = master is not None
        if master is None and getattr(owner, "_is_replica", False):
            master = owner._former_parameters.get(leaf)
        if master is None or not master.is_floating_point():
            return None
        out = self.quantized(name, master, overrides, hardware)
        if out is master and hardware and not is_buffer and master.requires_grad:
            out = Border.apply(master)
        if out is master:
            owner.__dict__.pop(leaf, None)
            return None
        owner.__dict__[leaf] = out
        return Shadow(owner, leaf, master, out) if is_buffer or owner is not self else None

    def shadows(self) -> list[str]:
        """The attributes that stand before a master, or hold a result."""
        return [name for name in self.__dict__ if name in self._parameters or name in self._buffers
                or name in (*self.results, "_nf_binding")]

    def _drop_shadows(self) -> None:
        for name in self.shadows():
            del self.__dict__[name]

    def __getstate__(self):
        shadows = {name: self.__dict__.pop(name) for name in self.shadows()}
        try:
            parent = getattr(super(), "__getstate__", None)  # Python 3.10 has no default
            return dict(parent() if parent else self.__dict__)
        finally:
            self.__dict__.update(shadows)

    def __reduce_ex__(self, protocol):
        cls = type(self)
        made = vars(cls).get("_emu_base")  # a class that is registered where it is loaded
        return _rebuilt, ((made, cls.__name__) if made else (cls, None)), self.__getstate__()

    def _apply(self, fn, recurse: bool = True):
        """As torch's, but a scale stays the tensor that configurations share, and its dtype."""
        self._drop_shadows()
        before = [(cfg, owner, key, owner._buffers[key]) for cfg, owner, key in self._scales()]
        super()._apply(fn, recurse)
        for cfg, owner, key, old in before:
            cfg["scale"] = owner._buffers[key] = moved(old, owner._buffers[key])
        return self

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        """As torch's, for scales of any shape."""
        state_dict = dict(state_dict)
        for _, owner, key in self._scales():
            path = next((f"{name}." for name, each in self.named_modules() if each is owner and
                         name), "")
            value, scale = state_dict.get(prefix + path + key), owner._buffers[key]
            if isinstance(value, torch.Tensor) and value.dim() <= 2:
                value = state_dict[prefix + path + key] = value.reshape(value.shape or 1)
                if value.shape != scale.shape:
                    scale.data = scale.new_zeros(value.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)
        for cfg, owner, key in self._scales():
            cfg["scale"] = owner._buffers[key]
        self._drop_shadows()


def _key(leaf: str, is_grad: bool) -> str:
    return f"{leaf}_grad_fp_scale" if is_grad else f"{leaf}_fp_scale"


def _rebuilt(cls: type, name: str | None) -> FixModule:
    if name is not None:
        register_fix_module(cls, name)
        cls = registry[name]
    return cls.__new__(cls)


def register_fix_module(cls: type[torch.nn.Module], register_name: str | None = None) -> None:
    """Make `nn_fix.<name of cls>_fix` (or `register_name`), whose parameters are quantised.

    It takes the arguments of `cls`, and by keyword `nf_fix_params` and `nf_fix_params_grad`.
    Registering a class again keeps its fix class; another of that name replaces the one there.
    """
    if not (isinstance(cls, type) and issubclass(cls, torch.nn.Module)):
        raise ValueError(f"register_fix_module {cls!r}: needs a class of torch.nn.Module")
    name = register_name or f"{cls.__name__}_fix"
    old = registry.get(name)
    if old is not None and cls in old.__bases__:
        return
    if issubclass(cls, FixModule):
        registry[name] = cls
        return
    meta = FixMeta if type(cls) is type else type("FixMeta", (FixMeta, type(cls)), {})
    registry[name] = meta(name, (FixModule, cls), {
        "__module__": "emu.compat.nics_fix_pt.nn_fix", "__qualname__": name, "_emu_base": cls,
        "__doc__": f"{cls.__module__}.{cls.__qualname__} on quantised parameters and buffers."})
