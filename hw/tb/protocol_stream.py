"""hw/rtl/mac_stream.v between a sender and a receiver that both stop when they like."""

import random

import cocotb
from bench import is_known, records, settle, vector_files
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge

COUNT = 300  # steps of the vector file that a test sends
OUTPUTS = ("acc_o", "ovf_o", "ovf_count_o")


async def streamed(dut, sends, receives, clocks=6 * COUNT):
    """Send the steps, each side as its function of the clock says; check every handshake."""
    file, = vector_files()
    steps = records(file)[:COUNT]
    inputs = [field.name for field in file.fields if field.dir == "in"]
    Clock(dut.clk_i, 10, unit="ns").start()
    dut.rst_ni.value = dut.valid_i.value = dut.ready_i.value = 0
    await FallingEdge(dut.clk_i)
    await FallingEdge(dut.clk_i)
    dut.rst_ni.value = 1
    sent, sums, held = 0, [], None
    for clock in range(clocks):
        offered, ready = sent < COUNT and sends(clock), receives(clock)
        dut.valid_i.value, dut.ready_i.value = int(offered), int(ready)
        for name in inputs:
            port = getattr(dut, name)
            port.value = steps[sent][name] if offered else random.getrandbits(len(port))
        await settle()  # what the rising edge will see
        assert is_known(dut.ready_o) and is_known(dut.valid_o)
        came = tuple(int(getattr(dut, name).value) for name in OUTPUTS)
        assert held is None or (dut.valid_o.value == 1 and came == held)  # not taken: it stays
        held = came if dut.valid_o.value == 1 and not ready else None
        sent += offered and dut.ready_o.value == 1
        sums += [came] * (dut.valid_o.value == 1 and ready)
        await FallingEdge(dut.clk_i)
    expected = [tuple(step[name] for name in OUTPUTS) for step in steps if step["valid_o"]]
    assert len(expected) > 50
    return sent, sums, expected


def always(clock):
    return True


@cocotb.test()
async def a_step_a_clock_where_nobody_stops(dut):
    sent, sums, expected = await streamed(dut, always, always, clocks=COUNT + 6)
    assert (sent, sums) == (COUNT, expected)


@cocotb.test()
async def nothing_is_lost_or_doubled_where_both_stop(dut):
    draw = random.Random(2).random
    sent, sums, expected = await streamed(dut, lambda _: draw() < 0.6, lambda _: draw() < 0.4)
    assert (sent, sums) == (COUNT, expected)


@cocotb.test()
async def a_receiver_that_stops_for_long_stops_the_sender(dut):
    sent, sums, expected = await streamed(dut, always, lambda clock: False, clocks=COUNT)
    assert sent < COUNT and sums == []
    assert dut.ready_o.value == 0 and dut.valid_o.value == 1
    assert int(dut.acc_o.value) == expected[0][0]
