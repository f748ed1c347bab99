"""Memory that is lent for the time of an operation: never to two at once, and again afterwards."""

import threading

import numpy as np
import pytest

from emu.engine import memory
from emu.engine.memory import LINE, SPARE, scratch

SHAPE = (300, 40, 5)


@pytest.fixture(autouse=True)
def _nothing_spare(monkeypatch):
    monkeypatch.setattr(memory, "_spare", memory.defaultdict(list))


def spare() -> int:
    return sum(map(len, memory._spare.values()))


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64, np.float64])
def test_arrays_are_as_kernels_take_them(dtype):
    array = scratch(SHAPE, dtype)
    assert array.shape == SHAPE and array.dtype == dtype and array.flags.carray
    assert array.ctypes.data % LINE == 0
    array[...] = 1
    assert array.sum() == array.size


@pytest.mark.parametrize("view", [
    lambda x: x, lambda x: x[7:9, ::2], lambda x: x.reshape(-1).view(np.int8)[3:], lambda x: x.T,
    memoryview, lambda x: np.ndarray((3,), np.int16, x)])
def test_memory_is_lent_again_once_nobody_holds_any_of_it(view):
    array = scratch(SHAPE, np.int32)
    at, held = array.ctypes.data, view(array)
    del array
    other = scratch(SHAPE, np.int32)
    assert other.ctypes.data != at and not spare()
    del held
    assert spare() == 1 and scratch(SHAPE, np.int32).ctypes.data == at


def test_arrays_in_use_share_nothing():
    shapes = [(5000 * n + 1,) for n in range(1, 40)]
    for _ in range(3):
        arrays = [scratch(shape, np.int64) for shape in shapes]
        for i, array in enumerate(arrays):
            array[:] = i
        assert all((array == i).all() for i, array in enumerate(arrays))
        arrays = array = None
        assert all(len(pieces) <= SPARE for pieces in memory._spare.values()) and spare()


def test_threads_share_nothing():
    wrong = []

    def use(number):
        for _ in range(300):
            array = scratch(SHAPE, np.int32)
            array[...] = number
            wrong.extend(array[array != number])

    threads = [threading.Thread(target=use, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 4), (7,), (1 << 26,)])
def test_small_arrays_and_huge_ones_are_not_kept(shape):
    array = scratch(shape, np.int8)
    assert array.shape == shape and array.flags.owndata
    del array
    assert not spare()
