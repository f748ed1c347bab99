"""torch.einsum as matmuls of the hardware, against sums over all indices in Python ints."""

import itertools

import numpy as np
import pytest
import torch
from fraction_layers import called, fixed, lists, seeded

from emu import nn

MACS = {"x": "s16f6", "w": "s16f6", "error": "s24f12", "forward": "{acc: s50}",
        "grad_input": "{acc: s50}", "grad_weight": "{acc: s50}"}
# The equation with every index written out, what torch is given, and the operands' shapes.
CASES = {
    "matmul": ("ij,jk->ik", "ij,jk->ik", (2, 3), (3, 4)),
    "implicit": ("ij,jk->ik", "ij, jk", (2, 3), (3, 4)),
    "batch": ("bij,bjk->bik", "bij,bjk->bik", (2, 2, 3), (2, 3, 2)),
    "attention": ("bqhd,bkhd->bhqk", "bqhd,bkhd->bhqk", (1, 2, 2, 3), (1, 3, 2, 3)),
    "outer": ("i,j->ji", "i,j->ji", (3,), (2,)),
    "inner": ("ij,ij->", "ij,ij", (2, 3), (2, 3)),
    "rows": ("ij,ij->i", "ij,ij->i", (2, 3), (2, 3)),
    "summed first": ("ijk,k->j", "ijk,k->j", (2, 3, 2), (2,)),
    "ellipsis": ("abij,jk->abik", "...ij,jk->...ik", (2, 1, 2, 3), (3, 2)),
    "ellipses": ("abi,abi->ab", "...i,...i->...", (2, 1, 3), (2, 1, 3)),
    "transposed": ("ij->ji", "ij->ji", (2, 3)),
    "reduced": ("ij->j", "ij->j", (2, 3)),
    "bilinear": ("bn,anm,bm->ba", "bn,anm,bm->ba", (2, 2), (3, 2, 2), (2, 2)),
}


def summed(equation, operands, grad):
    """[the result, the gradient of each operand], term by term."""
    terms, out = equation.split("->")[0].split(","), equation.split("->")[1]
    letters = sorted(set("".join(terms)))
    sizes = {letter: x.shape[i] for term, x in zip(terms, operands, strict=True)
             for i, letter in enumerate(term)}
    result = np.zeros([sizes[letter] for letter in out], object)
    grads = [np.zeros(x.shape, object) for x in operands]
    for values in itertools.product(*(range(sizes[letter]) for letter in letters)):
        at = dict(zip(letters, values, strict=True))
        places = [tuple(at[letter] for letter in term) for term in terms]
        factors = [x[place] for x, place in zip(operands, places, strict=True)]
        to = tuple(at[letter] for letter in out)
        result[to] += np.prod(np.array(factors, object))
        for i, place in enumerate(places):
            grads[i][place] += grad[to] * np.prod(np.array([1, *factors[:i], *factors[i + 1:]],
                                                           object))
    return lists(result, *grads)


@pytest.mark.parametrize("name", CASES)
def test_every_term_is_added(name):
    plain, equation, *shapes = CASES[name]
    few = 9 if len(shapes) == 3 else 90
    operands = [seeded(shape, few, 4 if few == 90 else 2, i) for i, shape in enumerate(shapes)]
    out = [next(x.shape[term.index(letter)] for term, x in zip(
        plain.split("->")[0].split(","), operands, strict=True) if letter in term)
        for letter in plain.split("->")[1]]
    grad = seeded(tuple(out), few, 5, 7) if out else seeded((1,), few, 5, 7).reshape(())
    got = called(lambda *x: torch.einsum(equation, *x), MACS, operands, grad,
                 torch.float64)
    assert got == summed(plain, operands, grad)


def test_products_have_sites_of_their_own():
    model = fixed(lambda x: torch.einsum("ij,jk,kl->il", x, x, x), MACS)
    model(torch.ones(2, 2).double())
    assert list(nn.layers(model)) == ["einsum.matmul", "einsum.matmul_1"]


@pytest.mark.parametrize(("equation", "message"), [
    ("ii->i", "needs one index for each axis, none twice"), ("ij,jk->ik", "2 terms for 1"),
    ("ijk->i", "needs one index for each axis"), ("ij->k", "the result's indices are those of"),
    ("ij->ii", "the result's indices are those of operands, once")])
def test_refusals(equation, message):
    with pytest.raises(ValueError, match=message):
        fixed(lambda x: torch.einsum(equation, x), MACS)(torch.ones(2, 2))


def test_axes_that_differ_are_refused():
    with pytest.raises(ValueError, match="einsum: index 'j' has 3 and 2 values"):
        fixed(lambda x, y: torch.einsum("ij,jk->ik", x, y), MACS)(torch.ones(2, 3),
                                                                  torch.ones(2, 2))
