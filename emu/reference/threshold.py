"""The gradient of a threshold that is learned: of the binary point of a cast, as TQT has it."""

from __future__ import annotations

from emu.number import Cast
from emu.reference.casts import cast, passes


def threshold_step(x: int, frac: int, to: Cast, rand: int | None = None) -> int:
    """How the cast of x moves with its range 2^log2_t: dq / (ln 2 dlog2_t), q being its result.

    With s the step of `to`: s * (q / s - x / s) where the gradient of x passes, what rounding has
    added, and else the bound at which x saturated, all straight through ceil and rounding (Jain et
    al., Trained quantization thresholds, arXiv 1903.08066, equation 6). In units of
    2^-max(frac, to.format.frac).
    """
    fine = max(frac, to.format.frac)
    code = cast(x, frac, to, rand) << fine - to.format.frac
    return code - (x << fine - frac) if passes(x, frac, to, rand) else code


def threshold_grad(x: list[int], frac: int, grad: list[int], to: Cast,
                   rand: list[int | None] | None = None) -> int:
    """dL / (ln 2 dlog2_t) for the gradients `grad` of the casts of x: an exact sum.

    In units of 2^-(max(frac, to.format.frac) + the frac of grad). Times ln 2, once, in float, it is
    what trains the threshold.

    >>> threshold_grad([10, 5, -9], 2, [1, 1, 1], Cast.parse("s3f1 ties_even sat"))
    6
    """
    rand = rand or [None] * len(x)
    return sum(g * threshold_step(value, frac, to, r)
               for g, value, r in zip(grad, x, rand, strict=True))
