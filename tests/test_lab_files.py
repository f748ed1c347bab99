"""The data sets: CIFAR-10's files as they are published, and what is generated."""

import os
import pickle

import numpy as np
import pytest
import torch

from emu import nn
from emu.lab.data import load
from emu.lab.models import MODELS
from emu.lab.recipe import Recipe
from emu.lab.train import Machine
from emu.lab.train import _step as take_step

NAMES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]


def rows(seed: int) -> np.ndarray:
    """Three rows of a batch: label and pixels."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.integers(0, 10, (3, 1)), rng.integers(0, 256, (3, 3072))],
                          1).astype(np.uint8)


def python_batch(path, row) -> None:
    """A batch as CIFAR-10's python version has it: a pickled dict with keys of bytes."""
    path.write_bytes(pickle.dumps({b"data": row[:, 1:], b"labels": row[:, 0].tolist(),
                                   b"batch_label": b"batch"}, protocol=2))


@pytest.fixture(params=["python", "binary"])
def folder(request, tmp_path):
    """Six batches of three images."""
    for i, name in enumerate(NAMES):
        if request.param == "python":
            python_batch(tmp_path / name, rows(i))
        else:
            (tmp_path / f"{name}.bin").write_bytes(rows(i).tobytes())
    return tmp_path


def test_both_kinds_of_batches_load(folder):
    got = load(f"cifar10:{folder}")
    want = np.concatenate([rows(i) for i in range(5)])
    assert got.train_x.shape == (15, 3, 32, 32) and got.test_x.shape == (3, 3, 32, 32)
    assert (got.train_x * 256 == want[:, 1:].reshape(-1, 3, 32, 32)).all()
    assert (got.train_y == want[:, 0]).all() and got.train_y.dtype == np.int64
    assert (got.test_y == rows(5)[:, 0]).all()
    red, green = rows(0)[0, 1:1025], rows(0)[0, 1025:2049]
    assert (got.train_x[0, :2].reshape(2, -1) * 256 == [red, green]).all()


def test_a_missing_batch_is_named(folder):
    for end in ("", ".bin"):
        (folder / f"data_batch_3{end}").unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"has neither data_batch_3 nor data_batch_3\.bin"):
        load(f"cifar10:{folder}")


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"missing: does not exist; give cifar10:DIR the folder"):
        load(f"cifar10:{tmp_path / 'missing'}")


@pytest.mark.parametrize("raw", [b"", b"x" * 3074])
def test_a_binary_batch_of_another_size_is_refused(folder, raw):
    (folder / "data_batch_2.bin").write_bytes(raw)
    with pytest.raises(ValueError, match=rf"data_batch_2.bin: {len(raw)} bytes; a batch has a"):
        load(f"cifar10:{folder}")


def test_a_label_that_is_no_class_is_refused(folder):
    row = rows(1)
    row[0, 0] = 10
    (folder / "data_batch_2.bin").write_bytes(row.tobytes())
    with pytest.raises(ValueError, match="label 10; CIFAR-10 has classes 0 to 9"):
        load(f"cifar10:{folder}")


class Harmful:
    """What a pickle must not run."""

    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.mark.parametrize("raw", [pickle.dumps(Harmful()), pickle.dumps({b"data": 1}), b"?", b""])
def test_a_damaged_python_batch_is_refused_and_nothing_is_run(tmp_path, monkeypatch, raw):
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        (tmp_path / name).write_bytes(raw)
    with pytest.raises(ValueError, match=r"data_batch_1: no batch of CIFAR-10 \("):
        load(f"cifar10:{tmp_path}")
    assert not (tmp_path / "harm").exists()


def test_an_unknown_source_is_answered_with_what_there_is():
    with pytest.raises(ValueError, match=r"write digits, patches, lookup, or mnist:DIR or cifar10"):
        load("imagenet")


def test_patches_are_images_of_every_class_on_the_grid():
    got = load("patches")
    assert got.train_x.shape == (2048, 3, 32, 32) and set(got.train_y) == set(range(10))
    assert (got.train_x * 256 % 1 == 0).all() and 0 <= got.train_x.min() < got.train_x.max() < 1


def test_lookups_are_answered_by_the_token_that_the_first_one_points_at():
    got = load("lookup")
    assert got.train_x.shape == (4096, 9) and got.test_x.shape == (1024, 9)
    assert all(x[1 + x[0]] == y for x, y in zip(got.test_x, got.test_y, strict=True))


def test_what_is_generated_is_the_same_each_time():
    assert all((a == b).all() for a, b in zip(load("lookup"), load("lookup"), strict=True))


def test_a_residual_network_has_twenty_layers_with_weights():
    model = MODELS["resnet20"]((3, 32, 32), 10)
    assert sum(p.dim() > 1 for p in model.parameters()) == 20


@pytest.mark.parametrize("name", ["lenet5", "lookup-transformer", "resnet20"])
def test_a_shipped_network_takes_a_step_under_the_auditor(name):
    recipe = Recipe.load(name)
    images = load(recipe.data)
    machine = Machine.build(recipe, images)
    before = {name: p.detach().clone() for name, p in machine.model.named_parameters()}
    loss = take_step(machine, *(torch.from_numpy(x[:2]) for x in images[:2]))
    assert np.isfinite(loss)
    moved = [name for name, p in machine.model.named_parameters() if not p.equal(before[name])]
    assert len(moved) > len(before) // 2
    assert all(layer.exact for layer in nn.layers(machine.model).values())
