"""Networks of fixed-point layers on Python ints, to judge `emu.nn` by.

A second implementation: it knows the definition (`emu.reference`) and the specs, and no engine,
no torch and no numpy. A tensor is nested lists of codes with one binary point.
"""

from collections import Counter
from fractions import Fraction
from math import prod
from random import Random
from typing import NamedTuple

from emu import reference
from emu.number import Cast, Format, Rounding
from emu.rule import Rule


class Grid(NamedTuple):
    """A tensor of values code * 2^-frac: nested lists of codes."""

    codes: list
    frac: int = 0


def flat(x) -> list:
    """The leaves of nested lists, row-major."""
    return [leaf for part in x for leaf in flat(part)] if isinstance(x, list) else [x]


def shape_of(x) -> tuple:
    """The sizes of nested lists."""
    return (len(x), *shape_of(x[0])) if isinstance(x, list) else ()


def shaped(leaves: list, shape: tuple) -> list:
    """Leaves in row-major order as nested lists of `shape`."""
    if len(shape) == 1:
        return list(leaves)
    size = len(leaves) // shape[0]
    return [shaped(leaves[i * size:(i + 1) * size], shape[1:]) for i in range(shape[0])]


def like(leaves, x) -> list:
    """Leaves in the shape of `x`."""
    return shaped(list(leaves), shape_of(x))


def transposed(x: list) -> list:
    """Rows as columns."""
    return [list(column) for column in zip(*x, strict=True)]


def floats(x: Grid) -> list:
    """The values as nested lists of floats; exact up to 53 magnitude bits."""
    return like([float(Fraction(code) / Fraction(2)**x.frac) for code in flat(x.codes)], x.codes)


def some(shape: tuple, reach: int, frac: int, seed: int) -> Grid:
    """Seeded codes from -reach to reach, with both ends and zeros more often than the rest."""
    random = Random(seed)
    return Grid(shaped([random.choice([-reach, reach, 0]) if random.random() < 0.2
                        else random.randint(-reach, reach) for _ in range(prod(shape))], shape),
                frac)


def difference(a: Grid, b: Grid) -> Grid:
    """a - b, exactly."""
    frac = max(a.frac, b.frac)
    return Grid(like([(p << frac - a.frac) - (q << frac - b.frac)
                      for p, q in zip(flat(a.codes), flat(b.codes), strict=True)], a.codes), frac)


class Layer:
    """What every layer has: named casts with their random operands, and the state of its rules."""

    def __init__(self, site: str = "", spec=None, seed: int = 0):
        self.site, self.spec, self.seed = site, spec, seed
        self.step, self.calls, self.fracs = 0, Counter(), {}

    def end_step(self) -> None:
        """The weights were updated."""
        self.step += 1
        self.calls.clear()

    def random(self, name: str, to: Cast, count: int) -> list:
        """The operands of the next cast called `name`."""
        if to.rounding != Rounding.STOCHASTIC:
            return [None] * count
        loads = reference.load_words(self.seed, self.step, self.site, name, self.calls[name])
        self.calls[name] += 1
        return reference.random_operands(count, to.rand_bits, loads)

    def chosen(self, name: str, x: Grid) -> Cast:
        """The cast `name` of the spec; a rule looks at these codes or has seen the last."""
        rule, last = getattr(self.spec, name), self.fracs.get(name)
        if not isinstance(rule, Rule):
            return rule
        chosen = reference.cast_for(rule, flat(x.codes), x.frac, last)
        if rule.constant is not None:
            return chosen
        self.fracs[name] = chosen.format.frac
        return rule.with_frac(last) if rule.previous and last is not None else chosen

    def cast(self, name: str, x: Grid, to: Cast | None = None) -> tuple[Grid, list]:
        """The tensor in its cast, and for each value whether its gradient passes."""
        rule = None if to else getattr(self.spec, name)
        to = to or self.chosen(name, x)
        codes = flat(x.codes)
        rands = self.random(name, to, len(codes))
        pairs = list(zip(codes, rands, strict=True))
        frac = rule.read(to).frac if isinstance(rule, Rule) else to.format.frac
        everywhere = self.spec is not None and self.spec.mask == "all"
        return (Grid(like([reference.cast(c, x.frac, to, r) for c, r in pairs], x.codes), frac),
                [everywhere or reference.passes(c, x.frac, to, r) for c, r in pairs])


def masked(x: list, passes: list) -> list:
    """The codes where gradients pass, else 0."""
    return like([c if p else 0 for c, p in zip(flat(x), passes, strict=True)], x)


class Contraction(Layer):
    """A layer with weights; what it multiplies is up to Linear and Conv2d."""

    def forward(self, x: Grid, w: Grid, b: Grid | None = None) -> Grid:
        """The output; keeps what backward needs."""
        self.x, self.x_passes = self.cast("x", x)
        self.w, self.w_passes = self.cast("w", w)
        result = self.spec.forward.result
        frac = self.x.frac + self.w.frac + result.format.frac
        self.b, preload = None, None
        if b is not None:
            self.b, self.b_passes = self.cast("b", b)
            preload, passes = self.cast("preload", self.b, Cast(
                result.format.with_frac(frac), self.spec.b.rounding, self.spec.b.overflow,
                self.spec.b.rand_bits))
            self.b_passes = [p and q for p, q in zip(self.b_passes, passes, strict=True)]
        y = Grid(self.outputs(preload and preload.codes), frac)
        self.y_passes = [True] * len(flat(y.codes))
        if self.spec.y is not None:
            y, self.y_passes = self.cast("y", y)
        return y

    def backward(self, grad: Grid) -> list[Grid]:
        """The gradients of x, w and, where there was one, b."""
        error, _ = self.cast("error", Grid(masked(grad.codes, self.y_passes), grad.frac))
        spec = self.spec
        grad_x = Grid(masked(self.input_gradients(error.codes), self.x_passes),
                      error.frac + self.w.frac + spec.grad_input.result.format.frac)
        grad_w = Grid(masked(self.weight_gradients(error.codes), self.w_passes),
                      self.x.frac + error.frac + spec.grad_weight.result.format.frac)
        grads = [grad_x, self.cast("grad_w", grad_w)[0]]
        if self.b is not None:
            codes = reference.bias_grad(self.samples(error.codes), spec.grad_bias)
            grad_b = Grid(masked(codes, self.b_passes),
                          error.frac + spec.grad_bias.result.format.frac)
            grads.append(self.cast("grad_b", grad_b)[0])
        return grads


class Linear(Contraction):
    """x (N, in), w (out, in)."""

    def outputs(self, bias):
        return reference.matmul(self.x.codes, transposed(self.w.codes), self.spec.forward, bias)

    def input_gradients(self, error):
        return reference.matmul(error, self.w.codes, self.spec.grad_input)

    def weight_gradients(self, error):
        return transposed(reference.matmul(transposed(self.x.codes), error,
                                           self.spec.grad_weight))

    def samples(self, error):
        return error


class Conv2d(Contraction):
    """x (N, C, H, W), w (O, C/groups, KH, KW)."""

    def __init__(self, site, spec, seed=0, stride=(1, 1), padding=(0, 0), dilation=(1, 1),
                 groups=1):
        super().__init__(site, spec, seed)
        self.geometry = {"stride": stride, "padding": padding, "dilation": dilation,
                         "groups": groups}

    def outputs(self, bias):
        _, _, *size = shape_of(self.x.codes)
        _, _, *kernel = shape_of(self.w.codes)
        out = [(s + 2 * p - d * (k - 1) - 1) // t + 1 for s, k, t, p, d in zip(
            size, kernel, *list(self.geometry.values())[:3], strict=True)]
        codes = reference.conv2d(self.x.codes, self.w.codes, self.spec.forward, bias,
                                 **self.geometry)
        return shaped(codes, (len(self.x.codes), len(self.w.codes), *out))

    def input_gradients(self, error):
        _, _, *size = shape_of(self.x.codes)
        return like(reference.conv2d_grad_input(error, self.w.codes, self.spec.grad_input, size,
                                                **self.geometry), self.x.codes)

    def weight_gradients(self, error):
        _, _, *kernel = shape_of(self.w.codes)
        return like(reference.conv2d_grad_weight(self.x.codes, error, self.spec.grad_weight,
                                                 kernel, **self.geometry), self.w.codes)

    def samples(self, error):
        return error


class ReLU(Layer):
    """max(x, 0); the error passes where x > 0."""

    def forward(self, x: Grid) -> Grid:
        self.x = x
        return Grid(like([reference.relu(c) for c in flat(x.codes)], x.codes), x.frac)

    def backward(self, grad: Grid) -> Grid:
        pairs = zip(flat(grad.codes), flat(self.x.codes), strict=True)
        return Grid(like([reference.relu_grad(e, x) for e, x in pairs], grad.codes), grad.frac)


class Activation(Layer):
    """The casts y, and in backward error."""

    def forward(self, x: Grid) -> Grid:
        y, self.passes = self.cast("y", x)
        return y

    def backward(self, grad: Grid) -> Grid:
        return self.cast("error", Grid(masked(grad.codes, self.passes), grad.frac))[0]


class Flatten(Layer):
    """(N, ...) to (N, features)."""

    def forward(self, x: Grid) -> Grid:
        self.shape = shape_of(x.codes)
        return Grid([flat(sample) for sample in x.codes], x.frac)

    def backward(self, grad: Grid) -> Grid:
        return Grid(shaped(flat(grad.codes), self.shape), grad.frac)


class MaxPool2d(Layer):
    """The first maximum under each window; its pixel gets the error."""

    def __init__(self, kernel, stride, padding=(0, 0)):
        super().__init__()
        self.windows = kernel, stride, padding

    def forward(self, x: Grid) -> Grid:
        *_, height, width = shape_of(x.codes)
        self.size, self.shape = (height, width), pooled_shape(x.codes, *self.windows)
        found = [reference.max_pool2d(plane, *self.windows)
                 for image in x.codes for plane in image]
        self.pixels = [[pixel for _, pixel in plane] for plane in found]
        return Grid(shaped([code for plane in found for code, _ in plane], self.shape), x.frac)

    def backward(self, grad: Grid) -> Grid:
        planes = [flat(plane) for image in grad.codes for plane in image]
        spread = [reference.max_pool2d_grad(plane, pixels, self.size)
                  for plane, pixels in zip(planes, self.pixels, strict=True)]
        return Grid(shaped(spread, self.shape[:2]), grad.frac)


class AvgPool2d(Layer):
    """The sum under each window over its area, in the casts y and error of the spec."""

    def __init__(self, site, spec, kernel, stride, padding=(0, 0), count_include_pad=True):
        super().__init__(site, spec)
        self.windows = kernel, stride, padding
        self.include = count_include_pad

    def forward(self, x: Grid) -> Grid:
        *_, height, width = shape_of(x.codes)
        self.size, self.shape = (height, width), pooled_shape(x.codes, *self.windows)
        # The quotients, rounded but not yet fitted.
        unfitted = Cast(Format(64, self.spec.y.format.frac), self.spec.y.rounding)
        rounded = [code for image in x.codes for plane in image for code in
                   reference.avg_pool2d(plane, x.frac, unfitted, *self.windows, self.include)]
        codes = [reference.fit(code, self.spec.y) for code in rounded]
        self.y_passes = [reference.passes(code, 0, self.spec.y.with_frac(0)) for code in rounded]
        return Grid(shaped(codes, self.shape), self.spec.y.format.frac)

    def backward(self, grad: Grid) -> Grid:
        to = self.spec.error
        error = masked(grad.codes, self.y_passes)
        spread = [reference.avg_pool2d_grad(flat(plane), grad.frac, to, self.size, *self.windows,
                                            self.include)
                  for image in error for plane in image]
        return Grid(shaped(spread, self.shape[:2]), to.format.frac)


def pooled_shape(x: list, kernel, stride, padding) -> tuple:
    """(N, C, OH, OW) of a pooling."""
    batch, channels, *size = shape_of(x)
    return (batch, channels, *((s + 2 * p - k) // t + 1 for s, k, t, p in
                               zip(size, kernel, stride, padding, strict=True)))


class Parameter:
    """A master weight and its momentum, as codes of their formats in the layer's update."""

    def __init__(self, layer: Layer, name: str, weight: list):
        self.layer, self.name, self.spec = layer, name, layer.spec.update
        self.weight, self.momentum = weight, like([0] * len(flat(weight)), weight)

    @property
    def value(self) -> Grid:
        """What the layer sees of it."""
        return Grid(self.weight, self.spec.weight.format.frac)

    def update(self, grad: Grid, lr: float, mu: float) -> None:
        """One step of SGD with momentum."""
        spec, place = self.spec, f"update.{self.name}"
        lr, mu = reference.quantize(lr, spec.lr), reference.quantize(mu, spec.mu)
        grad, _ = self.layer.cast(f"{place}.grad", grad, spec.grad)
        count = len(flat(self.weight))
        operands = zip(flat(self.weight), flat(self.momentum), flat(grad.codes),
                       self.layer.random(f"{place}.momentum", spec.momentum, count),
                       self.layer.random(f"{place}.weight", spec.weight, count), strict=True)
        updated = [reference.sgd(w, m, g, lr, mu, spec, *rands) for w, m, g, *rands in operands]
        self.momentum = like([m for _, m in updated], self.weight)
        self.weight = like([w for w, _ in updated], self.weight)


class Network:
    """Layers in sequence; a layer with weights comes with its parameters by name."""

    def __init__(self, *layers: Layer):
        self.layers = layers
        self.parameters: dict[str, Parameter] = {}

    def load(self, codes: dict[str, list]) -> None:
        """Master codes under the names of a state_dict: `site.weight`, `site.bias`."""
        sites = {layer.site: layer for layer in self.layers}
        for path, weight in codes.items():
            site, _, name = path.rpartition(".")
            self.parameters[path] = Parameter(sites[site], name, weight)

    def values_of(self, layer: Layer) -> list[Grid]:
        """The parameters of one layer: weight, then bias."""
        return [p.value for p in self.parameters.values() if p.layer is layer]

    def forward(self, x: Grid) -> Grid:
        for layer in self.layers:
            x = layer.forward(x, *self.values_of(layer))
        return x

    def train_step(self, x: Grid, target: Grid, lr: float, mu: float) -> None:
        """One step on half the squared error, whose gradient is the difference."""
        grad = difference(self.forward(x), target)
        gradients = {}
        for layer in reversed(self.layers):
            if isinstance(layer, Contraction):
                grad, *gradients[layer] = layer.backward(grad)
            else:
                grad = layer.backward(grad)
        for parameter in self.parameters.values():
            of_weight, of_bias = gradients[parameter.layer]
            parameter.update(of_weight if parameter.name == "weight" else of_bias, lr, mu)
        for layer in self.layers:
            layer.end_step()
