"""The operations of `reference.py` on integer arrays, fast: codes in, codes out.

Each operation takes the fastest path whose exactness its condition proves. No torch, and floats
only at the border (`quantize`, `encode`, `dequantize`).
"""

from emu.engine.add import add, aligned_sum
from emu.engine.adder import adder2d, adder2d_grad_input, adder2d_grad_weight, adder_factor
from emu.engine.affine import rescale
from emu.engine.arrays import bounds, largest, narrowed
from emu.engine.casts import (
    Casted,
    cast,
    cast_full,
    codes_on,
    dequantize,
    encode,
    encode_for,
    floats_of,
    on_grid,
    passes,
    quantize,
    quantize_full,
)
from emu.engine.conv import Geometry, conv2d, conv2d_grad_input, conv2d_grad_weight
from emu.engine.conv_kinds import (
    conv1d,
    conv1d_grad_input,
    conv1d_grad_weight,
    conv_transpose2d,
    conv_transpose2d_grad_input,
    conv_transpose2d_grad_weight,
)
from emu.engine.draws import load_words, random_operands, resumed
from emu.engine.masks import masked, rectify
from emu.engine.matmul import matmul
from emu.engine.monitor import (
    CastAccount,
    First,
    MacAccount,
    Record,
    RegisterAccount,
    monitor,
    named,
    watching,
)
from emu.engine.norm import (
    Normed,
    NormGrads,
    Statistics,
    batch_norm,
    batch_norm_grad,
    frozen_norm,
    norm_divisors,
    norm_statistics,
    running_norm,
)
from emu.engine.paths import offer_int_mm
from emu.engine.pool import (
    adaptive_avg_pool2d,
    adaptive_avg_pool2d_grad,
    adaptive_max_pool2d,
    adaptive_spread,
    adaptive_sums,
    avg_pool2d,
    avg_pool2d_grad,
    divide,
    max_pool2d,
    max_pool2d_grad,
    multiply_shift,
    relu,
    relu_grad,
    window_spread,
    window_sums,
)
from emu.engine.ranges import cast_for, cast_for_codes
from emu.engine.table import (
    CrossEntropy,
    cross_entropy,
    lookup,
    lookup_grad,
    softmax,
    table_entries,
)
from emu.engine.threshold import dot_exactly, threshold_steps
from emu.engine.update import (
    Buffered,
    FloatsPlan,
    Updated,
    buffered_sgd,
    clip,
    floats_plan,
    norm_shift,
    sgd,
    sgd_of_floats,
    square_sum,
    squares_mac,
)

__all__ = [
    "Buffered", "CastAccount", "Casted", "CrossEntropy", "First", "FloatsPlan", "Geometry",
    "MacAccount", "NormGrads", "Normed", "Record", "RegisterAccount", "Statistics", "Updated",
    "adaptive_avg_pool2d", "adaptive_avg_pool2d_grad", "adaptive_max_pool2d", "adaptive_spread",
    "adaptive_sums", "add", "adder2d", "adder2d_grad_input", "adder2d_grad_weight", "adder_factor",
    "aligned_sum", "avg_pool2d", "avg_pool2d_grad", "batch_norm", "batch_norm_grad", "bounds",
    "buffered_sgd", "cast", "cast_for", "cast_for_codes", "cast_full", "clip", "codes_on", "conv1d",
    "conv1d_grad_input", "conv1d_grad_weight", "conv2d", "conv2d_grad_input", "conv2d_grad_weight",
    "conv_transpose2d", "conv_transpose2d_grad_input", "conv_transpose2d_grad_weight",
    "cross_entropy", "dequantize", "divide", "dot_exactly", "encode", "encode_for", "floats_of",
    "floats_plan", "frozen_norm", "largest", "load_words", "lookup", "lookup_grad", "masked",
    "matmul", "max_pool2d", "max_pool2d_grad", "monitor", "multiply_shift", "named", "narrowed",
    "norm_divisors", "norm_shift", "norm_statistics", "offer_int_mm", "on_grid", "passes",
    "quantize", "quantize_full", "random_operands", "rectify", "relu", "relu_grad", "rescale",
    "resumed", "running_norm", "sgd", "sgd_of_floats", "softmax", "square_sum", "squares_mac",
    "table_entries", "threshold_steps", "watching", "window_spread", "window_sums",
]
