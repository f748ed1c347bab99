"""Attention, written in functions of the table."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from emu.nn.frames import named, site


def scaled_dot_product_attention(query, key, value, attn_mask=None, dropout_p=0.0,
                                 is_causal=False, scale=None, enable_gqa=False):
    """torch.nn.functional.scaled_dot_product_attention of query (..., L, E), key (..., S, E).

    Sites: `scale` (the query times 1 / sqrt(E), a number that the cast w rounds), `scores`, `mask`
    (of masks that add), `softmax`, `dropout`, `values`.
    """
    if enable_gqa:
        raise ValueError(f"{site()}: attention has no enable_gqa here; repeat the heads "
                         "of key and value")
    masks = []
    if attn_mask is not None:
        masks.append(~attn_mask if attn_mask.dtype == torch.bool else attn_mask)
    if is_causal:
        masks.append(torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).triu(1))
    return _attend(query, key, value, masks, dropout_p, scale)[0]


def _attend(query, key, value, masks, dropout: float, scale: float | None = None):
    """(values, probabilities) of heads (..., L, E).

    Masks broadcast to (..., L, S): bools that are true where a key is absent, or numbers to add.
    """
    with named("scale"):
        query = torch.mul(query, 1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    with named("scores"):
        scores = torch.matmul(query, key.transpose(-2, -1))
    for mask in masks:
        absent = mask if mask.dtype == torch.bool else mask == -math.inf
        if mask is not absent:
            added = mask.masked_fill(absent, 0)
            if added.requires_grad or added.any():
                with named("mask"):
                    scores = torch.add(scores, added)
        scores = scores.masked_fill(absent, -math.inf)
    with named("softmax"):
        weights = F.softmax(scores, -1)
    mixed = weights
    if dropout:
        with named("dropout"):
            mixed = F.dropout(weights, dropout)
    with named("values"):
        return torch.matmul(mixed, value), mixed


def multi_head_attention_forward(
        query, key, value, embed_dim_to_check, num_heads, in_proj_weight, in_proj_bias,
        bias_k, bias_v, add_zero_attn, dropout_p, out_proj_weight, out_proj_bias, training=True,
        key_padding_mask=None, need_weights=True, attn_mask=None, use_separate_proj_weight=False,
        q_proj_weight=None, k_proj_weight=None, v_proj_weight=None, static_k=None, static_v=None,
        average_attn_weights=True, is_causal=False):
    """torch.nn.functional.multi_head_attention_forward of query (L, N, E), key (S, N, E).

    Sites: `q_proj`, `k_proj`, `v_proj`, those of attention, `out_proj`, and `average` of the heads'
    probabilities: times 1 / heads, a number in the cast w. A bias or zero row in key and value is
    refused.
    """
    unknown = {"add_bias_kv": bias_k is not None, "add_zero_attn": add_zero_attn,
               "static_k": static_k is not None, "static_v": static_v is not None}
    for name, given in unknown.items():
        if given:
            raise ValueError(f"{site()}: multi-head attention has no {name} here; "
                             "append to key and value yourself")
    if query.shape[-1] != embed_dim_to_check or embed_dim_to_check % num_heads:
        raise ValueError(f"{site()}: query {tuple(query.shape)} with {num_heads} heads; "
                         f"needs (..., {embed_dim_to_check}), a multiple of the heads")
    single = query.dim() == 2
    if single:
        query, key, value = (x.unsqueeze(1) for x in (query, key, value))
        key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
    length, batch, features = query.shape
    weights = ((q_proj_weight, k_proj_weight, v_proj_weight) if use_separate_proj_weight
               else in_proj_weight.chunk(3))
    biases = [None] * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
    heads = []
    for name, x, weight, bias in zip("qkv", (query, key, value), weights, biases, strict=True):
        with named(f"{name}_proj"):
            parts = F.linear(x, weight, bias)
            parts = parts.reshape(*parts.shape[:-1], num_heads, -1)
        heads.append(parts.permute(1, 2, 0, 3))
    masks = []
    if attn_mask is not None:
        masks.append(attn_mask if attn_mask.dim() == 2 else attn_mask.view(
            batch, num_heads, *attn_mask.shape[1:]))
    elif is_causal:
        raise ValueError(f"{site()}: is_causal only says what attn_mask is; give it")
    if key_padding_mask is not None:
        masks.append(key_padding_mask[:, None, None])
    mixed, shares = _attend(*heads, masks, dropout_p if training else 0.0)
    mixed = mixed.permute(2, 0, 1, 3).reshape(length, batch, features)
    with named("out_proj"):
        out = F.linear(mixed, out_proj_weight, out_proj_bias)
    out = out.squeeze(1) if single else out
    if not need_weights:
        return out, None
    if average_attn_weights:
        with named("average"):
            shares = torch.matmul(shares.permute(0, 2, 3, 1), shares.new_full(
                (num_heads,), 1 / num_heads))
    return out, shares.squeeze(0) if single else shares
