"""torch.einsum as products of two matrices: sums of one operand first, then one matmul a pair."""

from __future__ import annotations

import string

import torch


def einsum(equation, *operands):
    """torch.einsum, its operands from left to right; each product is a matmul of the hardware.

    Raises ValueError for an index that one operand has twice, and for operands given as lists.
    """
    if not isinstance(equation, str):
        raise ValueError("einsum: write the indices as an equation such as 'ij,jk->ik'")
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = operands[0]
    terms, out = _parsed(equation.replace(" ", ""), operands)
    term, x = terms[0], operands[0]
    for i, (other, y) in enumerate(zip(terms[1:], operands[1:], strict=True), 2):
        wanted = set(out).union(*terms[i:])
        term, x = _product(term, x, other, y, wanted)
    term, x = _summed(term, x, set(out))
    return x.permute([term.index(letter) for letter in out])


def _parsed(equation: str, operands) -> tuple[list[str], str]:
    """The indices of each operand and of the result, one letter an axis."""
    left, arrow, out = equation.partition("->")
    terms = left.split(",")
    if len(terms) != len(operands):
        raise ValueError(f"einsum {equation!r}: {len(terms)} terms for {len(operands)} operands")
    free = [letter for letter in string.ascii_letters if letter not in equation]
    most = max(x.dim() - len(term.replace("...", "")) for term, x in zip(terms, operands,
                                                                         strict=True))
    batch = free[:max(most, 0)]
    terms = [term.replace("...", "".join(batch[len(batch) - x.dim() + len(term) - 3:]))
             for term, x in zip(terms, operands, strict=True)]
    if not arrow:
        letters = sorted(set(left) & set(string.ascii_letters))
        out = "..." * ("..." in left) + "".join(x for x in letters if left.count(x) == 1)
    out = out.replace("...", "".join(batch))
    for term, x in zip(terms, operands, strict=True):
        if len(set(term)) != len(term) or len(term) != x.dim():
            raise ValueError(f"einsum {equation!r}: an operand {tuple(x.shape)}; needs one index "
                             "for each axis, none twice")
    if not set(out) <= set("".join(terms)) or len(set(out)) != len(out):
        raise ValueError(f"einsum {equation!r}: the result's indices are those of operands, once")
    return terms, out


def _summed(term: str, x: torch.Tensor, wanted: set) -> tuple[str, torch.Tensor]:
    """One operand without the indices that nothing else has."""
    alone = [i for i, letter in enumerate(term) if letter not in wanted]
    return ("".join(letter for letter in term if letter in wanted),
            x.sum(alone) if alone else x)


def _product(a: str, x: torch.Tensor, b: str, y: torch.Tensor, wanted: set
             ) -> tuple[str, torch.Tensor]:
    """Two operands as one, with the indices that are wanted."""
    a, x = _summed(a, x, wanted | set(b))
    b, y = _summed(b, y, wanted | set(a))
    both = [letter for letter in a if letter in b]
    batch = [letter for letter in both if letter in wanted]
    inner = [letter for letter in both if letter not in wanted]
    rows = [letter for letter in a if letter not in b]
    columns = [letter for letter in b if letter not in a]
    sizes = dict(zip(a + b, (*x.shape, *y.shape), strict=True))
    for letter in both:
        if x.shape[a.index(letter)] != y.shape[b.index(letter)]:
            raise ValueError(f"einsum: index {letter!r} has {x.shape[a.index(letter)]} and "
                             f"{y.shape[b.index(letter)]} values; expand one of them first")

    def folded(t, term, *groups):
        t = t.permute([term.index(letter) for group in groups for letter in group])
        counts = [torch.Size(sizes[letter] for letter in group).numel() for group in groups]
        return t.reshape([sizes[letter] for letter in groups[0]] + counts[1:])

    z = torch.matmul(folded(x, a, batch, rows, inner), folded(y, b, batch, inner, columns))
    kept = [*batch, *rows, *columns]
    return "".join(kept), z.reshape([sizes[letter] for letter in kept])
