"""All 3 x 3 convolutions of ResNet-20 on 32 images, against torch's float32 convolutions.

`python benchmarks/conv.py`; forward includes the cast of the accumulators to int8.
"""

import numpy as np
import torch
from race import machine, out, race, report
from torch.nn.functional import conv2d

import emu
from emu import Cast, MacSpec

BATCH = 32
LAYERS = [  # channels in and out, output size, stride, how often
    (3, 16, 32, 1, 1), (16, 16, 32, 1, 6), (16, 32, 16, 2, 1), (32, 32, 16, 1, 5),
    (32, 64, 8, 2, 1), (64, 64, 8, 1, 5)]
FORWARD = {  # name: (MAC, at least so many times as fast, forced path)
    "W = 16, saturating": ("{a: s8, b: s8, acc: s16 sat}", 0.85, None),
    "W = 20, saturating": ("{a: s8, b: s8, acc: s20 sat}", 0.5, "step32_native"),
    "W = 20, tracked": ("{a: s8, b: s8, acc: s20 sat}", None, "tracked"),
    "W = 20, wrap": ("{a: s8, b: s8, acc: s20}", 1.5, None)}
GRADIENT = MacSpec.parse("{a: s8, b: s8, acc: s24 sat}")
Y = Cast.parse("s8f-7 ties_even sat")


def codes(rng, shape, deviation, relu=False) -> np.ndarray:
    x = np.clip(np.rint(rng.normal(0, deviation, shape)), -128, 127).astype(np.int8)
    return np.maximum(x, 0) if relu else x


def layer(rng, inputs, outputs, size, stride) -> tuple[dict, dict]:
    """The functions of one layer, to be timed: forward, and both gradients."""
    x = codes(rng, (BATCH, inputs, size * stride, size * stride), 30, relu=inputs > 3)
    w, e = codes(rng, (outputs, inputs, 3, 3), 24), codes(rng, (BATCH, outputs, size, size), 12)
    fx, fw, fe = (torch.from_numpy(v).float() for v in (x, w, e))
    geometry = {"stride": stride, "padding": 1}

    def ours(text, path):
        mac = MacSpec.parse(text)
        return lambda: emu.cast(emu.conv2d(x, w, mac, path=path, **geometry), 0, Y)

    def backward():
        emu.conv2d_grad_input(e, w, GRADIENT, x.shape[2:], path="step32_native", **geometry)
        emu.conv2d_grad_weight(x, e, GRADIENT, 3, path="step32_native", **geometry)

    rest = [0], [stride] * 2, [1] * 2, [1] * 2, False, [0, 0], 1, [True, True, False]
    return ({"torch conv2d": lambda: conv2d(fx, fw, stride=stride, padding=1)} | {
        name: ours(text, path) for name, (text, _, path) in FORWARD.items()},
        {"torch gradients": lambda: torch.ops.aten.convolution_backward(fe, fx, fw, *rest),
         "W = 24, saturating": backward})


def main() -> None:
    rng = np.random.default_rng(0)
    forward, backward = {}, {}
    for inputs, outputs, size, stride, count in LAYERS:
        for total, functions in zip((forward, backward),
                                    layer(rng, inputs, outputs, size, stride), strict=True):
            for name, seconds in race(functions).items():
                total[name] = total.get(name, 0) + count * seconds
    report("ResNet-20, forward with cast", forward, "torch conv2d",
           {name: bar for name, (_, bar, _) in FORWARD.items()})
    report("ResNet-20, input and weight gradients", backward, "torch gradients",
           {"W = 24, saturating": 0.45})


if __name__ == "__main__":
    out.print(machine())
    main()
