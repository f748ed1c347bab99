"""Protocol of hw/rtl/lfsr.v, clock by clock: reset, load, the zero word, gaps."""

import cocotb
from bench import Clocked, is_known

COUNT = 300


async def started(dut):
    lfsr = Clocked(dut, dut.en_i, dut.valid_o)
    await lfsr.start()
    return lfsr


@cocotb.test()
async def reset_leaves_no_x_and_the_state_1(dut):
    lfsr = await started(dut)
    assert is_known(dut.rand_o) and dut.valid_o.value == 0
    one = next(i for i, r in enumerate(lfsr.records) if r["load_i"] and r["state_i"] == 1)
    some = [{**record, "load_i": 0} for record in lfsr.records[one:one + 10]]
    assert [await lfsr.clock(record) for record in some] == lfsr.expected(some)


@cocotb.test()
async def the_word_0_counts_as_1(dut):
    lfsr = await started(dut)
    draws = {}
    for word in (0, 1):
        draws[word] = [await lfsr.clock({"load_i": i == 0, "state_i": word}) for i in range(40)]
    assert draws[0] == draws[1] and any(draw["rand_o"] for draw in draws[0])


@cocotb.test()
async def gaps_draw_nothing(dut):
    lfsr = await started(dut)
    for record in lfsr.records[:COUNT]:
        while lfsr.random.random() < 0.5:
            held = lfsr.answer()
            assert await lfsr.clock() is None and lfsr.answer() == held
        assert await lfsr.clock(record) == lfsr.expected([record])[0]
