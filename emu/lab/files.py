"""Data sets in the files that they are published in: MNIST's IDX, CIFAR-10's batches."""

from __future__ import annotations

import gzip
import io
import math
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np

CIFAR_ROW = 1 + 3 * 32 * 32  # bytes: the label, then the red, green and blue planes
CIFAR = {"data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5",
         "test_batch"}


def mnist(folder: Path) -> list[np.ndarray]:
    """Training images (N, 28, 28) uint8 and labels, then the test's; gzipped or not.

    Raises ValueError for files that are missing or malformed.
    """
    parts = []
    for part in ("train", "t10k"):
        images, labels = _idx(folder, f"{part}-images", 3), _idx(folder, f"{part}-labels", 1)
        if len(images) != len(labels):
            raise ValueError(f"data {folder}: {len(images)} {part} images but {len(labels)} labels")
        parts += [images, labels]
    return parts


def cifar10(folder: Path) -> list[np.ndarray]:
    """Training images (N, 3, 32, 32) uint8 and labels, then the test's.

    Takes the python batches and the binary ones (names ending in .bin). Raises ValueError for files
    that are missing or malformed.
    """
    if not folder.is_dir():
        raise ValueError(f"data folder {folder}: does not exist; give cifar10:DIR the folder of "
                         "the six batches")
    parts = []
    for names in (sorted(CIFAR - {"test_batch"}), ["test_batch"]):
        rows = np.concatenate([_batch(folder, name) for name in names])
        if rows[:, 0].max(initial=0) > 9:
            raise ValueError(f"data {folder}: label {rows[:, 0].max()}; CIFAR-10 has classes 0 to "
                             "9")
        parts += [rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0]]
    return parts


def _batch(folder: Path, name: str) -> np.ndarray:
    """Rows (N, CIFAR_ROW) of one batch."""
    binary, pickled = folder / f"{name}.bin", folder / name
    if binary.is_file():
        raw = np.frombuffer(binary.read_bytes(), np.uint8)
        if not raw.size or raw.size % CIFAR_ROW:
            raise ValueError(f"{binary}: {raw.size} bytes; a batch has a multiple of {CIFAR_ROW}, "
                             "and more than none")
        return raw.reshape(-1, CIFAR_ROW)
    if not pickled.is_file():
        raise ValueError(f"data folder {folder}: has neither {name} nor {name}.bin")
    try:
        items = _Plain(io.BytesIO(pickled.read_bytes()), encoding="bytes").load()
        pixels = np.asarray(items[b"data"], np.uint8)
        labels = np.asarray(items[b"labels"], np.uint8)
        return np.concatenate([labels[:, None], pixels.reshape(len(labels), -1)], 1).reshape(
            -1, CIFAR_ROW)
    except Exception as error:  # whatever a damaged file makes pickle or numpy raise
        raise ValueError(f"{pickled}: no batch of CIFAR-10 ({type(error).__name__}: "
                         f"{str(error).splitlines()[0] if str(error) else ''})") from None


class _Plain(pickle.Unpickler):
    """Loads arrays and plain values, and runs no other code."""

    ALLOWED = (("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype"),
               ("numpy._core.multiarray", "_reconstruct"), ("_codecs", "encode"))

    def find_class(self, module, name):
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"holds {module}.{name}, which is no array")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _idx(folder: Path, stem: str, ndim: int) -> np.ndarray:
    """One IDX file: two zero bytes, the type (8: uint8), the axes, their big-endian sizes."""
    if not folder.is_dir():
        raise ValueError(f"data folder {folder}: does not exist; give mnist:DIR the folder of the "
                         "four IDX files")
    names = [f"{stem}{dot}idx{ndim}-ubyte{end}" for dot in "-." for end in (".gz", "")]
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise ValueError(f"data folder {folder}: has no {names[0]}, gzipped or not")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: {error}") from None
    if raw[:4] != bytes([0, 0, 8, ndim]):
        raise ValueError(f"{path}: starts with {raw[:4].hex()}, not 000008{ndim:02x}, so it is no "
                         f"IDX file of bytes with {ndim} axes")
    if len(raw) < 4 + 4 * ndim:
        raise ValueError(f"{path}: {len(raw)} bytes end in its header; it is truncated")
    shape = struct.unpack(f">{ndim}I", raw[4:4 + 4 * ndim])
    body = raw[4 + 4 * ndim:]
    if len(body) != math.prod(shape):
        raise ValueError(f"{path}: {len(body)} bytes of data for shape {shape}; it is truncated")
    return np.frombuffer(body, np.uint8).reshape(shape)
