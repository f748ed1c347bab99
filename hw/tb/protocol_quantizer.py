"""hw/rtl/quantizer.v with its ports beyond the vectors: the rounding port and the clamped shift."""

import cocotb
from bench import is_known, records, settle, vector_files

TO_NEG, UNDEFINED = 0, (12, 13, 14, 15)


async def cast(dut, record, rounding):
    for name in ("value_i", "shift_i", "rand_i"):
        getattr(dut, name).value = record[name]
    dut.rounding_i.value = rounding
    await settle()
    assert is_known(dut.code_o) and is_known(dut.ovf_o)
    return int(dut.code_o.value), int(dut.ovf_o.value)


@cocotb.test()
async def the_port_chooses_every_mode(dut):
    files = vector_files()
    assert len(files) == 12
    for file in files:
        for record in records(file):
            want = record["code_o"], record["ovf_o"]
            assert await cast(dut, record, file.parameters["ROUNDING"]) == want, (file.name, record)


@cocotb.test()
async def undefined_modes_are_to_neg(dut):
    file, = [file for file in vector_files() if file.parameters["ROUNDING"] == TO_NEG]
    for record in records(file):
        for rounding in UNDEFINED:
            assert await cast(dut, record, rounding) == (record["code_o"], record["ovf_o"])


@cocotb.test()
async def a_greater_shift_counts_as_the_greatest(dut):
    for file in vector_files():
        most = file.parameters["MAX_SHIFT"]
        for record in records(file)[:20]:
            rounding = file.parameters["ROUNDING"]
            want = await cast(dut, {**record, "shift_i": most}, rounding)
            for shift in (most + 1, 2 * most, 127, 128, 255):
                assert await cast(dut, {**record, "shift_i": shift}, rounding) == want
