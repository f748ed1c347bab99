"""Arrays as the lines of a hex file, and back: each code in as many digits as its port needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from emu.cosim.ports import Port

DIGITS = np.frombuffer(b"0123456789abcdef", np.uint8)
VALUES = np.full(256, 255, np.uint8)
VALUES[DIGITS] = np.arange(16)


def digits(port: Port) -> int:
    """Hex digits of a port."""
    return -(-port.bits // 4)


def encode(ports: Sequence[Port], arrays: Mapping[str, np.ndarray], records: int) -> bytes:
    """A line for each record; ports without an array are zeros."""
    width = sum(map(digits, ports)) + len(ports)
    text = np.full((records, width), ord("_"), np.uint8)
    at = 0
    for port in ports:
        n = digits(port)
        text[:, at:at + n] = DIGITS[_nibbles(port, arrays[port.name])] if port.name in arrays \
            else ord("0")
        at += n + 1
    text[:, -1] = ord("\n")
    return text.tobytes()


def decode(ports: Sequence[Port], text: np.ndarray) -> dict[str, np.ndarray]:
    """The codes of each port from hex digits (records, digits of all ports).

    They are int64, or uint64 for 64 unsigned bits. Raises ValueError naming the port where
    a digit is none, as x is.
    """
    found, at = {}, 0
    for port in ports:
        nibbles = VALUES[text[:, at:at + digits(port)]]
        at += digits(port)
        if (wrong := (nibbles > 15).any(1)).any():
            record = int(np.flatnonzero(wrong)[0])
            raise ValueError(f"{port.name} is {bytes(text[record]).decode()} in record {record}")
        found[port.name] = _codes(port, nibbles)
    return found


def _nibbles(port: Port, codes: np.ndarray) -> np.ndarray:
    """(records, digits): the highest first."""
    bits = codes.view(np.uint64).reshape(len(codes), port.count)
    if port.count == 1:
        if port.width < 64:
            bits = bits & np.uint64((1 << port.width) - 1)
        shifts = np.arange(4 * digits(port) - 4, -1, -4, dtype=np.uint64)
        return (bits >> shifts & np.uint64(15)).astype(np.uint8)
    each = (bits[:, :, None] >> np.arange(port.width, dtype=np.uint64) & np.uint64(1))
    line = np.zeros((len(codes), digits(port), 4), np.uint8)
    line.reshape(len(codes), -1)[:, :port.bits] = each.reshape(len(codes), -1)
    return (line * np.array([1, 2, 4, 8], np.uint8)).sum(2, dtype=np.uint8)[:, ::-1]


def _codes(port: Port, nibbles: np.ndarray) -> np.ndarray:
    """The codes from nibbles (records, digits), the highest first."""
    if port.count == 1:
        codes = np.zeros(len(nibbles), np.uint64)
        for column in nibbles.T:
            codes = codes << np.uint64(4) | column
    else:
        each = nibbles[:, ::-1, None] >> np.arange(4, dtype=np.uint8) & 1
        each = each.reshape(len(nibbles), -1)[:, :port.bits].reshape(-1, port.count, port.width)
        codes = (each.astype(np.uint64) << np.arange(port.width, dtype=np.uint64)).sum(
            2, dtype=np.uint64)
    if port.width == 64 and not port.signed:
        return codes
    codes = codes.view(np.int64)
    spare = 64 - port.width
    return codes << spare >> spare if port.signed else codes
