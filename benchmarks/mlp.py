"""A training step of an MLP 784-256-128-10 in integers, against torch's float32 step.

`python benchmarks/mlp.py`; engine calls alone: eight products that saturate in 24 bits at every
step, the casts between them, and the integer update. The loss gradient is given in both.
"""

import itertools

import numpy as np
import torch
from race import machine, out, race, report

import emu
from emu import Cast, MacSpec, UpdateSpec, engine

BATCH, SIZES = 64, (784, 256, 128, 10)
MAC = MacSpec.parse("{a: s8, b: s8, acc: s24 sat}")
X = Cast.parse("s8f-7 ties_even sat")
ERROR = Cast.parse("s8f-5 ties_even sat")
MASTER = Cast.parse("s8f-8 ties_even sat")  # 16-bit master weights to the 8-bit operand
UPDATE = UpdateSpec.parse({"weight": "s16 ties_even sat", "momentum": "s24 ties_even sat",
                           "grad": "s24 sat", "lr": "u4f10", "mu": "u8f8"})
LR, MU = 3, 230  # codes


def integers(rng):
    """One step on codes."""
    masters = [rng.integers(-2**14, 2**14, shape).astype(np.int16)
               for shape in zip(SIZES[1:], SIZES, strict=False)]
    momenta = [np.zeros(w.shape, np.int32) for w in masters]
    x = rng.integers(0, 128, (BATCH, SIZES[0])).astype(np.int8)
    error = rng.integers(-30, 30, (BATCH, SIZES[-1])).astype(np.int8)

    def step():
        inputs, operands, e = [x], [], error
        for i, master in enumerate(masters):
            operands.append(emu.cast(master, 0, MASTER))
            y = emu.matmul(inputs[-1], operands[-1].T, MAC)
            if i < 2:
                inputs.append(engine.relu(emu.cast(y, 0, X)))
        for i in (2, 1, 0):
            gradient = emu.matmul(e.T, inputs[i], MAC)
            if i:
                back = emu.cast(emu.matmul(e, operands[i], MAC), 0, ERROR)
                e = engine.relu_grad(back, inputs[i])
            updated = engine.sgd(masters[i], momenta[i], gradient, LR, MU, UPDATE)
            masters[i], momenta[i] = updated.weight, updated.momentum

    return step


def floats(rng):
    """The same step in torch float32."""
    layers = [torch.nn.Linear(*shape, bias=False) for shape in itertools.pairwise(SIZES)]
    model = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2])
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    x = torch.from_numpy(rng.random((BATCH, SIZES[0]), np.float32))
    error = torch.from_numpy(rng.random((BATCH, SIZES[-1]), np.float32))

    def step():
        optimizer.zero_grad()
        model(x).backward(error)
        optimizer.step()

    return step


def main() -> None:
    rng = np.random.default_rng(0)
    times = race({"torch float32": floats(rng), "integers": integers(rng)})
    report(f"training step, batch {BATCH}", times, "torch float32", {"integers": 1 / 1.5})


if __name__ == "__main__":
    out.print(machine())
    main()
