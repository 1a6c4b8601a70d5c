"""The product of training where a scale belongs to the whole weight or to a row: one node of the graph, whose passes over memory are few.

What it computes, and in which order, is [`hf_bitdistill.quantization.fake_quantized_linear`]'s.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .cache_pieces import row_pieces, scratch_for
from .ternary import INT8_UNIT, MIN_SCALE


class QuantizedInput(NamedTuple):
    """What [`TrainingPasses.quantized_input`] makes of activations; any number of products may read it.

    Attributes:
        values: `[N, C]`, the integers in the dtype of the product; in float16 in units of `INT8_UNIT`.
        token_scale: float32 `[N, 1]`, `s` in the same unit.
    """

    values: Tensor
    token_scale: Tensor


class TrainingPasses:
    """The passes over memory beside the products, by torch's operators."""

    def quantized_input(self, x: Tensor, dtype: torch.dtype) -> QuantizedInput:
        """Activations `[..., C]` as a product in `dtype` reads them: see [`quantize_activations`], bit for bit."""
        flat = x.detach().reshape(-1, x.shape[-1])
        values = flat.new_empty(flat.shape, dtype=dtype)
        scale = flat.new_empty((len(flat), 1), dtype=torch.float32)
        scratch = scratch_for(flat)
        for rows in row_pieces(flat):
            part, room, s = flat[rows].float(), scratch[: rows.stop - rows.start], scale[rows]
            torch.abs(part, out=room)
            torch.amax(room, dim=-1, keepdim=True, out=s)
            s.clamp_(min=MIN_SCALE).reciprocal_().mul_(127.0)
            if dtype == torch.float32:
                room = values[rows]
            # (The products are 127 at most, but for their rounding: the clip of the definition has nothing to do.)
            torch.mul(part, s, out=room).round_()
            if dtype == torch.float16:
                room.mul_(INT8_UNIT)
            if dtype != torch.float32:
                values[rows] = room
        # (The unit is for float16 alone: a power of two changes no bit of a result in the other dtypes.)
        return QuantizedInput(values, scale.mul_(INT8_UNIT) if dtype == torch.float16 else scale)

    def codes(self, weight: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> Tensor:
        """Those of [`ternarize`] under a scale, float32 `[1]`, or one a row, `[R]`: `[R, C]` in `dtype`."""
        weight, divisor = weight.detach(), weight_scale.view(-1, 1)
        codes = weight.new_empty(weight.shape, dtype=dtype)
        scratch = scratch_for(weight)
        for rows in row_pieces(weight):
            room = codes[rows] if dtype == torch.float32 else scratch[: rows.stop - rows.start]
            own = divisor if len(divisor) == 1 else divisor[rows]
            torch.div(weight[rows].float(), own, out=room).round_().clamp_(-1, 1)
            if dtype != torch.float32:
                codes[rows] = room
        return codes

    def scaled(self, values: Tensor, out: Tensor, scale: Tensor | None, row_scale: Tensor) -> Tensor:
        """`out = (values * scale) * row_scale`, in float32 or what is wider.

        Args:
            values: `[N, C]`.
            out: likewise; may be `values`.
            scale: `[1]` or `[C]`.
            row_scale: `[N, 1]`.
        """
        same = values.dtype == out.dtype and values.dtype.itemsize >= 4
        scratch = None if same else scratch_for(values)
        for rows in row_pieces(values):
            if scratch is None:
                part, room = values[rows], out[rows]
            else:
                part = room = scratch[: rows.stop - rows.start].copy_(values[rows])
            if scale is not None:
                part = torch.mul(part, scale, out=room)
            torch.mul(part, row_scale[rows], out=room)
            if scratch is not None:
                out[rows] = room
        return out


TORCH_PASSES = TrainingPasses()


class IntegerProduct(torch.autograd.Function):
    """Forward: `(values . codes) * weight_scale / token_scale`, `[..., R]`. Backward: straight through both roundings.

    Of one scale, the gradient of the result would be multiplied by it and that of the weight divided: that of the input alone is. Scales of
    rows are multiplied and divided by, in the order in which the products of weights in shards are.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, weight_scale: Tensor, dtype: torch.dtype, passes: TrainingPasses
    ) -> Tensor:
        values, token_scale = passes.quantized_input(x, dtype)
        codes, reciprocal = passes.codes(weight, weight_scale, dtype), token_scale.reciprocal()
        # (Of the shape of the result at once: a view could not be changed in place by a model.)
        y = F.linear(values.view(x.shape), codes)
        flat = y.view(len(values), len(codes))
        passes.scaled(flat, flat, weight_scale, reciprocal)
        wants_x, wants_weight = ctx.needs_input_grad[:2]
        by_row = weight_scale.numel() > 1
        ctx.save_for_backward(
            values if wants_weight else None,
            codes if wants_x else None,
            reciprocal,
            token_scale if by_row else token_scale * weight_scale,
            weight_scale if by_row else None,
        )
        ctx.x_dtype, ctx.x_shape, ctx.weight_dtype, ctx.passes = x.dtype, x.shape, weight.dtype, passes
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output: Tensor):
        values, codes, reciprocal, factor, row_scale = ctx.saved_tensors
        grad_output = grad_output.reshape(-1, grad_output.shape[-1])
        scaled = ctx.passes.scaled
        if row_scale is None:
            gradient = scaled(grad_output, torch.empty_like(grad_output), None, reciprocal)
        else:
            room = torch.empty_like(grad_output, dtype=torch.promote_types(grad_output.dtype, torch.float32))
            scaled(grad_output, room, None, reciprocal)
            gradient = torch.mul(room, row_scale, out=_room(room, grad_output.dtype))
        grad_x = grad_weight = None
        if codes is not None:
            grad_x = gradient @ codes
            grad_x = scaled(grad_x, _room(grad_x, ctx.x_dtype), None, factor).view(ctx.x_shape)
        if values is not None:
            grad_weight = gradient.T @ values
            if row_scale is None:
                grad_weight = grad_weight.to(ctx.weight_dtype)
            else:
                divisor = (1.0 / row_scale).view(-1, 1)
                grad_weight = scaled(grad_weight, _room(grad_weight, ctx.weight_dtype), None, divisor)
        return grad_x, grad_weight, None, None, None


def _room(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Where a result of the shape of `values` goes: in their place if they have this dtype."""
    return values if values.dtype == dtype else torch.empty_like(values, dtype=dtype)
