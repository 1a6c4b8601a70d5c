"""Products with what a checkpoint stores, in plain torch: on every device that has no kernels of its own.

One layer's weight is unpacked at a time, in the dtype of its product, and freed after it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import quantization as q
from ..operators import TABLE_ROWS, implement
from ..torch_reference import check_tokens


@implement("ternary_linear", "CompositeExplicitAutograd")
def ternary_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    out_features: int,
    bias: Tensor | None = None,
    group_size: int | None = None,
    activation_bits: int | None = 8,
    dtype: torch.dtype | None = None,
) -> Tensor:
    dtype = dtype or x.dtype
    codes = q.unpack_ternary(weight, out_features, q.product_dtype(x.device, dtype))
    options: dict[str, Any] = {"group_size": group_size, "activation_bits": activation_bits, "out_dtype": dtype}
    return q.ternary_linear(x, codes, weight_scale, bias, **options)


@implement("table_linear", "CompositeExplicitAutograd")
def table_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None) -> Tensor:
    x_q, s = q.quantize_activations(x)
    slices = [slice(start, start + TABLE_ROWS) for start in range(0, weight.shape[0], TABLE_ROWS)]
    y = torch.cat([_table_product(x, x_q, weight[rows], weight_scale[rows]) for rows in slices], dim=-1) / s
    return (y if bias is None else y + bias.float()).to(x.dtype)


def _table_product(x: Tensor, x_q: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    if codes.dtype == torch.int8 and x.device.type != "cpu" and x.dtype == torch.bfloat16:
        # (bfloat16 holds the integers of both; the result is rounded, as that of any head in bfloat16.)
        return (x_q.to(x.dtype) @ codes.to(x.dtype).T) * scale.float()
    return x_q @ q.dequantize_table(codes, scale, x.shape[-1]).T


@implement("table_embedding", "CompositeExplicitAutograd")
def table_embedding(index: Tensor, weight: Tensor, weight_scale: Tensor, embedding_dim: int) -> Tensor:
    if index.device.type == "cpu":  # (elsewhere looking would wait for the device, which asserts by itself)
        check_tokens(index, weight.shape[0])
    flat = index.reshape(-1)
    codes, scale = (tensor.index_select(0, flat) for tensor in (weight, weight_scale))
    return q.dequantize_table(codes, scale, embedding_dim).view(*index.shape, embedding_dim)
