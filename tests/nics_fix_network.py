"""What the tests of `emu.compat.nics_fix` share: its formulas restated, and a small network."""

from fractions import Fraction
from math import floor

import torch
import torch.nn.functional as F
import yaml

from emu.compat import nics_fix as nf

AUTO = {"data_config": {"training": "auto", "not_training": "fixed", "bit_width": 8},
        "gradient_config": {"training": "auto", "bit_width": 8}}
BOTH = {"weight": AUTO, "activation": AUTO}
STAGE1 = {"by_type": {"Conv2D": BOTH, "Dense": BOTH, "ReLU": {"activation": AUTO},
                      "data": {"activation": AUTO}}}


def exponent(values) -> int:
    """ceil(log2(max|x| + 1e-5)), exactly."""
    bound, e = max(abs(Fraction(x)) for x in values) + Fraction(1, 10**5), -64
    while Fraction(2) ** e < bound:
        e += 1
    return e


def q(x: torch.Tensor, width: int, s: int | None = None) -> torch.Tensor:
    """The quantiser: ties to even, two's complement, the range 2^s (None: auto)."""
    values = x.detach().flatten().tolist()
    s = exponent(values) if s is None else s
    step = Fraction(2) ** (s - (width - 1))

    def one(value):
        scaled = Fraction(value) / step
        code = floor(scaled)
        code += (scaled - code > Fraction(1, 2)) or (scaled - code == Fraction(1, 2) and code % 2)
        return float(min(max(code, -2 ** (width - 1)), 2 ** (width - 1) - 1) * step)

    return torch.tensor([one(value) for value in values], dtype=x.dtype).reshape(x.shape)


def configs(items) -> nf.FixedConfigs:
    return nf.parse_cfg_from_str(yaml.safe_dump(items))


def one(mode, width=8, not_training=None):
    """A config of one datum."""
    return nf.FixedConfig.parse({"data_config": {
        "training": mode, "not_training": not_training, "bit_width": width}})


def fix_one(x, config, training=True, scope="one"):
    """A tensor through `quantitize`, and its scope."""
    cfgs = nf.FixedConfigs() if isinstance(scope, str) else scope.fixed_config
    with nf.fixed_scope(scope, cfgs) as (scope, phase, _):
        phase.feed(training)
        return nf.quantitize(x, config, name="x"), scope


def random(*shape, seed=1, scale=1.0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)) * scale


def network(cfgs, scope="net", strategies=None, chain=None, x=None, training=True, seed=0):
    """A small network on an image or a given tensor: (logits, scope, mapping)."""
    x = random(3, 2, 6, 6, seed=4) if x is None else x
    chain = chain or (lambda x: x.Conv2D(4, 3, name="conv").ReLU().MaxPool().Flatten().Dense(
        3, name="fc"))
    torch.manual_seed(7)
    with nf.fixed_scope(scope, cfgs, strategies, seed) as (scope, phase, mapping):
        phase.feed(training)
        data = nf.quantitize(x, cfgs.lookup("data", "data")[1], name="data")
        return chain(nf.wrap(data)).tensor, scope, mapping


def trained(cfgs, scope, steps, optimizer=None, strategies=None, seen=None):
    """The losses of some steps on a fixed batch."""
    x, target, losses = random(24, 2, 6, 6, seed=11), torch.arange(24) % 3, []
    for _ in range(steps):
        y, scope, mapping = network(cfgs, scope, strategies, x=x)
        loss = F.cross_entropy(y, target)
        optimizer = optimizer or torch.optim.SGD(scope.parameters(), 0.125, momentum=0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if seen is not None:
            for name, entry in mapping["weight"].items():
                seen.setdefault(name, []).append(entry["q_grad_scale"].value)
    return losses, scope, mapping
