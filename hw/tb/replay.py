"""Runs in the simulator: starts the stream of each vector file in turn and waits for its end."""

import cocotb
from cocotb.triggers import RisingEdge


@cocotb.test()
@cocotb.parametrize(index=range(int(cocotb.plusargs.get("files", 0))))
async def replay(dut, index):
    stream = getattr(dut, f"file_{index}")
    stream.go.value = 1
    await RisingEdge(stream.done)
