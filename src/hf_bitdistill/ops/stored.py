"""Products with what a checkpoint stores, for any device.

An operator is one call to torch's compiler. Where it would compute with plain torch anyway, the compiler is shown the torch code, which
it fuses (the unpacking of a weight above all); an exported program holds the operator, whose kernel is chosen where it runs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..quantization import result_dtype
from .backends import default
from .operators import _ops, has_kernel, save_ternary, ternary_backward


# (The compiler of torch 2.9 answers yes whatever it compiles.)
is_exporting = torch.compiler.is_exporting


class _Ternary(torch.autograd.Function):
    """[`stored_ternary_linear`] in plain torch. Autograd would keep the unpacked codes, of every layer at once, until the gradient is
    computed; this unpacks them again."""

    @staticmethod
    def forward(ctx, *arguments) -> Tensor:
        """Arguments of `ternary_linear`, all of them."""
        save_ternary(ctx, arguments)
        return default.ternary_linear(*arguments)

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        return ternary_backward(ctx, grad_output)


def _is_one_call(name: str, x: Tensor) -> bool:
    return is_exporting() or (
        x.device.type != "cpu" and (not torch.compiler.is_compiling() or has_kernel(name, x.device))
    )


def stored_ternary_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    out_features: int,
    bias: Tensor | None = None,
    *,
    group_size: int | None = None,
    activation_bits: int | None = 8,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """[`hf_bitdistill.quantization.ternary_linear`] of packed codes. Differentiable in `x` and `bias`, straight through the rounding.

    Args:
        x: `[..., C]`.
        weight: uint8 `[ceil(R / 4), C]`, see [`hf_bitdistill.quantization.pack_ternary`].
        weight_scale: float32 `[1]`, `[R]` or `[R, G]`.
        out_features: R.
        dtype: of the result; `None`: that of `x`, or the autocast dtype under autocast.

    Returns:
        `[..., R]`.
    """
    arguments = (x, weight, weight_scale, out_features, bias, group_size, activation_bits, dtype or result_dtype(x))
    if _is_one_call("ternary_linear", x):
        return _ops.ternary_linear(*arguments)
    return _Ternary.apply(*arguments) if torch.is_grad_enabled() else default.ternary_linear(*arguments)


def stored_table_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """`[..., C]` -> `[..., R]` in the dtype of `x`, each token rounded to int8, by a table as
    [`hf_bitdistill.quantization.quantize_table`] makes it. Differentiable in `x` and `bias`, straight through the rounding."""
    if _is_one_call("table_linear", x) or torch.is_grad_enabled():
        return _ops.table_linear(x, weight, weight_scale, bias)
    return default.table_linear(x, weight, weight_scale, bias)


def stored_table_embedding(index: Tensor, weight: Tensor, weight_scale: Tensor, embedding_dim: int) -> Tensor:
    """Rows of such a table, float32 `[..., C]`."""
    if _is_one_call("table_embedding", index):
        return _ops.table_embedding(index, weight, weight_scale, embedding_dim)
    return default.table_embedding(index, weight, weight_scale, embedding_dim)
