"""Functions of one code as tables, and softmax with cross-entropy made of two of them."""

from __future__ import annotations

from emu.number import Cast
from emu.reference.casts import cast, divide
from emu.table import SoftmaxSpec, Table


def table_entries(table: Table) -> list[int]:
    """The memory: the code of `table.y` for each code of `table.x`, from the least on."""
    return [cast(entry, table.exact_frac, table.y) for entry in table.exact]


def lookup(x: int, table: Table) -> int:
    """The entry of one code of `table.x`."""
    if not table.x.lo <= x <= table.x.hi:
        raise ValueError(f"x {x}: outside {table.x}, whose codes go from {table.x.lo} to "
                         f"{table.x.hi}; cast it first")
    return cast(table.exact[x - table.x.lo], table.exact_frac, table.y)


def lookup_grad(error: int, frac: int, x: int, slope: Table, to: Cast, rand: int | None = None
                ) -> int:
    """error * slope[x] in the cast `to`: `slope` is the table of the derivative."""
    return cast(error * lookup(x, slope), frac + slope.y.format.frac, to, rand)


def softmax(x: list[int], spec: SoftmaxSpec, masked: list[bool] | None = None) -> list[int]:
    """The probabilities of one row of logits, as codes of `spec.prob`; 0 where `masked`."""
    masked = masked or [False] * len(x)
    most = max((code for code, out in zip(x, masked, strict=True) if not out), default=0)
    powers = [0 if out else lookup(most - code, spec.exp_table)
              for code, out in zip(x, masked, strict=True)]
    return [power and divide(power, sum(powers), 0, spec.prob) for power in powers]


def cross_entropy(x: list[int], target: int, spec: SoftmaxSpec
                  ) -> tuple[list[int], list[int], int | None]:
    """(probabilities, errors, loss) of one row; the errors are codes of `spec.error`."""
    prob = softmax(x, spec)
    error = [p - spec.one * (i == target) for i, p in enumerate(prob)]
    loss = None if spec.loss is None else lookup(prob[target], spec.loss_table)
    return prob, error, loss
