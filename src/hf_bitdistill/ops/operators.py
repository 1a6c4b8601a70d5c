"""The torch operators `hf_bitdistill::*`: schema, fake kernel and gradient of each. Who computes them is in `backends/`.

Packed weights are opaque uint8 tensors made by the `*_pack` operators; they are for computing, not for storing. `ternary_linear` and the
`table_*` operators read what a checkpoint stores, on any device: their kernels make of it what they need.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..quantization import INT4_GROUP, dequantize_table, expand_weight_scale, unpack_ternary
from . import binding
from . import kernel_layout as form


MAX_COLUMNS = 131072
"""Widest input whose integer sums are exact in every backend."""

# Rows of a table that are in floats at a time where no kernel reads it as it is.
TABLE_ROWS = 8192

_library = torch.library.Library("hf_bitdistill", "DEF")
_ops = torch.ops.hf_bitdistill
_threads: int | None = None


def set_num_threads(threads: int | None) -> None:
    """Threads of the native library; `None` (the default): as many as torch has."""
    global _threads
    if threads is not None and threads < 1:
        raise ValueError("threads must be at least 1")
    _threads = threads


def num_threads() -> int:
    return _threads or torch.get_num_threads()


def _define(schema: str, fake) -> None:
    name = schema.split("(")[0]
    _library.define(schema)
    torch.library.register_fake(f"hf_bitdistill::{name}", fake, lib=_library)


_implemented: set[tuple[str, str]] = set()


def implement(name: str, key: str) -> Callable[[Callable], Callable]:
    """Registers the function below it as the kernel of an operator.

    Args:
        name: of the operator, without its namespace.
        key: a dispatch key: `"CPU"`, `"CUDA"`, or `"CompositeExplicitAutograd"` for every device without a kernel of its own.
    """

    def register(kernel: Callable) -> Callable:
        _library.impl(name, kernel, key)
        _implemented.add((name, key))
        return kernel

    return register


def has_kernel(name: str, device: torch.device) -> bool:
    """Whether a kind of device has its own kernel of an operator, rather than the one for all."""
    return (name, device.type.upper()) in _implemented


# ---- Packing --------------------------------------------------------------------------------------------------------


def _ternary_header(weight: Tensor, scale: Tensor, out_features: int, group_size: int):
    header = form.PackedWeight(form.TERNARY, out_features, weight.shape[1], group_size)
    header.tensor_scale = scale.numel() == 1 and group_size == 0
    return header


def _fake_ternary_pack(weight, weight_scale, out_features, group_size=0):
    header = _ternary_header(weight, weight_scale, out_features, group_size)
    library = binding.library() if weight.device.type == "cpu" else None
    if library is not None and library.packs_densely(header.rows, header.cols):
        header = header.densest()
    return weight.new_empty(header.layout.total)


def _fake_int4_pack(weight, weight_scale, in_features):
    header = form.PackedWeight(form.INT4, weight.shape[0], in_features, INT4_GROUP)
    return weight.new_empty(header.layout.total, dtype=torch.uint8)


_define(
    "ternary_pack(Tensor weight, Tensor weight_scale, int out_features, int group_size=0) -> Tensor",
    _fake_ternary_pack,
)
_define(
    "int8_pack(Tensor weight, Tensor weight_scale) -> Tensor",
    lambda weight, weight_scale: weight.new_empty(
        form.PackedWeight(form.INT8, *weight.shape).layout.total, dtype=torch.uint8
    ),
)
_define("int4_pack(Tensor weight, Tensor weight_scale, int in_features) -> Tensor", _fake_int4_pack)


# ---- Products -------------------------------------------------------------------------------------------------------


def _fake_linear(x, weight, out_features, bias=None, norm_weight=None, norm_eps=1e-6):
    return x.new_empty((*x.shape[:-1], out_features))


def _save_for_backward(ctx, inputs, output):
    x, weight, ctx.out_features, bias, norm_weight, ctx.norm_eps = inputs
    ctx.save_for_backward(x, weight, bias, norm_weight)


def _linear_backward(ctx, grad):
    """As if nothing had been rounded (straight through), for adapters trained beside packed weights."""
    x, weight, bias, norm_weight = ctx.saved_tensors
    rows = torch.arange(ctx.out_features)
    dense = _ops.packed_embedding(rows, weight, x.shape[-1])
    inputs: list[Any] = [t.detach().requires_grad_() if t is not None else None for t in (x, bias, norm_weight)]
    with torch.enable_grad():
        h = inputs[0].float()
        if norm_weight is not None:
            h = F.rms_norm(h, h.shape[-1:], inputs[2].float(), ctx.norm_eps)
        y = F.linear(h, dense, None if bias is None else inputs[1].float())
    # Arguments at the end that have their defaults are left out of the call.
    needs = (*ctx.needs_input_grad, False, False, False)
    wanted = [t for t, needed in zip(inputs, (needs[i] for i in (0, 3, 4)), strict=True) if needed]
    grads = iter(torch.autograd.grad(y, wanted, grad.float()))
    return (
        next(grads) if needs[0] else None,
        None,
        None,
        next(grads) if needs[3] else None,
        next(grads) if needs[4] else None,
        None,
    )


_define(
    "packed_linear(Tensor x, Tensor weight, int out_features, Tensor? bias=None, Tensor? norm_weight=None, "
    "float norm_eps=1e-6) -> Tensor",
    _fake_linear,
)
torch.library.register_autograd(
    "hf_bitdistill::packed_linear", _linear_backward, setup_context=_save_for_backward, lib=_library
)


_define(
    "packed_embedding(Tensor index, Tensor weight, int embedding_dim) -> Tensor",
    lambda index, weight, embedding_dim: index.new_empty((*index.shape, embedding_dim), dtype=torch.float32),
)
_define(
    "quantize_activations(Tensor x, Tensor? norm_weight=None, float norm_eps=1e-6) -> (Tensor, Tensor)",
    lambda x, norm_weight=None, norm_eps=1e-6: (
        x.new_empty(x.shape, dtype=torch.int8),
        x.new_empty(x.shape[:-1], dtype=torch.float32),
    ),
)
_define(
    "packed_matmul_int32(Tensor x_q, Tensor weight, int out_features, int groups) -> Tensor",
    lambda x_q, weight, out_features, groups: x_q.new_empty(
        (*x_q.shape[:-1], out_features, groups), dtype=torch.int32
    ),
)


# ---- Products with what a checkpoint stores -------------------------------------------------------------------------


def _ternary_input_gradient(
    grad: Tensor, weight: Tensor, weight_scale: Tensor, rows: int, group_size: int | None
) -> Tensor:
    """Of `ternary_linear`, straight through the rounding of the activations: `[..., R]` -> `[..., C]`. Unpacks the codes again."""
    codes = unpack_ternary(weight, rows, grad.dtype)
    if weight_scale.ndim == 2:
        scale = expand_weight_scale(weight_scale, codes.shape[1], group_size)
        return grad @ (codes * scale).to(codes.dtype)
    return (grad * weight_scale).to(codes.dtype) @ codes


def _bias_gradient(grad: Tensor, dtype: torch.dtype) -> Tensor:
    return grad.reshape(-1, grad.shape[-1]).sum(dim=0).to(dtype)


def save_ternary(ctx, inputs, output=None) -> None:
    """Keeps what [`ternary_backward`] needs of the arguments of `ternary_linear`, all of them."""
    x, weight, weight_scale, ctx.out_features, bias, ctx.group_size, _, _ = inputs
    ctx.save_for_backward(weight, weight_scale)
    ctx.x_dtype, ctx.bias_dtype = x.dtype, None if bias is None else bias.dtype


def ternary_backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradient of `ternary_linear`."""
    weight, weight_scale = ctx.saved_tensors
    needs = (*ctx.needs_input_grad, False)  # (what has a default may be left out of the call)
    grad_x = grad_bias = None
    if needs[0]:
        grad_x = _ternary_input_gradient(grad, weight, weight_scale, ctx.out_features, ctx.group_size).to(ctx.x_dtype)
    if needs[4]:
        grad_bias = _bias_gradient(grad, ctx.bias_dtype)
    return grad_x, None, None, None, grad_bias, None, None, None


_define(
    "ternary_linear(Tensor x, Tensor weight, Tensor weight_scale, int out_features, Tensor? bias=None, int? group_size=None, "
    "int? activation_bits=8, ScalarType? dtype=None) -> Tensor",
    lambda x, weight, weight_scale, out_features, bias=None, group_size=None, activation_bits=8, dtype=None: (
        x.new_empty((*x.shape[:-1], out_features), dtype=dtype or x.dtype)
    ),
)
torch.library.register_autograd(
    "hf_bitdistill::ternary_linear", ternary_backward, setup_context=save_ternary, lib=_library
)


def _save_table(ctx, inputs, output):
    x, weight, weight_scale, bias = inputs
    ctx.save_for_backward(weight, weight_scale)
    ctx.columns, ctx.x_dtype, ctx.bias_dtype = x.shape[-1], x.dtype, None if bias is None else bias.dtype


def _table_backward(ctx, grad):
    weight, weight_scale = ctx.saved_tensors
    needs = (*ctx.needs_input_grad, False)
    grad_x = None
    if needs[0]:
        grad_x = grad.new_zeros((*grad.shape[:-1], ctx.columns), dtype=torch.float32)
        for start in range(0, weight.shape[0], TABLE_ROWS):
            rows = slice(start, start + TABLE_ROWS)
            grad_x = grad_x + grad[..., rows].float() @ dequantize_table(weight[rows], weight_scale[rows], ctx.columns)
        grad_x = grad_x.to(ctx.x_dtype)
    return grad_x, None, None, _bias_gradient(grad, ctx.bias_dtype) if needs[3] else None


_define(
    "table_linear(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias=None) -> Tensor",
    lambda x, weight, weight_scale, bias=None: x.new_empty((*x.shape[:-1], weight.shape[0])),
)
torch.library.register_autograd(
    "hf_bitdistill::table_linear", _table_backward, setup_context=_save_table, lib=_library
)
_define(
    "table_embedding(Tensor index, Tensor weight, Tensor weight_scale, int embedding_dim) -> Tensor",
    lambda index, weight, weight_scale, embedding_dim: index.new_empty(
        (*index.shape, embedding_dim), dtype=torch.float32
    ),
)
