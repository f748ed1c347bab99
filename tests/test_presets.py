"""Each preset against its unit, stated anew on plain ints: from pseudo code, RTL, Scala or C++.

Where this processor has the instruction, it is run too.
"""

import random
import struct

import apytypes
import numpy as np
import pytest

import emu
from emu import engine, presets, reference

GENERATOR = np.random.default_rng(11)


def operands(preset, rows, k):
    """Codes of a and b (rows, k): bounds often, so that sums drift to the rails and beyond."""
    arrays = []
    for form in (preset.mac.a, preset.mac.b):
        inner = GENERATOR.integers(form.lo, form.hi, (rows, k), np.int64, endpoint=True)
        bounds = np.where(GENERATOR.random((rows, 1)) < 0.5, form.lo, form.hi)
        arrays.append(np.where(GENERATOR.random((rows, k)) < GENERATOR.random((rows, 1)), bounds,
                               inner))
    return [array.tolist() for array in arrays]


def near_rails(form, rows):
    """Initial values, most of them close to a bound of their format."""
    steps = GENERATOR.integers(0, 2**15, rows).tolist()
    return [form.lo + step if step % 2 else form.hi - step for step in steps]


def check(name, unit, rows=100, k=(1, 3, 4, 37, 130)):
    """The engine, and the reference, give what `unit(a, b, initial)` gives."""
    preset = presets[name]
    for count in k:
        a, b = operands(preset, rows, count)
        starts = near_rails(preset.mac.result.format, rows)
        want = [unit(*case) for case in zip(a, b, starts, strict=True)]
        assert [reference.dot(*case[:2], preset.mac, case[2])
                for case in zip(a, b, starts, strict=True)] == want
        for i in range(0, rows, 20):
            got = engine.matmul([a[i]], np.array([b[i]]).T, preset.mac, [starts[i]])
            assert got.tolist() == [[want[i]]]


def signed(bits, x):
    """The low bits of x read as two's complement."""
    x &= (1 << bits) - 1
    return x - (1 << bits) if x >> (bits - 1) else x


def groups(a, b, size):
    """Pairs of consecutive operands, padded with zeros to whole groups."""
    pad = [0] * (-len(a) % size)
    pairs = list(zip(a + pad, b + pad, strict=True))
    return [pairs[i:i + size] for i in range(0, len(pairs), size)]


# x86, after the operation sections of Intel's manual.


def saturate_word(x):
    return 0x7FFF if x > 0x7FFF else -0x8000 if x < -0x8000 else x


def saturate_dword(x):
    return 0x7FFFFFFF if x > 0x7FFFFFFF else -0x80000000 if x < -0x80000000 else x


def pmaddubsw(a, b, dword):
    for four in groups(a, b, 4):
        words = [saturate_word(four[i][0] * four[i][1] + four[i + 1][0] * four[i + 1][1])
                 for i in (0, 2)]
        dword = signed(32, dword + signed(32, words[0] * 1 + words[1] * 1))
    return dword


def pmaddwd(a, b, dword):
    for (x0, y0), (x1, y1) in groups(a, b, 2):
        dword = signed(32, dword + signed(32, x0 * y0 + x1 * y1))
    return dword


def vpdpbusd(a, b, dword):
    for four in groups(a, b, 4):
        dword = signed(32, dword + sum(signed(16, x * y) for x, y in four))
    return dword


def vpdpbusds(a, b, dword):
    for four in groups(a, b, 4):
        dword = saturate_dword(dword + sum(signed(16, x * y) for x, y in four))
    return dword


# The instructions, AT&T order: second source, first source, destination.
INSTRUCTIONS = {
    "x86_pmaddubsw": ("avx2", "vpmaddubsw $2, $1, %xmm8; vpmaddwd $3, %xmm8, %xmm8; "
                              "vpaddd %xmm8, $0, $0"),
    "x86_pmaddwd": ("avx2", "vpmaddwd $2, $1, %xmm8; vpaddd %xmm8, $0, $0"),
    "x86_vpdpbusd": ("avx512vnni", "vpdpbusd $2, $1, $0"),
    "x86_vpdpbusds": ("avx512vnni", "vpdpbusds $2, $1, $0"),
}


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_x86_on_this_processor(name):
    feature, text = INSTRUCTIONS[name]
    run = assembled(feature, text)
    size = struct.calcsize("<16B")
    lanes = 4 if presets[name].mac.a.width == 8 else 2

    def unit(a, b, start):
        dword = start
        for group in groups(a, b, lanes):
            dword = run(*[pack(presets[name].mac, side, group, size) for side in (0, 1)], dword)
        return dword

    check(name, unit)


def pack(mac, side, group, size):
    """The operands of one dword, little-endian, and zeros for the other three."""
    code = ("b" if mac.a.width == 8 else "h")
    code = code if (mac.a, mac.b)[side].signed else code.upper()
    return struct.pack(f"<{len(group)}{code}", *[pair[side] for pair in group]).ljust(size, b"\0")


def assembled(feature, text):
    """A function (first source, second source, dword) -> dword of 128-bit instructions."""
    import ctypes

    import llvmlite.binding as llvm

    if not llvm.get_host_cpu_features().get(feature):
        pytest.skip(f"this processor has no {feature}")
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()
    module = llvm.parse_assembly(f"""
        define void @unit(ptr %acc, ptr %first, ptr %second) {{
          %x = load <4 x i32>, ptr %first, align 1
          %y = load <4 x i32>, ptr %second, align 1
          %old = load <4 x i32>, ptr %acc, align 1
          %new = call <4 x i32> asm "{text}", "=x,x,x,x,0,~{{xmm8}}"(
            <4 x i32> %x, <4 x i32> %y, <8 x i16> splat (i16 1), <4 x i32> %old)
          store <4 x i32> %new, ptr %acc, align 1
          ret void
        }}""")
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten())
    compiled = llvm.create_mcjit_compiler(module, machine)
    compiled.finalize_object()
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_char_p] * 3)(
        compiled.get_function_address("unit"))

    def run(first, second, dword, compiled=compiled):
        acc = ctypes.create_string_buffer(struct.pack("<i12x", dword), 16)
        function(ctypes.cast(acc, ctypes.c_char_p), first, second)
        return struct.unpack_from("<i", acc.raw)[0]

    return run


# Arm, DSP slices, tensor cores, TPU: exact groups into a register that wraps or clamps.


def grouped(size, fit):
    def unit(a, b, acc):
        for group in groups(a, b, size):
            res = 0
            for element1, element2 in group:
                res = res + element1 * element2
            acc = fit(acc + res)
        return acc

    return unit


def test_dsp48_wraps_at_48_bits():
    for name, width in (("dsp48e1", 25), ("dsp48e2", 27)):
        low = -(2 ** (width - 1))
        assert reference.dot([low], [-(2**17)], presets[name].mac, 2**47 - 1) == (
            2**47 - 1 + 2 ** (width + 16) - 2**48)


# NVDLA, after the bits of the RTL.


def nvdla(partial_bits):
    def unit(a, b, partial):
        for stripe in groups(a, b, 64):
            i_sum_pd = partial + sum(x * y for x, y in stripe)
            sign = i_sum_pd >> partial_bits & 1
            msb = i_sum_pd >> (partial_bits - 1) & 1
            bits = (1 << (partial_bits - 1)) - 1
            low = (0 if sign else bits) if sign ^ msb else i_sum_pd & bits
            partial = signed(partial_bits, sign << (partial_bits - 1) | low)
        return partial

    return unit


def cacc_delivery(partial, cfg_truncate):
    """The partial sum as CACC delivers it in 32 bits."""
    shifted = partial << 16 >> cfg_truncate
    sft, guide, stick = shifted >> 16, shifted >> 15 & 1, shifted & 0x7FFF
    negative = partial < 0
    point5 = guide & (not negative or stick != 0)
    rounded = sft + point5
    if negative:
        return rounded if sft >= -(2**31) else -(2**31)
    return rounded if rounded <= 2**31 - 1 else 2**31 - 1


@pytest.mark.parametrize(("name", "bits"), [("nvdla_int8", 34), ("nvdla_int16", 48)])
def test_nvdla_delivers_what_the_rtl_delivers(name, bits):
    out = presets[name].out
    draw = random.Random(bits)
    edge = 2 ** (bits - 1)
    values = [edge - 1, -edge, 2**31 - 1, -(2**31), 2**31, -(2**31) - 1, 3, -3, 0]
    values += [draw.randint(-edge, edge - 1) for _ in range(200)]
    for shift in range(17):
        ties = [draw.randint(-999, 999) * 2 + 1 for _ in range(20)]
        values += [tie << shift >> 1 for tie in ties]
        want = [cacc_delivery(value, shift) for value in values]
        assert [reference.cast(value, shift, out) for value in values] == want
        assert engine.cast(np.array(values), shift, out).tolist() == want


def test_nvdla_truncation_beyond_16_is_left_out_for_a_reason():
    # A little above a tie goes up; the RTL no longer sees by how much, and takes it for the tie.
    value, out = -(3 << 19) + 1, presets["nvdla_int8"].out
    assert (reference.cast(value, 20, out), cacc_delivery(value, 20)) == (-1, -2)


# Gemmini, after PE.scala and Arithmetic.scala.


def gemmini_ws(a, b, accumulator):
    for rows in groups(a, b, 16):
        partial = 0
        for in_a, weight in rows:
            partial = signed(20, in_a * weight + partial)  # out_d has spatialArrayOutputType
        accumulator = signed(32, accumulator + partial)
    return accumulator


def gemmini_os(a, b, c):
    for in_a, in_b in zip(a, b, strict=True):
        c = signed(20, in_a * in_b + c)
    return c


def rounding_shift(x, u):
    """`>>` of SIntArithmetic: bits of x, not its value."""
    point_five = 0 if u == 0 else x >> (u - 1) & 1
    zeros = 0 if u <= 1 else int(x & ((1 << (u - 1)) - 1) != 0)
    ones_digit = x >> u & 1
    return (x >> u) + (point_five & (zeros | ones_digit))


def clipped(x, bits):
    return min(max(x, -(1 << (bits - 1))), (1 << (bits - 1)) - 1)


def scaled_in_float32(acc, scale):
    """acc_scale of the default configuration: through float32, to nearest even, clipped."""
    return clipped(int(np.rint(np.float32(np.float32(acc) * np.float32(scale)))), 8)


def test_gemmini_shifts_and_scales_as_its_scala():
    draw = random.Random(0)
    mesh = [draw.randint(-(2**19), 2**19 - 1) for _ in range(300)] + [2**19 - 1, -(2**19), 0]
    for shift in range(20):
        ties = [(draw.randint(-99, 99) * 2 + 1) << max(shift - 1, 0) for _ in range(9)]
        values = [x for x in mesh + ties if -(2**19) <= x < 2**19]
        assert [reference.cast(x, shift, presets["gemmini_os"].out) for x in values] == [
            clipped(rounding_shift(x, shift), 20) for x in values]
        read = [draw.randint(-(2**24), 2**24) for _ in range(300)] + ties
        assert [reference.cast(x, shift, presets["gemmini_ws"].out) for x in read] == [
            scaled_in_float32(x, 2.0**-shift) for x in read]


def test_gemmini_mesh_never_wraps_between_accumulators():
    found = emu.bounds.data_types(1000, presets["gemmini_ws"].mac)
    assert (found.acc.width, found.acc.safe) == (20, True)
    assert not emu.bounds.data_types(1000, presets["gemmini_os"].mac).acc.safe


# NE16: weights bit by bit, the offset's share added as 32-bit sums wrap.


def ne16(a, b, acc):
    offset = -128
    stored = [weight - offset for weight in b]  # what the weight memory holds, unsigned
    for bit in range(8):
        block = sum(x for x, weight in zip(a, stored, strict=True) if weight >> bit & 1)
        acc = signed(32, acc + (block << bit))
    return signed(32, acc + offset * sum(a))


def ne16_shifter(x, shift):
    """8-bit mode with ReLU of ne16_normquant_shifter.sv."""
    shifted = x >> shift
    if shifted < 0:
        return 0
    return 0xFF if shifted >> 8 else shifted & 0xFF


def test_ne16_shifts_as_its_rtl():
    draw = random.Random(1)
    for shift in range(32):
        values = [draw.randint(-(2**31), 2**31 - 1) for _ in range(50)]
        values += [draw.randint(-3, 2**9) << shift >> 1 for _ in range(50)]
        assert [reference.cast(x, shift, presets["ne16"].out) for x in values] == [
            ne16_shifter(x, shift) for x in values]


# FINN: the loop of mac.hpp into an ap_int that wraps; and its rule for the width.


def finn(a, b, res):
    for c, d in zip(b, a, strict=True):
        res = signed(32, res + c * d)
    return res


def test_finn_chooses_the_width_of_the_exact_bound():
    mac = presets["finn_mvau"].mac
    for rows in (1, 7, 300):
        w = GENERATOR.integers(-8, 7, (rows, 5), np.int64, endpoint=True).tolist()
        columns = list(zip(*w, strict=True))
        high = max(sum(x * (15 if x > 0 else 0) for x in column) for column in columns)
        low = min(sum(x * (0 if x > 0 else 15) for x in column) for column in columns)
        bits = next(p for p in range(1, 99) if 2 ** (p - 1) >= max(-low, 1 + high))
        assert emu.bounds.matmul(w, mac).acc.limits == (low, high)
        assert emu.bounds.matmul(w, mac).acc.width == max(bits, 2)


# hls4ml: ap_fixed<16,6> everywhere, in another library's fixed point.


def hls4ml(a, b, start):
    accum = apytypes.APyFixed(start, 6, 10)
    for x, w in zip(a, b, strict=True):
        product = apytypes.APyFixed(x, 6, 10) * apytypes.APyFixed(w, 6, 10)
        mult = product.cast(6, 10, apytypes.QuantizationMode.TRN, apytypes.OverflowMode.WRAP)
        accum = (accum + mult).cast(6, 10, apytypes.QuantizationMode.TRN,
                                    apytypes.OverflowMode.WRAP)
    return signed(16, accum.to_bits())


# The collection.

UNITS = {
    "nvdla_int8": nvdla(34),
    "nvdla_int16": nvdla(48),
    "gemmini_ws": gemmini_ws,
    "gemmini_os": gemmini_os,
    "ne16": ne16,
    "x86_pmaddubsw": pmaddubsw,
    "x86_pmaddwd": pmaddwd,
    "x86_vpdpbusd": vpdpbusd,
    "x86_vpdpbusds": vpdpbusds,
    "arm_sdot": grouped(4, lambda x: signed(32, x)),
    "dsp48e1": grouped(1, lambda x: signed(48, x)),
    "dsp48e2": grouped(1, lambda x: signed(48, x)),
    "finn_mvau": finn,
    "hls4ml": hls4ml,
    "nvidia_mma_s8": grouped(32, lambda x: signed(32, x)),
    "nvidia_mma_s8_satfinite": grouped(32, saturate_dword),
    "tpu_v1": grouped(256, lambda x: signed(32, x)),
}


@pytest.mark.parametrize("name", list(presets))
def test_a_preset_computes_what_its_unit_computes(name):
    check(name, UNITS[name])


@pytest.mark.parametrize("name", list(presets))
def test_a_preset_says_what_it_is(name):
    preset = presets[name]
    assert preset.name == name
    assert hash(preset) == hash(presets[name])
    shown = str(preset)
    for part in (str(preset.mac), preset.source, preset.covers, preset.leaves_out):
        assert part
        assert part in shown
    assert emu.MacSpec.parse(str(preset.mac)) == preset.mac


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match="unknown preset 'x86_vpdpbus': did you mean"):
        presets["x86_vpdpbus"]
