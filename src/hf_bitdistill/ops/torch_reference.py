"""The operators in plain torch: used where the native library cannot be, and to test it.

Results equal those of the library bit for bit: the integer products are exact in floating point (float32 holds every
integer below 2^24), and the floating-point steps have the same order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..quantization import INT4_GROUP
from . import kernel_layout as form
from .kernel_layout import INT4, INT8, TERNARY, PackedWeight


# Rows that are unpacked at a time, so that a large output head does not need its size again in floats.
_ROWS = 4096


def ternary_pack(weight: Tensor, weight_scale: Tensor, out_features: int, group_size: int = 0) -> Tensor:
    codes = torch.cat([(weight >> (2 * k)) & 3 for k in range(4)])[:out_features]
    if (codes == 3).any():
        raise ValueError("the weight holds an invalid code")
    header = PackedWeight(TERNARY, out_features, weight.shape[1], group_size)
    header.tensor_scale = weight_scale.numel() == 1 and header.rows * header.groups != 1
    _check_scales(header, weight_scale)
    return form.pack(header, codes, weight_scale)


def int8_pack(weight: Tensor, weight_scale: Tensor) -> Tensor:
    if (weight == -128).any():
        raise ValueError("the weight holds an invalid code")
    header = PackedWeight(INT8, *weight.shape)
    _check_scales(header, weight_scale)
    return form.pack(header, weight, weight_scale)


def int4_pack(weight: Tensor, weight_scale: Tensor, in_features: int) -> Tensor:
    codes = torch.stack([weight & 15, weight >> 4], dim=-1).view(weight.shape[0], -1)[:, :in_features]
    header = PackedWeight(INT4, weight.shape[0], in_features, INT4_GROUP)
    _check_scales(header, weight_scale)
    return form.pack(header, codes, weight_scale)


def _check_scales(header: PackedWeight, scale: Tensor) -> None:
    if scale.numel() != (1 if header.tensor_scale else header.rows * header.groups):
        raise ValueError(f"{scale.numel()} scales do not fit {header.rows} rows of {header.groups} groups")
    if not torch.isfinite(scale).all():
        raise ValueError("a scale is not finite")


def quantize_activations(x: Tensor, norm_weight: Tensor | None, norm_eps: float) -> tuple[Tensor, Tensor]:
    v = x.float()
    if norm_weight is not None:
        mean_square = v.double().square().sum(-1, keepdim=True) / v.shape[-1]
        v = (
            v
            * (1.0 / (mean_square + torch.tensor(norm_eps, dtype=torch.float32).double()).sqrt()).float()
            * norm_weight
        )
    finite = torch.isfinite(v).all(-1, keepdim=True)
    v = torch.where(finite, v, 0.0)
    s = v.abs().amax(-1, keepdim=True).clamp_min(1e-5).reciprocal() * 127.0
    x_q = (v * s).round().clamp(-128, 127).to(torch.int8)
    return x_q, torch.where(finite, s, torch.nan).squeeze(-1)


def matmul_int32(x_q: Tensor, packed: Tensor, out_features: int, groups: int) -> Tensor:
    header = _header(packed, out_features, x_q.shape[-1])
    tokens = x_q.reshape(-1, header.cols)
    parts = []
    for start in range(0, header.rows, _ROWS):
        values = form.unpack_rows(packed, header, start, min(start + _ROWS, header.rows))
        parts.append(torch.stack([_product(tokens, values, columns) for columns in _group_slices(header)], dim=-1))
    return torch.cat(parts, dim=1).to(torch.int32).view(*x_q.shape[:-1], header.rows, header.groups)


def linear(
    x: Tensor, packed: Tensor, out_features: int, bias: Tensor | None, norm_weight: Tensor | None, norm_eps: float
) -> Tensor:
    header = _header(packed, out_features, x.shape[-1])
    x_q, s = quantize_activations(x.reshape(-1, header.cols), norm_weight, norm_eps)
    scale = form.scales_of(packed, header)
    parts = []
    for start in range(0, header.rows, _ROWS):
        stop = min(start + _ROWS, header.rows)
        values = form.unpack_rows(packed, header, start, stop)
        row_scale = scale if header.tensor_scale else scale[start:stop]
        part: Any = 0.0
        for group, columns in enumerate(_group_slices(header)):
            part = part + _product(x_q, values, columns).float() * row_scale[:, group]
        parts.append(part * s.reciprocal()[:, None])
    y = torch.cat(parts, dim=1)
    if bias is not None:
        y = y + bias
    return y.view(*x.shape[:-1], header.rows)


def check_tokens(index: Tensor, rows: int) -> None:
    """Refuse token ids that are no rows of a table.

    Raises:
        IndexError: naming the first one and its place in `index`.
    """
    outside = ((index < 0) | (index >= rows)).nonzero().tolist()
    if outside:
        place = outside[0]
        raise IndexError(f"token id {int(index[tuple(place)])} at {place} is not in the vocabulary of {rows} tokens.")


def embedding(index: Tensor, packed: Tensor, embedding_dim: int) -> Tensor:
    header = form.read_header(packed)
    if header.cols != embedding_dim:
        raise ValueError(f"the weight has {header.cols} columns, not {embedding_dim}")
    check_tokens(index, header.rows)
    scale = form.scales_of(packed, header)
    out = torch.empty(index.numel(), header.cols)
    for i, row in enumerate(index.reshape(-1).tolist()):
        start = row // 16 * 16
        values = form.unpack_rows(packed, header, start, min(start + 16, header.rows))[row - start].float()
        row_scale = scale[0 if header.tensor_scale else row]
        if header.group_size:
            row_scale = row_scale.repeat_interleave(header.group_size)[: header.cols]
        out[i] = values * row_scale + 0.0
    return out.view(*index.shape, header.cols)


def _header(packed: Tensor, rows: int, cols: int) -> PackedWeight:
    header = form.read_header(packed)
    if (header.rows, header.cols) != (rows, cols):
        raise ValueError(f"the packed weight is {header.rows} x {header.cols}, the call asks for {rows} x {cols}")
    return header


def _group_slices(header: PackedWeight) -> list[slice]:
    width = header.group_size or header.cols
    return [slice(start, min(start + width, header.cols)) for start in range(0, header.cols, width)]


def _product(x_q: Tensor, values: Tensor, columns: slice) -> Tensor:
    largest = 128 * int(values.abs().max()) * (columns.stop - columns.start)
    dtype = torch.float32 if largest <= 2**24 else torch.float64
    return x_q[:, columns].to(dtype) @ values[:, columns].to(dtype).T
