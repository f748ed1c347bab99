"""Batch norm folded into the convolution or linear layer before it: one layer with a bias.

    weight' = cast(weight * gamma / std, w)
    bias'   = cast((bias - mean) * gamma / std + beta, b)

gamma, beta, mean and std are the codes that the batch norm uses in evaluation, the weights are
codes of their masters; each quotient is exact and rounded once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from emu import engine
from emu.engine.exact import divide_int
from emu.nn import border
from emu.nn.audit import host
from emu.nn.layer import Codes, Layer
from emu.nn.modules import FixedModule, fixed
from emu.nn.ops import contract, norm
from emu.norm import NormSpec
from emu.norm_casts import ONE
from emu.number import Cast, Format, Overflow, Rounding
from emu.rule import Rule
from emu.spec import LayerSpec

MASTER = Rule(32, rounding=Rounding.TIES_EVEN, overflow=Overflow.SAT)  # of float masters
QUOTIENT = 60  # bits of what is divided
FOLDED = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d)
NORMS = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)


class Frozen(NamedTuple):
    """A batch norm in evaluation: codes (C,), the deviations as whole numbers of std's steps."""

    spec: NormSpec
    gamma: np.ndarray
    beta: np.ndarray
    mean: np.ndarray
    divisors: np.ndarray


class Folded(NamedTuple):
    """A weight and a bias, and their casts."""

    weight: Codes
    bias: Codes
    casts: tuple[Cast, Cast]

    def tensors(self, layer: Layer, dtype: torch.dtype) -> list[torch.Tensor]:
        """Both as grid values."""
        return [border.to_tensor(codes.codes, codes.form, dtype, f"{layer.site}.{name}")
                for codes, name in ((self.weight, "weight"), (self.bias, "bias"))]


def frozen(module: FixedModule) -> Frozen:
    """What a fixed batch norm uses in evaluation."""
    layer, to = module.layer, module.layer.cast_of("x", False)
    if module.running_mean is None:
        raise ValueError(f"layer {layer.site!r}: has no running statistics to fold; use "
                         "track_running_stats=True")
    if not isinstance(to, Cast):
        if to is None or "x" not in layer.fracs:
            raise ValueError(f"layer {layer.site!r}: its x {to} has chosen no binary point yet; "
                             "train it first, or give it a Cast")
        to = to.with_frac(layer.fracs["x"])
    gamma, beta = norm.entered(layer, False, module.weight, module.bias, module.num_features)
    spec = norm.spec_of(layer, norm.casts_of(layer, False), to.format, gamma.form, beta.form,
                        eps=module.eps)
    mean, var = engine.frozen_norm(*norm.stored(
        layer, False, (module.running_mean, module.running_var), spec), spec)
    return Frozen(spec, gamma.codes.astype(np.int64), beta.codes.astype(np.int64), mean,
                  np.array(engine.norm_divisors(var, spec)))


def folded(layer: Layer, weight: torch.Tensor, bias: torch.Tensor | None, at: Frozen) -> Folded:
    """The weight (C, ...) and bias (C,) of a layer and the batch norm after it, as one."""
    of_gamma, of_std = at.spec.gamma.format.frac, at.spec.std.format.frac
    codes, frac = _master(layer, "weight", weight)
    shape = -1, *(1 for _ in codes.shape[1:])
    product, frac = codes * at.gamma.reshape(shape), frac + of_gamma - of_std
    wide = _wide(frac, int(np.abs(product).max(initial=0)))
    quotients = engine.divide(product, at.divisors.reshape(shape), frac, wide).codes
    weights, w = _settled(layer, "w", quotients, wide.format)
    codes, frac = (0 * at.mean, 0) if bias is None else _master(layer, "bias", bias)
    of_bias, of_mean, of_beta = (frac + of_gamma, at.spec.mean.format.frac + of_gamma,
                                 at.spec.beta.format.frac + of_std)
    fine = max(of_bias, of_mean, of_beta)
    sums = [(b * g << fine - of_bias) - (m * g << fine - of_mean) + (a * d << fine - of_beta)
            for b, m, g, a, d in zip(*(x.tolist() for x in (codes, at.mean, at.gamma, at.beta,
                                                            at.divisors)), strict=True)]
    wide = _wide(fine - of_std, max(abs(total) // d for total, d in
                                    zip(sums, at.divisors.tolist(), strict=True)))
    quotients = np.array([divide_int(total, d, fine - of_std, wide) for total, d in
                          zip(sums, at.divisors.tolist(), strict=True)], np.int64)
    biases, b = _settled(layer, "b", quotients, wide.format)
    return Folded(weights, biases, (w, b))


def _wide(frac: int, most: int) -> Cast:
    """The finest cast to odd of numbers up to `most`: what is cast from it is rounded once."""
    return Cast(Format(62, frac + QUOTIENT - max(1, most.bit_length())), Rounding.TO_ODD,
                Overflow.SAT)


def _master(layer: Layer, name: str, values: torch.Tensor) -> tuple[np.ndarray, int]:
    """The codes of a parameter: on the grid of its master weights, or of 32 bits over its range."""
    label, update = f"{layer.site}.{name}", layer.spec.update
    to = MASTER if update is None else update.weight
    if isinstance(to, Rule):
        to = engine.cast_for(to, border.to_numpy(values, label), None)
    codes, frac = border.to_codes_for(values, to, label)
    found = layer.backend.cast(layer.place(f"master.{name}", False), codes,
                               border.holding(codes, frac), to)
    return found.codes.astype(np.int64), to.format.frac


def _settled(layer: Layer, name: str, codes: np.ndarray, form: Format) -> tuple[Codes, Cast]:
    """Quotients, rounded to odd, in the layer's cast `name`, and that cast."""
    to = layer.cast_of(name, False)
    if to is None:
        raise ValueError(f"layer {layer.site!r}: has no {name} for what is folded; the "
                         "configuration must give it a cast such as 's8f4 ties_even sat'")
    if isinstance(to, Rule):
        to = engine.cast_for_codes(to, codes, form.frac, layer.fracs.get(name))
    if to.format.frac + to.rand_bits + 2 > form.frac:
        raise ValueError(f"layer {layer.site!r}: {name} {to} is finer than a quotient, of frac "
                         f"{form.frac}; use a smaller frac")
    found = layer.backend.cast(layer.place(f"fold.{name}", False), codes, form, to)
    return Codes(found.codes, to.format, norm.inside_of(layer, False, found.inside, to)), to


def fold(model: torch.nn.Module, pairs: Iterable[tuple[str, str]] | None = None
         ) -> torch.nn.Module:
    """Fold, in place, every batch norm of a fixed model into the layer before it.

    `pairs` are the names of a convolution or linear layer and of the batch norm that takes its
    output and nothing else; without them, the neighbours in each Sequential, and every `ConvBN`.
    The layer then has integer weights and a bias on the grids of its w and b, the output cast y of
    the batch norm, and the norm is an Identity. Raises ValueError where there is nothing to fold.
    """
    modules = dict(model.named_modules())
    if pairs is None:
        pairs = [(f"{path}.{first}".lstrip("."), f"{path}.{second}".lstrip("."))
                 for path, module in modules.items() if isinstance(module, torch.nn.Sequential)
                 for (first, a), (second, b) in pairwise(module.named_children())
                 if isinstance(a, FOLDED) and isinstance(b, NORMS)]
        pairs += [(path, f"{path}.bn") for path, module in modules.items()
                  if isinstance(module, ConvBN)]
    found = []
    for names in pairs:
        layer, module = (_fixed(modules, *each) for each in zip(names, (FOLDED, NORMS),
                                                                strict=True))
        found.append((names, folded(layer.layer, layer.weight, layer.bias, frozen(module))))
    if not found:
        raise ValueError("the model has no convolution or linear layer with a batch norm right "
                         "behind it in a Sequential; name them as pairs")
    for (name, other), one in found:  # nothing is refused from here on
        _put(model, modules, name, other, one)
    return model


def _fixed(modules: dict, name: str, kinds: tuple[type, ...]) -> FixedModule:
    module = modules.get(name)
    if not isinstance(module, kinds) or not isinstance(module, FixedModule):
        raise ValueError(f"{name!r}: {type(module).__name__} is no fixed "
                         + " or ".join(kind.__name__ for kind in kinds) + "; fold a model of `fix`")
    return module


def _put(model, modules: dict, name: str, other: str, one: Folded) -> None:
    """Give a layer its folded parameters, and take the batch norm away."""
    module, layer = modules[name], modules[name].layer
    weight, bias = one.tensors(layer, module.weight.dtype)
    with torch.no_grad():
        module.weight.copy_(weight)
        if module.bias is None:
            module.bias = torch.nn.Parameter(torch.empty_like(bias))
        module.bias.copy_(bias)
    after = layer if isinstance(module, ConvBN) else modules[other].layer
    layer.become(*(replace(mine, w=one.casts[0], b=one.casts[1], y=theirs.y)
                   for mine, theirs in ((layer.spec, after.spec),
                                        (layer.evaluation, after.evaluation))))
    if isinstance(module, ConvBN):
        del module.bn
        module.__class__ = fixed(torch.nn.Conv2d)
        module._emu_region.parts.pop("fold", None)
    else:
        parent, _, last = other.rpartition(".")
        setattr(model.get_submodule(parent), last, torch.nn.Identity())


class ConvBN(torch.nn.Conv2d):
    """A convolution without bias and its batch norm `bn`, which a fixed model trains folded.

    As a float module it is both, one after the other. Fixed, each forward folds the weights with
    the running statistics and casts them, in training as in evaluation: it is the layer that
    `fold` makes of it, bit for bit. In training the statistics are moved first, by those of the
    unfolded convolution on the hardware; they are constants of the backward pass. All of that is
    exact. What is not is the chain rule through the fold, from the folded weight's gradient to
    weight, gamma and beta: float64 on the host, so the part `fold` says exact=False.
    """

    def __init__(self, *args, eps: float = 1e-5, momentum: float = 0.1, **kwargs):
        super().__init__(*args, **kwargs, bias=False)
        self.bn = torch.nn.BatchNorm2d(self.out_channels, eps, momentum)

    def forward(self, x):
        if not isinstance(self, FixedModule):
            return self.bn(super().forward(x))
        return self._conv_forward(x, *self._folded(x.detach()))

    @torch.compiler.disable
    def _folded(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The weight and bias of this forward; raises ValueError for casts chosen twice."""
        region, layer = self._emu_region, self.layer
        region.layer("fold", "fold", (), None).exact = False
        for name in ("w", "b"):
            to = layer.cast_of(name, self.training)
            if isinstance(to, Rule):
                raise ValueError(f"layer {layer.site!r}: {name} {to} would choose a binary point "
                                 "for the folded values and again for their codes; give it a Cast, "
                                 "or use a Conv2d and a BatchNorm2d")
        with torch._C.DisableTorchFunction():  # what follows is no call of the hardware's table
            if self.training:
                self._observe(x)
            return _Fold.apply(self, self.weight, self.bn.weight, self.bn.bias)

    @torch.no_grad()
    def _observe(self, x: torch.Tensor) -> None:
        """Move the running statistics toward those of the unfolded convolution."""
        own, module, layer = self.layer, self.bn, self.bn.layer
        spec = LayerSpec(x=own.spec.x, w=own.spec.w, forward=own.spec.forward)
        unfolded = Layer(f"{own.site}.statistics", spec, own.hardware, own.channels)
        unfolded.fracs = dict(own.fracs)  # not kept: the folded convolution casts x again
        out = contract.conv2d(unfolded, True, x, self.weight, None, self.stride, self.padding,
                              self.dilation, self.groups)
        codes = layer.enter("x", out, True)
        spec = norm.spec_of(layer, norm.casts_of(layer, True), codes.form, ONE, ONE)
        batch = layer.backend.norm_statistics(layer.place("forward", True), codes.codes, spec)
        module.num_batches_tracked += 1
        momentum = (1 / int(module.num_batches_tracked) if module.momentum is None
                    else module.momentum)
        norm.move(layer, True, (module.running_mean, module.running_var), batch, momentum, spec)


class _Fold(Function):
    """Folded weight and bias; backward is the chain rule with constant statistics, in float64."""

    @staticmethod
    def forward(ctx, module, weight, gamma, beta):
        at = frozen(module.bn)
        one = folded(module.layer, weight, None, at)
        ctx.passes = [codes.passes for codes in one[:2]]
        std, mean = (torch.from_numpy(codes) * to.format.step for codes, to in
                     ((at.divisors, at.spec.std), (at.mean, at.spec.mean)))
        ctx.save_for_backward(weight, gamma, std, mean)
        return tuple(one.tensors(module.layer, weight.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        weight, gamma, std, mean = ctx.saved_tensors
        with host():
            grad, shift = (g.double() if passes is None else g.double() * torch.from_numpy(passes)
                           for g, passes in zip(grads, ctx.passes, strict=True))
            of_gamma = ((grad * weight.double()).sum((1, 2, 3)) - shift * mean) / std
            found = grad * (gamma.double() / std).reshape(-1, 1, 1, 1), of_gamma, shift
            return None, *(value.to(weight.dtype) for value in found)
