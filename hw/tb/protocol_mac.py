"""Protocol of hw/rtl/mac.v, clock by clock: reset, latency, bubbles, stalls, transactions."""

from itertools import pairwise

import cocotb
from bench import Clocked, is_known, settle
from cocotb.triggers import FallingEdge

COUNT = 300  # steps of the vector file that a test drives


async def started(dut):
    mac = Clocked(dut, dut.valid_i, dut.step_o)
    await mac.start()
    return mac


@cocotb.test()
async def reset_leaves_no_x_and_no_step(dut):
    mac = await started(dut)
    assert all(is_known(getattr(dut, name)) for name in [*mac.outputs, "step_o"])
    assert await mac.clock() is None
    assert set(mac.answer().values()) == {0}


@cocotb.test()
async def a_step_comes_out_after_the_latency(dut):
    mac = await started(dut)
    for record in mac.records[:5]:
        answers = [await mac.clock(record), *[await mac.clock() for _ in range(4)]]
        came = [i + 1 for i, answer in enumerate(answers) if answer is not None]
        assert came == [mac.file.latency], came


@cocotb.test()
async def a_step_is_accepted_every_clock(dut):
    mac = await started(dut)
    answers = [await mac.clock(record) for record in mac.records[:COUNT]]
    early = mac.file.latency - 1
    assert all(answer is None for answer in answers[:early])
    assert answers[early:] + await mac.drain() == mac.expected(mac.records[:COUNT])


@cocotb.test()
async def bubbles_and_stalls_change_nothing(dut):
    mac = await started(dut)
    answers = []
    for record in mac.records[:COUNT]:
        while (what := mac.random.choice(("go", "bubble", "stall"))) != "go":
            dut.en_i.value = what != "stall"
            held = (dut.step_o.value, mac.answer())
            answer = await mac.clock(record if what == "stall" else None)
            dut.en_i.value = 1
            if what == "bubble" and answer is not None:
                answers.append(answer)
            assert what == "bubble" or (dut.step_o.value, mac.answer()) == held
        if (answer := await mac.clock(record)) is not None:
            answers.append(answer)
    assert answers + await mac.drain() == mac.expected(mac.records[:COUNT])


@cocotb.test()
async def load_restarts_an_unfinished_transaction(dut):
    mac = await started(dut)
    starts = [i for i, record in enumerate(mac.records) if record["load_i"]]
    long = [i for i, following in pairwise(starts) if following - i > 3]
    some = [record for i in long[:20] for record in mac.records[i:i + 2]]  # last_i never comes
    answers = [await mac.clock(record) for record in some] + await mac.drain()
    answers = [answer for answer in answers if answer is not None]
    assert answers == mac.expected(some)
    assert not any(answer["valid_o"] for answer in answers)


@cocotb.test()
async def reset_in_mid_stream_drops_what_is_under_way(dut):
    mac = await started(dut)
    for record in mac.records[:10]:
        await mac.clock(record)
    before = mac.answer()
    dut.rst_ni.value = 0
    await settle()
    if int(cocotb.plusargs["async"]):  # at once, else not before the edge
        assert set(mac.answer().values()) == {0}
    else:
        assert mac.answer() == before
    dut.valid_i.value = 1
    await FallingEdge(dut.clk_i)
    assert set(mac.answer().values()) == {0} and dut.step_o.value == 0
    dut.rst_ni.value = 1
    assert await mac.drain() == []
    answers = [await mac.clock(record) for record in mac.records[:20]] + await mac.drain()
    assert [a for a in answers if a is not None] == mac.expected(mac.records[:20])
