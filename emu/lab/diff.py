"""Where two run folders first differ: configuration, metrics, weights, in that order."""

from __future__ import annotations

import json
from itertools import chain, islice
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from emu.lab.run import CONFIG, METRICS, WEIGHTS


def diff_runs(a: Path, b: Path, limit: int = 20) -> list[str]:
    """What differs between two run folders, at most `limit` lines and then how many more.

    Raises ValueError for a folder that is no finished run.
    """
    for path in (a, b):
        for name in (CONFIG, METRICS, WEIGHTS):
            if not (path / name).is_file():
                raise ValueError(f"{path}: has no {name}, so it is neither a finished run nor a "
                                 "vector set; give two folders of one kind")
    found = chain(_text(a, b, CONFIG), _metrics(a, b), _weights(a, b))
    try:
        lines = list(islice(found, limit))
        more = sum(1 for _ in found)
    except (SafetensorError, json.JSONDecodeError, KeyError) as error:
        raise ValueError(f"{a} and {b}: one of their files is damaged ({error})") from None
    return lines + ([f"... and {more} more, {len(lines) + more} differences in all"] * (more > 0))


def _text(a: Path, b: Path, name: str):
    left, right = ((path / name).read_text().splitlines() for path in (a, b))
    for number in range(max(len(left), len(right))):
        one, two = (side[number].strip() if number < len(side) else "nothing"
                    for side in (left, right))
        if one != two:
            yield f"{name}:{number + 1}  {one} | {two}"


def _metrics(a: Path, b: Path):
    left, right = ([json.loads(line) for line in (path / METRICS).read_text().splitlines()]
                   for path in (a, b))
    for number in range(max(len(left), len(right))):
        if number >= min(len(left), len(right)):
            yield f"{METRICS}:{number + 1}  only in {a if number < len(left) else b}"
            continue
        for key, one, two in _differing(left[number], right[number]):
            yield f"{METRICS}:{number + 1}  {key} {one} | {two}"


def _differing(one, two, prefix=""):
    if isinstance(one, dict) and isinstance(two, dict):
        for key in one | two:
            yield from _differing(one.get(key), two.get(key), f"{prefix}.{key}".lstrip("."))
    elif one != two:
        yield prefix, one, two


def _weights(a: Path, b: Path):
    with safe_open(a / WEIGHTS, "np") as left, safe_open(b / WEIGHTS, "np") as right:
        formats = [json.loads(side.metadata()["formats"]) for side in (left, right)]
        for name in formats[0] | formats[1]:
            if formats[0].get(name) != formats[1].get(name):
                yield f"{name}  format {formats[0].get(name)} | {formats[1].get(name)}"
                continue
            one, two = left.get_tensor(name), right.get_tensor(name)
            if one.shape != two.shape:
                yield f"{name}  shape {one.shape} | {two.shape}"
                continue
            for index in np.argwhere(one != two):
                place = tuple(int(i) for i in index)
                yield f"{name}{list(place)}  code {one[place]} | {two[place]}  ({formats[0][name]})"
