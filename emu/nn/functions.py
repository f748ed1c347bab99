"""Which torch functions the hardware computes, and by what: the whole torch side in one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F

from emu.nn.adder import adder2d, power_of_two
from emu.nn.ops import (
    adder,
    attention,
    composite,
    contract,
    einsum,
    elementwise,
    move,
    norm,
    pool,
    rectify,
    recurrent,
    reduce,
    softmax,
    table,
)
from emu.spec import LayerSpec

ALL = tuple(f.name for f in fields(LayerSpec) if f.name != "norm")
PRODUCT = ("x", "w", "y", "error", "forward", "grad_input", "grad_weight",
           "mask")  # of two activations
CAST = ("x", "y", "error", "mask")
NORM = ("x", "w", "b", "y", "error", "grad_w", "grad_b", "norm", "update", "mask")
LOOKUP = ("x", "w", "y", "error", "mask")  # w: the entries of a slope, or of exp
NONE = ()
SUM = ("x", "y", "error", "grad_w", "mask")
PAIR = ("x", "w", "y", "error", "grad_w", "mask")


class Entry(NamedTuple):
    """One function of the hardware.

    `name` names its sites within a module; a module that has one of `kinds` among its classes is
    this function itself. `uses` are the settings of a LayerSpec that it has, `channels` is the axis
    of its tensors that holds the channels. A composite function is written in other functions of
    the table.
    """

    name: str
    function: Callable
    kinds: tuple[str, ...]
    uses: tuple[str, ...]
    channels: int | None = None
    composite: bool = False
    takes: Callable | None = None  # whether the hardware has this call; None: each


T = torch.Tensor
TABLE: dict[Callable, Entry] = {}
for names, entry in {
    (torch.add, T.add, T.add_): Entry("add", elementwise.add, ("add",), SUM),
    (torch.sub, T.sub, T.sub_, torch.subtract, T.subtract, T.subtract_): Entry(
        "sub", elementwise.sub, ("sub",), SUM),
    (torch.rsub, T.__rsub__): Entry("rsub", elementwise.rsub, ("rsub",), SUM),
    (torch.mul, T.mul, T.mul_, torch.multiply, T.multiply, T.multiply_): Entry(
        "mul", elementwise.mul, ("mul",), PAIR),
    (torch.div, T.div, T.div_, torch.divide, T.divide, T.divide_, torch.true_divide, T.true_divide,
     T.true_divide_): Entry("div", elementwise.div, ("div",), PAIR,
                            takes=lambda *args, rounding_mode=None: rounding_mode is None),
    (T.__rdiv__,): Entry("rdiv", elementwise.rdiv, ("rdiv",), PAIR),
    (torch.square, T.square, T.square_): Entry("square", elementwise.square, ("square",), CAST),
    (torch.pow, T.pow, T.pow_, T.__pow__, T.__ipow__): Entry(
        "pow", elementwise.square, ("pow",), CAST,
        takes=lambda x, exponent: isinstance(exponent, int | float) and exponent == 2),
    (torch.neg, T.neg, T.neg_, torch.negative, T.negative, T.negative_): Entry(
        "neg", elementwise.neg, ("neg",), NONE),
    (torch.abs, T.abs, T.abs_, torch.absolute, T.absolute, T.absolute_): Entry(
        "abs", elementwise.absolute, ("abs",), NONE),
    (T.__getitem__,): Entry("getitem", partial(move.any_move, T.__getitem__), ("getitem",), NONE,
                            takes=move.is_gather),
    (T.__setitem__,): Entry("setitem", move.setitem, ("setitem",), NONE),
    (T.copy_,): Entry("copy", move.copy, ("copy",), NONE, takes=move.wants_gradient),
    (T.to,): Entry("to", partial(move.convert, T.to), ("to",), NONE,
                   takes=partial(move.converts, None)),
    (T.type_as,): Entry("type_as", partial(move.convert, T.type_as), ("type_as",), NONE,
                        takes=partial(move.converts, None)),
    (T.float,): Entry("float", partial(move.convert, T.float), ("float",), NONE,
                      takes=partial(move.converts, torch.float32)),
    (T.double,): Entry("double", partial(move.convert, T.double), ("double",), NONE,
                       takes=partial(move.converts, torch.float64)),
    (torch.where,): Entry("where", move.where, ("where",), NONE),
    (T.where,): Entry("self_where", move.where_method, ("self_where",), NONE),
    (torch.masked_fill, T.masked_fill, T.masked_fill_): Entry(
        "masked_fill", move.masked_fill, ("masked_fill",), NONE),
    (F.pad,): Entry("pad", move.pad, ("pad", *(
        f"{mode}Pad{d}d" for mode in ("Constant", "Reflection", "Replication", "Circular")
        for d in (1, 2, 3))), NONE),
    (F.embedding,): Entry("embedding", move.embedding, ("Embedding",),
                          ("w", "error", "grad_w", "update")),
    (F.interpolate,): Entry("interpolate", partial(move.any_move, F.interpolate), ("Upsample",),
                            NONE, takes=lambda *args, mode="nearest", **_: mode == "nearest"),
    (F.unfold,): Entry("im2col", partial(move.any_move, F.unfold), ("Unfold",), NONE),
    (F.linear,): Entry("linear", contract.linear, ("Linear",), ALL, -1),
    (torch.conv2d,): Entry("conv2d", contract.conv2d, ("Conv2d",), ALL, 1),
    (adder2d,): Entry("adder2d", adder.adder2d, ("Adder2d",), ALL, 1),
    (power_of_two,): Entry("power_of_two", adder.power_of_two, ("power_of_two",), NONE),
    (torch.conv1d,): Entry("conv1d", contract.conv1d, ("Conv1d",), ALL, 1),
    (torch.conv_transpose1d,): Entry("conv_transpose1d", contract.conv_transpose1d,
                                     ("ConvTranspose1d",), ALL, 1),
    (torch.conv_transpose2d,): Entry("conv_transpose2d", contract.conv_transpose2d,
                                     ("ConvTranspose2d",), ALL, 1),
    (torch.matmul, torch.bmm, torch.mm, torch.mv, torch.dot, torch.Tensor.matmul, torch.Tensor.bmm,
     torch.Tensor.mm, torch.Tensor.mv, torch.Tensor.dot, torch.Tensor.__matmul__): Entry(
         "matmul", contract.matmul, ("matmul",), PRODUCT),
    (torch.einsum,): Entry("einsum", einsum.einsum, ("einsum",), NONE, composite=True),
    (F.relu, F.relu_, torch.relu, torch.relu_, T.relu, T.relu_): Entry(
        "relu", rectify.relu, ("ReLU",), NONE),
    (F.relu6,): Entry("relu6", rectify.relu6, ("ReLU6",), NONE),
    (F.leaky_relu, F.leaky_relu_): Entry("leaky_relu", rectify.leaky_relu, ("LeakyReLU",), LOOKUP),
    (torch.prelu, T.prelu): Entry("prelu", rectify.prelu, ("PReLU",), (*PAIR, "update")),
    (F.hardtanh, F.hardtanh_): Entry("hardtanh", rectify.hardtanh, ("Hardtanh",), NONE),
    (F.threshold, F.threshold_): Entry("threshold", rectify.threshold, ("Threshold",), NONE),
    (torch.clamp, T.clamp, T.clamp_, torch.clip, T.clip, T.clip_): Entry(
        "clamp", rectify.clamp, ("clamp",), NONE),
    (torch.clamp_min, T.clamp_min, T.clamp_min_): Entry(
        "clamp_min", rectify.clamp_min, ("clamp_min",), NONE),
    (torch.clamp_max, T.clamp_max, T.clamp_max_): Entry(
        "clamp_max", rectify.clamp_max, ("clamp_max",), NONE),
    (torch.maximum, T.maximum): Entry("maximum", rectify.maximum, ("maximum",), NONE),
    (torch.minimum, T.minimum): Entry("minimum", rectify.minimum, ("minimum",), NONE),
    (torch.max, T.max): Entry("max", rectify.largest, ("max",), NONE, takes=rectify.takes_extreme),
    (torch.min, T.min): Entry("min", rectify.smallest, ("min",), NONE,
                              takes=rectify.takes_extreme),
    (F.dropout,): Entry("dropout", rectify.dropout, ("Dropout",), NONE, composite=True),
    (F.dropout1d, F.dropout2d, F.dropout3d): Entry(
        "feature_dropout", rectify.feature_dropout, ("Dropout1d", "Dropout2d", "Dropout3d"), NONE,
        composite=True),
    (F.max_pool1d, F.max_pool1d_with_indices): Entry(
        "max_pool1d", partial(pool.max_pool, 1), ("MaxPool1d",), NONE),
    (F.max_pool2d, F.max_pool2d_with_indices): Entry(
        "max_pool2d", partial(pool.max_pool, 2), ("MaxPool2d",), NONE),
    (F.adaptive_max_pool1d, F.adaptive_max_pool1d_with_indices): Entry(
        "adaptive_max_pool1d", partial(pool.adaptive_max_pool, 1), ("AdaptiveMaxPool1d",), NONE),
    (F.adaptive_max_pool2d, F.adaptive_max_pool2d_with_indices): Entry(
        "adaptive_max_pool2d", partial(pool.adaptive_max_pool, 2), ("AdaptiveMaxPool2d",), NONE),
    (F.avg_pool1d,): Entry("avg_pool1d", partial(pool.avg_pool, 1), ("AvgPool1d",),
                           ("y", "error"), -2),
    (F.avg_pool2d,): Entry("avg_pool2d", partial(pool.avg_pool, 2), ("AvgPool2d",),
                           ("y", "error"), -3),
    (F.adaptive_avg_pool1d,): Entry("adaptive_avg_pool1d", partial(pool.adaptive_avg_pool, 1),
                                    ("AdaptiveAvgPool1d",), ("y", "error"), -2),
    (F.adaptive_avg_pool2d,): Entry("adaptive_avg_pool2d", partial(pool.adaptive_avg_pool, 2),
                                    ("AdaptiveAvgPool2d",), ("y", "error"), -3),
    (torch.sum, T.sum): Entry("sum", reduce.total, ("sum",), ("y", "error"),
                              takes=reduce.in_own_dtype),
    (torch.mean, T.mean): Entry("mean", reduce.mean, ("mean",), ("y", "error"),
                                takes=reduce.in_own_dtype),
    (torch.amax, T.amax): Entry("amax", reduce.amax, ("amax",), NONE),
    (torch.amin, T.amin): Entry("amin", reduce.amin, ("amin",), NONE),
    (F.batch_norm,): Entry("batch_norm", norm.batch_norm,
                           ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d"), NORM, 1),
    (F.cross_entropy,): Entry("cross_entropy", softmax.cross_entropy, ("CrossEntropyLoss",),
                              LOOKUP),
    (F.elu, F.elu_): Entry("elu", table.elu, ("ELU",), LOOKUP),
    (torch.exp, torch.exp_, torch.Tensor.exp, torch.Tensor.exp_): Entry(
        "exp", table.function("exp"), ("exp",), LOOKUP),
    (F.gelu,): Entry("gelu", table.gelu, ("GELU",), LOOKUP),
    (F.group_norm,): Entry("group_norm", norm.group_norm, ("GroupNorm",), NORM, 1),
    (F.hardsigmoid,): Entry("hardsigmoid", table.function("hardsigmoid"), ("Hardsigmoid",), LOOKUP),
    (F.hardswish,): Entry("hardswish", table.function("hardswish"), ("Hardswish",), LOOKUP),
    (F.instance_norm,): Entry("instance_norm", norm.instance_norm, (
        "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"), NORM, 1),
    (F.layer_norm,): Entry("layer_norm", norm.layer_norm, ("LayerNorm",), NORM, -1),
    (F.log_softmax, torch.log_softmax, torch.Tensor.log_softmax): Entry(
        "log_softmax", softmax.log_softmax, ("LogSoftmax",), LOOKUP),
    (F.mish,): Entry("mish", table.function("mish"), ("Mish",), LOOKUP),
    (F.sigmoid, torch.sigmoid, torch.sigmoid_, torch.Tensor.sigmoid, torch.Tensor.sigmoid_): Entry(
        "sigmoid", table.function("sigmoid"), ("Sigmoid",), LOOKUP),
    (F.silu,): Entry("silu", table.function("silu"), ("SiLU",), LOOKUP),
    (F.softmax, torch.softmax, torch.Tensor.softmax): Entry(
        "softmax", softmax.softmax, ("Softmax", "Softmax2d"), LOOKUP),
    (F.softplus,): Entry("softplus", table.softplus, ("Softplus",), LOOKUP),
    (F.tanh, torch.tanh, torch.tanh_, torch.Tensor.tanh, torch.Tensor.tanh_): Entry(
        "tanh", table.function("tanh"), ("Tanh",), LOOKUP),
}.items():
    TABLE.update(dict.fromkeys(names, entry))

# Those that only move values, and whose gradients torch would add up.
for name in ("broadcast_to", "cat", "column_stack", "concat", "concatenate", "dstack", "expand",
             "expand_as", "gather", "hstack", "index_copy", "index_select", "masked_scatter",
             "masked_select", "repeat", "repeat_interleave", "scatter", "stack", "take",
             "take_along_dim", "tile", "unfold", "vstack"):
    of = [getattr(home, name, None) for home in (T, torch)]
    entry = Entry(name, partial(move.any_move, next(filter(None, of))), (name,), NONE,
                  takes=move.is_scatter if name == "scatter" else None)
    TABLE |= dict.fromkeys([*filter(None, of), *filter(None, [getattr(T, f"{name}_", None)])],
                           entry)

for names, name, function, kind in (
        ((F.scaled_dot_product_attention,), "attention", attention.scaled_dot_product_attention,
         "attention"),
        ((F.multi_head_attention_forward,), "multi_head_attention",
         attention.multi_head_attention_forward, "MultiheadAttention"),
        ((torch.lstm,), "lstm", recurrent.lstm, "LSTM"),
        ((torch.lstm_cell,), "lstm_cell", recurrent.lstm_cell, "LSTMCell"),
        ((torch.gru,), "gru", recurrent.gru, "GRU"),
        ((torch.gru_cell,), "gru_cell", recurrent.gru_cell, "GRUCell"),
        ((torch.rnn_tanh,), "rnn_tanh", recurrent.rnn_tanh, "RNN"),
        ((torch.rnn_relu,), "rnn_relu", recurrent.rnn_relu, "RNN"),
        ((torch.rnn_tanh_cell,), "rnn_tanh_cell", recurrent.rnn_tanh_cell, "RNNCell"),
        ((torch.rnn_relu_cell,), "rnn_relu_cell", recurrent.rnn_relu_cell, "RNNCell"),
        ((F.bilinear,), "bilinear", composite.bilinear, "Bilinear"),
        ((torch.addmm, T.addmm, torch.baddbmm, T.baddbmm), "addmm", composite.addmm, "addmm")):
    TABLE |= dict.fromkeys(names, Entry(name, function, (kind,), NONE, composite=True))

# What recurrent networks call instead of linear, each beside what gives its shape in torch.
STEPS = {name: (of, TABLE[F.linear]._replace(name=name, function=function))
         for name, of, function in (("step", F.linear, recurrent.step),
                                    ("shared", lambda x, name: x, recurrent.shared))}

# Modules that are an entry's function: the classes that a configuration may name.
KINDS = {kind: entry for entry in TABLE.values() for kind in entry.kinds}
