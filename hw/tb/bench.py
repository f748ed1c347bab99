"""What the protocol tests share: records of a vector file, a clock, and one clocked unit."""

import random

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge, Timer

from emu.golden.vectors import read_manifest


def vector_files():
    """The files of the set given by +vectors=FOLDER."""
    return read_manifest(cocotb.plusargs["vectors"]).files


def records(file):
    """Each line as {column: bits}."""
    names = [field.name for field in file.fields]
    return [dict(zip(names, [int(digits, 16) for digits in line], strict=True))
            for line in file.lines()]


def is_known(signal) -> bool:
    """Whether no bit is X or Z."""
    return signal.value.is_resolvable


class Clocked:
    """A clocked unit driven at falling edges, where its outputs of the last edge are stable.

    `taken` is the input that offers a record, `step` the output that announces one.
    """

    def __init__(self, dut, taken, step):
        self.dut, self.taken, self.step = dut, taken, step
        self.file, = vector_files()
        self.records = records(self.file)
        self.inputs = [f.name for f in self.file.fields if f.dir == "in"]
        self.outputs = [f.name for f in self.file.fields if f.dir == "out"]
        self.random = random.Random(1)

    async def start(self):
        """Clock, hold reset over two edges, release."""
        Clock(self.dut.clk_i, 10, unit="ns").start()
        self.dut.rst_ni.value = 0
        self.dut.en_i.value = 1
        await self.clock()
        await self.clock()
        self.dut.rst_ni.value = 1

    async def clock(self, record=None):
        """One clock, with this record or with noise that is not to be taken; the new answer."""
        self.taken.value = record is not None
        for name in self.inputs:
            port = getattr(self.dut, name)
            port.value = record[name] if record else self.random.getrandbits(len(port))
        await FallingEdge(self.dut.clk_i)
        return self.answer() if self.step.value == 1 else None

    async def drain(self):
        """The answers still under way."""
        answers = [await self.clock() for _ in range(self.file.latency + 2)]
        return [answer for answer in answers if answer is not None]

    def answer(self):
        """The outputs as {column: bits}; raises where one is X."""
        return {name: int(getattr(self.dut, name).value) for name in self.outputs}

    def expected(self, some):
        return [{name: record[name] for name in self.outputs} for record in some]


async def settle():
    await Timer(1, unit="ns")
