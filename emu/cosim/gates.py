"""The synthesised gates, 64 records in a machine word: no simulator and no C++ compiler."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import numba
import numpy as np

from emu.cosim import tools
from emu.cosim.netlist import ONE, ZERO, Netlist
from emu.cosim.ports import Interface, Port
from emu.cosim.store import kept
from emu.cosim.yosys import synthesise

WORDS = 8  # evaluated together: their gates stay in the first cache
PATIENCE = 64  # clocks without a record after the last one: more answers are lost
RESET = 2  # clocks
PASSES = ("synth -flatten -noabc -top {unit}; async2sync; dfflegalize -cell $_DFF_P_ x; opt_clean; "
          "setundef -zero; opt_clean -purge; write_json unit.json")


def netlist(unit: str, parameters: Mapping[str, int], sources: list[Path], face: Interface,
            inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> int:
    """Fill `outputs`, int64 arrays, and say how many answers came.

    A clocked unit runs each stretch of records that depends on none before it (a transaction) in a
    lane of its own, from reset.
    """
    program = _synthesised(unit, tuple(parameters.items()), tuple(sources),
                       tuple(path.read_bytes() for path in sources))
    slots = {**program.inputs, **program.outputs}
    records = len(next(iter(inputs.values())))
    given = [(port, inputs[port.name].reshape(records, -1).T) for port in face.inputs
             if port.name in inputs]
    codes_in = np.ascontiguousarray(np.concatenate([codes for _, codes in given]))
    codes_out = np.zeros((sum(port.count for port in face.outputs), records), np.int64)
    wires_in = _wires(slots, [port for port, _ in given])
    wires_out = _wires(slots, face.outputs)
    if face.protocol is None:
        answers = _combinational(program.slots, program.gates, wires_in, wires_out, codes_in,
                                 codes_out)
    else:
        bit = lambda name: slots[name][0] if name else ZERO  # noqa: E731
        restart = face.protocol.restart
        starts = np.zeros(1, np.int64) if restart is None else np.flatnonzero(inputs[restart])
        starts = np.unique(np.concatenate([np.zeros(min(records, 1), np.int64), starts]))
        lengths = np.diff(starts, append=records)
        order = np.argsort(-lengths, kind="stable")
        controls = np.array([bit("rst_ni"), bit("en_i"), bit(face.protocol.taken),
                             bit(face.protocol.step), bit(face.protocol.within)])
        answers = _clocked(program.slots, program.gates, program.registers, wires_in, wires_out,
                           controls, starts[order], lengths[order], codes_in, codes_out)
    row = 0
    for port in face.outputs:
        part = codes_out[row:row + port.count]
        row += port.count
        if port.signed:
            part = part << (64 - port.width) >> (64 - port.width)
        outputs[port.name][...] = part.T.reshape(outputs[port.name].shape)
    return int(answers)


@functools.lru_cache(32)
def _synthesised(unit: str, parameters: tuple, sources: tuple[Path, ...], texts: tuple[bytes, ...]
                 ) -> Netlist:
    def build(work: Path) -> None:
        (work / "unit.json").write_text(synthesise(
            unit, dict(parameters), sources, PASSES.format(unit=unit), "unit.json"))

    tools.require("yosys")
    place = kept(["netlist", PASSES, tools.version(*tools.yosys(), "-V"), unit,
                  repr(sorted(parameters)), *texts], build)
    return Netlist((place / "unit.json").read_text(), unit)


def _wires(slots: Mapping[str, list[int]], ports: list[Port]) -> np.ndarray:
    """(row of the codes, bit of the code, slot) of every bit of these ports."""
    wires, row = [], 0
    for port in ports:
        wires += [(row + i // port.width, i % port.width, slot)
                  for i, slot in enumerate(slots[port.name])]
        row += port.count
    return np.array(wires, np.int32).reshape(-1, 3)


@numba.njit(cache=True, nogil=True)
def _evaluate(gates, state):
    """Every gate once, in order, by its place in GATES; `state` (slots, WORDS)."""
    for i in range(gates.shape[0]):
        kind, a, b, s, y = gates[i, 0], gates[i, 1], gates[i, 2], gates[i, 3], gates[i, 4]
        for j in range(WORDS):
            x, z = state[a, j], state[b, j]
            if kind == 0: state[y, j] = x & z
            elif kind == 1: state[y, j] = x | z
            elif kind == 2: state[y, j] = x ^ z
            elif kind == 3: state[y, j] = ~(x & z)
            elif kind == 4: state[y, j] = ~(x | z)
            elif kind == 5: state[y, j] = ~(x ^ z)
            elif kind == 6: state[y, j] = ~x
            elif kind == 7: state[y, j] = x & ~z
            elif kind == 8: state[y, j] = x | ~z
            else: state[y, j] = (x & ~state[s, j]) | (z & state[s, j])


@numba.njit(cache=True, nogil=True)
def _blank(slots):
    state = np.zeros((slots, WORDS), np.uint64)
    state[ONE] = ~np.uint64(0)
    return state


@numba.njit(cache=True, nogil=True)
def _put(wires, codes, state, index, count):
    """Codes of the records `index`, one a lane, onto the slots of their bits."""
    for i in range(wires.shape[0]):
        row, bit, slot = wires[i, 0], np.uint64(wires[i, 1]), wires[i, 2]
        for j in range(WORDS):
            word = np.uint64(0)
            for k in range(min(64, count - 64 * j)):
                code = np.uint64(codes[row, index[64 * j + k]])
                word |= ((code >> bit) & np.uint64(1)) << np.uint64(k)
            state[slot, j] = word


@numba.njit(cache=True, nogil=True)
def _get(wires, codes, state, index, count):
    """Slots of bits into the codes of the records `index`, one a lane; none where it is -1."""
    for i in range(wires.shape[0]):
        row, bit, slot = wires[i, 0], np.uint64(wires[i, 1]), wires[i, 2]
        for lane in range(count):
            if index[lane] >= 0:
                one = (state[slot, lane >> 6] >> np.uint64(lane & 63)) & np.uint64(1)
                codes[row, index[lane]] |= np.int64(one << bit)


@numba.njit(cache=True, nogil=True)
def _combinational(slots, gates, wires_in, wires_out, codes_in, codes_out):
    records = codes_out.shape[1]
    state = _blank(slots)
    index = np.empty(64 * WORDS, np.int64)
    for first in range(0, records, 64 * WORDS):
        count = min(64 * WORDS, records - first)
        for lane in range(count):
            index[lane] = first + lane
        _put(wires_in, codes_in, state, index, count)
        _evaluate(gates, state)
        _get(wires_out, codes_out, state, index, count)
    return records


@numba.njit(cache=True, nogil=True)
def _clocked(slots, gates, registers, wires_in, wires_out, controls, starts, lengths, codes_in,
             codes_out):
    reset, enable, taken, step, within = controls
    index, came = np.empty(64 * WORDS, np.int64), np.empty(64 * WORDS, np.int64)
    next_q = np.empty((registers.shape[0], WORDS), np.uint64)
    answers = 0
    for first in range(0, starts.size, 64 * WORDS):
        count = min(64 * WORDS, starts.size - first)
        state = _blank(slots)
        came[:] = 0
        for clock in range(-RESET, lengths[first] + PATIENCE):
            offered = 0
            for lane in range(count):  # the longest first, so the lanes that still offer lead
                if clock >= 0 and clock < lengths[first + lane]:
                    index[lane] = starts[first + lane] + clock
                    offered = lane + 1
            if offered:
                _put(wires_in, codes_in, state, index, offered)
            for j in range(WORDS):
                active = min(64, max(0, offered - 64 * j))
                mask = ~np.uint64(0)
                if active < 64:
                    mask = (np.uint64(1) << np.uint64(active)) - np.uint64(1)
                state[reset, j] = np.uint64(0) if clock < 0 else ~np.uint64(0)
                state[enable, j] = ~np.uint64(0)
                state[taken, j] = mask
            _evaluate(gates, state)
            some = False
            for lane in range(count):
                index[lane] = -1
                word = state[step, lane >> 6] | state[within, lane >> 6]
                if clock > 0 and (word >> np.uint64(lane & 63)) & np.uint64(1):
                    answers += 1
                    if came[lane] < lengths[first + lane]:
                        index[lane] = starts[first + lane] + came[lane]
                        some = True
                    came[lane] += 1
            if some:
                _get(wires_out, codes_out, state, index, count)
            for i in range(registers.shape[0]):
                next_q[i] = state[registers[i, 0]]
            for i in range(registers.shape[0]):
                state[registers[i, 1]] = next_q[i]
    return answers
