"""The training forward as one formula with all its switches, which the three functions of `quantization/training_forward.py` must equal bit for bit."""

import torch
import torch.nn.functional as F

from hf_bitdistill.quantization import (
    absmean_scale,
    expand_weight_scale,
    quantize_activations,
    result_dtype,
    ternarize,
)


UNIT = 2.0**-7


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, quantized, factor):
        ctx.factor, ctx.dtype = factor, value.dtype
        return quantized

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient if ctx.factor is None else gradient * ctx.factor
        return gradient.to(ctx.dtype), None, None


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, sums, weight_scale, reciprocal):
        ctx.reciprocal = reciprocal
        return (sums * weight_scale * reciprocal).to(sums.dtype)

    @staticmethod
    def backward(ctx, gradient):
        return (gradient * ctx.reciprocal).to(gradient.dtype), None, None


def _operand(tensor):
    return tensor.dtype if tensor.dtype == torch.float64 else result_dtype(tensor)


def one_formula(x, weight, bias, granularity, group_size, bits, share=1.0, leak=0.0, scale_gradient=False):
    """The switches in their order: a share below 1 makes the other two do nothing."""
    columns = weight.shape[1]
    codes, scale = ternarize(weight, granularity, group_size)
    divisor = expand_weight_scale(scale, columns, group_size)
    x_q, s = (None, None) if bits is None else quantize_activations(x)
    if isinstance(share, torch.Tensor) or share < 1.0:
        weight = weight + share * (codes * divisor - weight.detach()).to(weight.dtype)
        if x_q is not None:
            x = x + share * (x_q / s - x.detach()).to(x.dtype)
        return F.linear(x, weight, bias)

    leaks = isinstance(leak, torch.Tensor) or leak != 0.0
    scales_result = scale.ndim == 1 and not leaks
    one_scale = scales_result and scale.numel() == 1 and x_q is not None and not scale_gradient
    if scale_gradient:
        scale = absmean_scale(weight, granularity, group_size, differentiable=True)
    if scales_result:
        weight = _Rounded.apply(weight, codes.to(_operand(weight)), None if one_scale else 1.0 / divisor)
    else:
        dequantized = torch.where(codes == 0, leak * weight.detach(), codes * divisor) if leaks else codes * divisor
        weight = _Rounded.apply(weight, dequantized.to(weight.dtype), divisor.new_ones(()))
        if scale_gradient:
            learned = expand_weight_scale(scale, columns, group_size)
            weight = weight + (codes * (learned - learned.detach())).to(weight.dtype)
    token_scale = None
    if x_q is not None:
        token_scale = s * UNIT
        values = (x_q * UNIT).to(_operand(x))
        x = _Rounded.apply(x, values, token_scale * scale if one_scale else token_scale)
    y = F.linear(x, weight)
    dtype = y.dtype
    if one_scale:
        y = _Scaled.apply(y, scale, token_scale.reciprocal())
    else:
        y = y * scale if scales_result else y
        y = y if token_scale is None else y * token_scale.reciprocal()
        y = y.to(dtype)
    return y if bias is None else y + bias.to(y.dtype)
