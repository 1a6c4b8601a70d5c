"""The straight-through estimator: rounding has a value in the forward pass and no say in the backward pass."""

from __future__ import annotations

import torch
from torch import Tensor


class StraightThrough(torch.autograd.Function):
    """Forward: the given quantised tensor. Backward: the gradient of `value * factor`, as if nothing were rounded; without a factor,
    of `value`."""

    @staticmethod
    def forward(ctx, value: Tensor, quantized: Tensor, factor: Tensor | None) -> Tensor:
        ctx.save_for_backward(factor)
        ctx.value_dtype = value.dtype
        return quantized

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        (factor,) = ctx.saved_tensors
        gradient = grad_output if factor is None else grad_output * factor
        return gradient.to(ctx.value_dtype), None, None
