"""Masks on codes, and the ReLU of floats, against numpy."""

import numpy as np
import pytest

from emu import engine
from emu.engine.kernels import jit
from emu.engine.kernels.lanes import CHUNK

SHAPES = [(), (0,), (5,), (3, 0), (7, 11), (CHUNK + 1,)]


@pytest.fixture(params=["serial", "team"])
def threads(request, monkeypatch):
    monkeypatch.setattr(jit, "TEAM", 0 if request.param == "team" else 1 << 62)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64])
@pytest.mark.parametrize("shape", SHAPES)
def test_masked_codes_are_zero_elsewhere(threads, shape, dtype):
    rng, ends = np.random.default_rng(0), np.iinfo(dtype)
    codes = rng.integers(ends.min, ends.max, shape, dtype, endpoint=True)
    passes = rng.integers(0, 2, shape).astype(bool)
    everywhere = np.broadcast_to(np.True_, codes.T.shape)
    for x, mask in ((codes, passes), (codes.T, passes.T), (codes, np.array(passes, order="F")),
                    (codes.T, everywhere), (codes, np.True_), (codes, np.False_)):
        found = engine.masked(np.asarray(x), mask)
        assert found.dtype == dtype and np.array_equal(found, np.where(mask, x, 0))


def test_a_mask_of_a_row_goes_for_all_rows_and_one_of_another_shape_is_refused():
    codes = np.arange(6).reshape(2, 3)
    assert engine.masked(codes, np.array([True, False, True])).tolist() == [[0, 0, 2], [3, 0, 5]]
    for shape in ((2,), (4,), (3, 2), (2, 2, 3)):
        with pytest.raises(ValueError, match=r"mask .* for codes \(2, 3\): give one"):
            engine.masked(codes, np.ones(shape, bool))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_relu_passes_what_is_positive(threads, shape, dtype):
    x = np.random.default_rng(0).normal(size=shape).astype(dtype)
    for floats in (x, x.T):
        values, passes = engine.rectify(np.asarray(floats))
        assert values.dtype == dtype and passes.dtype == bool
        assert np.array_equal(values, np.maximum(floats, 0))
        assert np.array_equal(passes, floats > 0)


def test_a_relu_keeps_what_is_no_number():
    tiny = float(np.finfo(np.float64).smallest_subnormal)
    values, passes = engine.rectify(np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, tiny, -tiny]))
    assert np.isnan(values[0]) and values[1:].tolist() == [np.inf, 0, 0, 0, tiny, 0]
    assert passes.tolist() == [False, True, False, False, False, True, False]
