"""The multiply-accumulate units of real machines, as specs: `emu.presets["x86_vpdpbusds"].mac`.

Each says where its semantics come from, what it covers and what it leaves out. Values only.
"""

from __future__ import annotations

from dataclasses import dataclass

from emu.number import Cast
from emu.spec import MacSpec
from emu.value import unknown


@dataclass(frozen=True)
class Preset:
    """One unit. `out`, where there is one, is the cast that its results leave by.

    A shift that the unit takes at run time is the frac of the codes: `emu.cast(acc, shift, out)`.
    """

    name: str
    mac: MacSpec
    out: Cast | None
    source: str
    covers: str
    leaves_out: str

    def __str__(self) -> str:
        shown = {"mac": self.mac, "out": self.out or "none: the accumulator is the result",
                 "source": self.source, "covers": self.covers, "leaves out": self.leaves_out}
        return "\n".join([self.name, *(f"  {key:<11} {value}" for key, value in shown.items())])


class _Presets(dict):
    def __missing__(self, name):
        raise unknown("preset", name, self)


def _preset(name: str, mac: str, source: str, covers: str, leaves_out: str,
            out: str | None = None) -> Preset:
    return Preset(name, MacSpec.parse(mac), out and Cast.parse(out), source, covers, leaves_out)


_NVDLA = "nvdla/hw, vmod/nvdla/cmac/NV_NVDLA_CMAC_CORE_mac.v, vmod/nvdla/cacc/NV_NVDLA_CACC_CALC_"
_GEMMINI = "ucb-bar/gemmini, src/main/scala/gemmini/PE.scala, Arithmetic.scala, Configs.scala"
_INTEL = "Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, "

presets = _Presets((preset.name, preset) for preset in (
    _preset(
        "nvdla_int8", "{a: s8, b: s8, acc: s34 sat, lanes: 64, block: 64}",
        _NVDLA + "int8.v",
        "direct convolution in int8 on nv_full and nv_large: 64 channels at once into a partial "
        "sum that saturates at 34 bits, block by block of 64 channels; then CLIP_TRUNCATE",
        "Winograd, fp16, non-zero padding; nv_small (lanes and block 8); CLIP_TRUNCATE above 16, "
        "where the RTL loses the lowest bits and takes some negatives for ties; the C model "
        "(cmod/cacc), which saturates int8 at 48 bits",
        out="s32 ties_away sat"),
    _preset(
        "nvdla_int16", "{a: s16, b: s16, acc: s48 sat, lanes: 64, block: 64}",
        _NVDLA + "int16.v",
        "direct convolution in int16 on nv_full: as nvdla_int8, saturating at 48 bits",
        "as nvdla_int8, save the C model: it saturates here too at 48 bits",
        out="s32 ties_away sat"),
    _preset(
        "gemmini_ws",
        "{a: s8, b: s8, acc: s20 wrap, block: 16, tile: 16, outer: s32 wrap}",
        _GEMMINI + ", AccumulatorMem.scala",
        "the default 16 x 16 mesh, weight-stationary: partial sums run down 16 rows in 20 bits "
        "(16 products always fit) and wrap into 32-bit accumulators; read out by a scale of 2^-n",
        "scales that are no power of two, and read-out of accumulators beyond 24 bits: both round "
        "in float32 first; activations; unsigned types, clipped by a signed limit",
        out="s8 ties_even sat"),
    _preset(
        "gemmini_os", "{a: s8, b: s8, acc: s20 wrap}", _GEMMINI,
        "the output-stationary mesh: the register has 32 bits, but what the MAC unit gives it has "
        "20, so the sum wraps there; then the rounding shift that leaves the mesh",
        "what follows the mesh (accumulator or scratchpad), as in gemmini_ws",
        out="s20 ties_even sat"),
    _preset(
        "ne16", "{a: u8, b: s8, acc: s32 wrap, lanes: 144, block: 16}",
        "pulp-platform/ne16, rtl/array/ne16_binconv_block.sv, ne16_scale.sv, "
        "rtl/accumulator/ne16_accumulator_normquant.sv, ne16_normquant_shifter.sv",
        "3 x 3 convolution with 8-bit activations: weights bit by bit plus the weight offset are "
        "one signed weight, as 32-bit sums wrap; then shift, floor and clip under ReLU",
        "16-bit activations; the scale and bias of normquant before the shift, which wrap in 32 "
        "bits; its rounding bit is computed in the RTL, but not added; without ReLU out is s8",
        out="u8 to_neg sat"),
    _preset(
        "x86_pmaddubsw", "{a: u8, b: s8, acc: s16 sat, lanes: 2, tile: 2, outer: s32 wrap}",
        _INTEL + "PMADDUBSW, PMADDWD, PADDD",
        "int8 matmul on AVX2 and AVX-512BW: vpmaddubsw (a pair of products, saturated in 16 bits), "
        "vpmaddwd by 1, vpaddd",
        "kernels that keep accumulating in 16 bits (vpaddsw) before they widen"),
    _preset(
        "x86_pmaddwd", "{a: s16, b: s16, acc: s32 wrap, lanes: 2}", _INTEL + "PMADDWD, PADDD",
        "int16 matmul on SSE2 to AVX-512BW; and vpdpwssd",
        "vpdpwssds, which saturates"),
    _preset(
        "x86_vpdpbusd", "{a: u8, b: s8, acc: s32 wrap, lanes: 4}", _INTEL + "VPDPBUSD",
        "AVX-512 VNNI and AVX-VNNI: four products and the accumulator, wrapping",
        "signed activations: kernels shift them to unsigned and correct by the sum of weights"),
    _preset(
        "x86_vpdpbusds", "{a: u8, b: s8, acc: s32 sat, lanes: 4}", _INTEL + "VPDPBUSDS",
        "as x86_vpdpbusd, saturating once after each sum of four products and the accumulator",
        "as x86_vpdpbusd"),
    _preset(
        "arm_sdot", "{a: s8, b: s8, acc: s32 wrap, lanes: 4}",
        "Arm A64 instruction set, SDOT (vector), FEAT_DotProd",
        "SDOT by vector and by element, and SMMLA, whose eight products wrap the same",
        "UDOT, USDOT and SUDOT: other signs of a and b, the same sum"),
    _preset(
        "dsp48e1", "{a: s25, b: s18, acc: s48 wrap}", "AMD UG479, 7 Series DSP48E1 Slice",
        "multiplier of A (25 bits) and B (18) into P, 48 bits modulo 2^48",
        "pre-adder, pattern detector (saturation is logic around it), SIMD, cascades"),
    _preset(
        "dsp48e2", "{a: s27, b: s18, acc: s48 wrap}", "AMD UG579, UltraScale DSP48E2 Slice",
        "multiplier of A (27 bits) and B (18) into P, 48 bits modulo 2^48",
        "as dsp48e1"),
    _preset(
        "finn_mvau", "{a: u4, b: s4, acc: s32 wrap}",
        "Xilinx/finn-hlslib, mvau.hpp and mac.hpp; Xilinx/finn, "
        "src/finn/custom_op/fpgadataflow/matrixvectoractivation.py",
        "the matrix-vector unit with W4A4 operands and accDataType at its default INT32; SIMD "
        "does not matter, as every addition wraps",
        "thresholds; binary XNOR mode; the width that minimize_accumulator_width chooses from the "
        "weights, which is emu.bounds.matmul(w, mac).acc.width (it uses a float logarithm)"),
    _preset(
        "hls4ml", "{a: s16, b: s16, product: s16f-10 to_neg wrap, acc: s16f-10 wrap}",
        "fastmachinelearning/hls4ml, hls4ml/templates/vivado/nnet_utils/nnet_dense_latency.h, "
        "nnet_mult.h; ap_fixed's defaults AP_TRN and AP_WRAP",
        "dense and convolution with everything, accum_t too, in ap_fixed<16,6>: each product is "
        "cast to accum_t before it is added; frac 10 for a, b and the result",
        "other precisions, binary and ternary weights, tables of activations"),
    _preset(
        "nvidia_mma_s8", "{a: s8, b: s8, acc: s32 wrap, lanes: 32}",
        "NVIDIA PTX ISA, mma.sync.aligned.m16n8k32.s32.s8.s8.s32",
        "int8 tensor cores without .satfinite: 32-bit sums that wrap, in any order",
        "u8 and mixed operands, which wrap the same; s4"),
    _preset(
        "nvidia_mma_s8_satfinite", "{a: s8, b: s8, acc: s32 sat, lanes: 32}",
        "NVIDIA PTX ISA, mma.sync.aligned.m16n8k32 with .satfinite",
        "int8 tensor cores with .satfinite: the accumulator clamped after each instruction",
        "whether the hardware clamps within the instruction's 32 products, which PTX leaves open"),
    _preset(
        "tpu_v1", "{a: s8, b: s8, acc: s32 wrap, lanes: 256, block: 256}",
        "Jouppi and others, In-Datacenter Performance Analysis of a Tensor Processing Unit, "
        "ISCA 2017, section 2",
        "the 256 x 256 matrix unit: a column's 256 products are one partial sum, collected in "
        "32-bit accumulators",
        "what an accumulator does when it overflows, which is not published (wrap is assumed); "
        "16-bit operands; activation and normalisation"),
))
