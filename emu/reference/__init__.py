"""The definition of every operation, on Python ints: slow, exact, and meant to be read.

Tensors are nested lists of codes. Nothing here knows of numpy, of speed, or of any other
implementation; the engine, the Verilog and the vectors are all checked against it.
"""

from emu.reference.adder import (
    adder2d,
    adder2d_grad_input,
    adder2d_grad_weight,
    adder_dot,
    adder_factor,
    adder_steps,
)
from emu.reference.affine import rescale
from emu.reference.casts import (
    add,
    aligned_sum,
    cast,
    divide,
    fit,
    flag_pack,
    flag_unpack,
    overflows,
    passes,
    quantize,
    relu,
    relu_grad,
    round_divide,
    round_shift,
)
from emu.reference.draws import LFSR_MASK, STREAMS, lfsr_draw, load_words, random_operands
from emu.reference.mac import dot, dot_steps
from emu.reference.monitor import (
    CastAccount,
    DotAccount,
    Fitted,
    RegisterAccount,
    cast_account,
    fitted_values,
    watch_cast,
    watch_divide,
    watch_dot,
)
from emu.reference.norm import (
    Statistics,
    batch_norm,
    batch_norm_grad,
    frozen_norm,
    norm_divisor,
    norm_statistics,
    norm_xhat,
    root,
    running_norm,
)
from emu.reference.pool import (
    adaptive_avg_pool2d,
    adaptive_avg_pool2d_grad,
    adaptive_max_pool2d,
    avg_pool2d,
    avg_pool2d_grad,
    max_pool2d,
    max_pool2d_grad,
)
from emu.reference.ranges import cast_by, cast_for, float_codes
from emu.reference.sums import (
    bias_grad,
    bias_grad_terms,
    conv2d,
    conv2d_grad_input,
    conv2d_grad_input_terms,
    conv2d_grad_weight,
    conv2d_grad_weight_terms,
    conv2d_terms,
    matmul,
    matmul_terms,
)
from emu.reference.table import cross_entropy, lookup, lookup_grad, softmax, table_entries
from emu.reference.threshold import threshold_grad, threshold_step
from emu.reference.update import buffered_sgd, clip, norm_shift, sgd

__all__ = [
    "LFSR_MASK", "STREAMS", "CastAccount", "DotAccount", "Fitted", "RegisterAccount", "Statistics",
    "adaptive_avg_pool2d", "adaptive_avg_pool2d_grad", "adaptive_max_pool2d", "add", "adder2d",
    "adder2d_grad_input", "adder2d_grad_weight", "adder_dot", "adder_factor", "adder_steps",
    "aligned_sum", "avg_pool2d", "avg_pool2d_grad", "batch_norm", "batch_norm_grad", "bias_grad",
    "bias_grad_terms", "buffered_sgd", "cast", "cast_account", "cast_by", "cast_for", "clip",
    "conv2d", "conv2d_grad_input", "conv2d_grad_input_terms", "conv2d_grad_weight",
    "conv2d_grad_weight_terms", "conv2d_terms", "cross_entropy", "divide", "dot", "dot_steps",
    "fit", "fitted_values", "flag_pack", "flag_unpack", "float_codes", "frozen_norm", "lfsr_draw",
    "load_words", "lookup", "lookup_grad", "matmul", "matmul_terms", "max_pool2d",
    "max_pool2d_grad", "norm_divisor", "norm_shift", "norm_statistics", "norm_xhat", "overflows",
    "passes", "quantize", "random_operands", "relu", "relu_grad", "rescale", "root", "round_divide",
    "round_shift", "running_norm", "sgd", "softmax", "table_entries", "threshold_grad",
    "threshold_step", "watch_cast", "watch_divide", "watch_dot",
]
