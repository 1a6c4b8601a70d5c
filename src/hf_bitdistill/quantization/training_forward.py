"""What a layer computes while its latent weights are trained: three functions, of which a schedule chooses one.

| function | multiplies by | when |
|---|---|---|
| [`fake_quantized_linear`] | codes, and the scales after the product | always, but for the two below |
| [`mixed_linear`] | something between the latent and the ternary weight | warm-up |
| [`leaking_linear`] | the ternary weight, with a share of the latent one where codes are 0 | leak of the dead zone |

Common to all three: `x` is `[..., C]`, `weight` the latent weights `[R, C]` in the training dtype, `bias` `[R]` or `None`. The result is
`[..., R]`, in the dtype that `F.linear` returns (the autocast dtype under autocast). Where the latent weight is in shards, `gathered`
says what came of it, `weight` is the parameter that holds it, and the gradient of `weight` is that of the latent weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .cache_pieces import is_plain
from .integer_product import TORCH_PASSES, IntegerProduct, TrainingPasses
from .straight_through import StraightThrough
from .ternary import INT8_UNIT, absmean_scale, expand_weight_scale, quantize_activations, result_dtype, ternarize


if TYPE_CHECKING:
    from .shards import GatheredWeight


# ---- Weights between the latent and the ternary one ----


def mixed_weight(weight: Tensor, codes: Tensor, divisor: Tensor, share: float | Tensor) -> Tensor:
    """What [`mixed_linear`] multiplies by, `[R, C]`, with the gradient of `weight`."""
    return weight + share * (codes * divisor - weight.detach()).to(weight.dtype)


def leaking_weight(weight: Tensor, codes: Tensor, divisor: Tensor, leak: float | Tensor) -> Tensor:
    """What [`leaking_linear`] multiplies by, `[R, C]`: the dequantised weight, with a share of the latent value where the code is 0; no
    gradient."""
    return torch.where(codes == 0, leak * weight.detach(), codes * divisor)


# ---- Products with gradients of their own ----


class _ScaledSums(torch.autograd.Function):
    """Forward: `sums * weight_scale * reciprocal`. Backward: the gradient times `reciprocal` alone."""

    @staticmethod
    def forward(ctx, sums: Tensor, weight_scale: Tensor, reciprocal: Tensor) -> Tensor:
        ctx.save_for_backward(reciprocal)
        if sums.dtype != weight_scale.dtype:
            return (sums * weight_scale).mul_(reciprocal).to(sums.dtype)
        # In place: nobody reads the sums again, and new memory costs as much as the pass.
        ctx.mark_dirty(sums)
        return sums.mul_(weight_scale).mul_(reciprocal)

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        (reciprocal,) = ctx.saved_tensors
        return (grad_output * reciprocal).to(grad_output.dtype), None, None


class _GatheredProduct(torch.autograd.Function):
    """Forward: `F.linear` with gathered codes, in the dtype of `x`. Backward: that, and the gradient of the codes times `factor`.

    A copy in that dtype is not kept for the backward pass: the codes themselves are given back and gathered again for it.
    """

    @staticmethod
    def forward(ctx, x: Tensor, codes: Tensor, factor: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, codes, factor)
        return F.linear(x, codes.to(x.dtype))

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        x, codes, factor = ctx.saved_tensors
        grad_x = grad_output @ codes.to(x.dtype)
        gradient = (grad_output.flatten(0, -2).T @ x.flatten(0, -2)).to(codes.dtype)
        return grad_x, gradient if factor is None else gradient * factor, None


def _scale_sums(sums: Tensor, weight_scale: Tensor, reciprocal: Tensor) -> Tensor:
    """[`_ScaledSums`]; a compiler, which needs no hint about memory, is given a form that it understands."""
    if not torch.compiler.is_compiling():
        return _ScaledSums.apply(sums, weight_scale, reciprocal)
    scaled = (sums.detach() * weight_scale * reciprocal).to(sums.dtype)
    # (What a function returns as it was given is a view, which a model could not change in place.)
    return StraightThrough.apply(sums, scaled, reciprocal).clone()


# ---- Parts of the three ----


def _codes(weight: Tensor, granularity: str, group_size: int | None, gathered: GatheredWeight | None):
    """`(codes, weight_scale)`, without gradient."""
    if gathered is None:
        return ternarize(weight, granularity, group_size)
    return gathered.codes(weight), gathered.weight_scale


def _learned_scale(
    weight: Tensor, granularity: str, group_size: int | None, gathered: GatheredWeight | None
) -> Tensor:
    """The scale with its gradient to the latent weight."""
    if gathered is None:
        return absmean_scale(weight, granularity, group_size, differentiable=True)
    return gathered.learned_scale(weight)


def _learning(weight: Tensor, codes: Tensor, weight_scale: Tensor, group_size: int | None) -> Tensor:
    """A dequantised weight whose scale is learned: adds nothing but the gradient."""
    learned = expand_weight_scale(weight_scale, weight.shape[1], group_size)
    return weight + (codes * (learned - learned.detach())).to(weight.dtype)


def _operand_dtype(operand: Tensor) -> torch.dtype:
    """In which `F.linear` multiplies an operand, autocast included (which leaves float64 alone)."""
    return operand.dtype if operand.dtype == torch.float64 else result_dtype(operand)


def _integer_activations(x: Tensor, gradient_scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`(values, token_scale)`: integers in the dtype of the product, in units of `INT8_UNIT`, and `s` `[..., 1]` in that unit.

    Args:
        gradient_scale: multiplies the gradient besides `token_scale`.
    """
    x_q, s = quantize_activations(x)
    token_scale = s * INT8_UNIT
    values = x_q.mul_(INT8_UNIT).to(_operand_dtype(x))
    factor = token_scale if gradient_scale is None else token_scale * gradient_scale
    return StraightThrough.apply(x, values, factor), token_scale


def _with_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + bias.to(y.dtype)


def _dequantized_product(x: Tensor, weight: Tensor, bias: Tensor | None, activation_bits: int | None) -> Tensor:
    """The product with a dequantised weight. The scales of the tokens are applied to its result."""
    if activation_bits is None:
        return _with_bias(F.linear(x, weight), bias)
    values, token_scale = _integer_activations(x)
    y = F.linear(values, weight)
    return _with_bias((y * token_scale.reciprocal()).to(y.dtype), bias)


# ---- The three ----


def fake_quantized_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    granularity: str = "tensor",
    group_size: int | None = None,
    activation_bits: int | None = 8,
    scale_gradient: bool = False,
    gathered: GatheredWeight | None = None,
    passes: TrainingPasses = TORCH_PASSES,
) -> Tensor:
    """The training forward: same value as [`ternary_linear`] on the ternarised weight, straight-through gradients.

    The gradient is that of `F.linear(x_dq, W_dq)` with respect to its two dequantised operands, passed on unchanged to
    `x` and `W` (straight-through estimator on both roundings; scales are treated as constants, see `scale_gradient`).

    Args:
        x, weight, bias, gathered: see the top of this module.
        granularity, group_size: what shares a scale, see [`absmean_scale`].
        activation_bits: 8, or `None` to leave `x` in floating point.
        scale_gradient: `W` also gets the gradient of its scale, `dL/dgamma * sign(W) / n` for each of the `n` weights that
            share it: the scale is learned, and stays the absmean.
        passes: how it is computed where a scale belongs to the whole weight or to a row.
    """
    operand_dtype = _operand_dtype(weight)
    on_integers = granularity != "group" and activation_bits is not None and not scale_gradient
    if on_integers and gathered is None and is_plain(x, weight) and _operand_dtype(x) == operand_dtype:
        scale = absmean_scale(weight, granularity)
        return _with_bias(IntegerProduct.apply(x, weight, scale, operand_dtype, passes), bias)
    codes, weight_scale = _codes(weight, granularity, group_size, gathered)
    divisor = expand_weight_scale(weight_scale, weight.shape[1], group_size)
    if scale_gradient:
        weight_scale = _learned_scale(weight, granularity, group_size, gathered)
    if weight_scale.ndim == 2:
        # One scale a row and group cannot leave the product, so here the weights are dequantised first.
        weight = StraightThrough.apply(weight, (codes * divisor).to(weight.dtype), divisor.new_ones(()))
        if scale_gradient:
            weight = _learning(weight, codes, weight_scale, group_size)
        return _dequantized_product(x, weight, bias, activation_bits)

    # The product runs on integers, which bfloat16 holds exactly, and the scales are applied to its result: under
    # autocast only that result is rounded, and the training forward equals the deployed one.
    # Of the whole weight there is one scale, which the gradient of the result would be multiplied by and that of the weight divided:
    # that of the input alone is.
    one_scale = weight_scale.numel() == 1 and activation_bits is not None and not scale_gradient
    factor = None if one_scale else 1.0 / divisor
    holds_codes = gathered is not None and not gathered.effective and operand_dtype != weight.dtype
    if not holds_codes:
        # (In the dtype of the product at once: a copy that autocast would make costs a pass more each way.)
        weight = StraightThrough.apply(weight, codes.to(operand_dtype), factor)
    token_scale = None
    if activation_bits is not None:
        x, token_scale = _integer_activations(x, weight_scale if one_scale else None)
    y = _GatheredProduct.apply(x.to(operand_dtype), weight, factor) if holds_codes else F.linear(x, weight)
    # In the order of ternary_linear: a last-bit difference here can move an int8 rounding in the next layer.
    if one_scale and token_scale is not None:
        return _with_bias(_scale_sums(y, weight_scale, token_scale.reciprocal()), bias)
    scaled = y * weight_scale
    if token_scale is not None:
        scaled = scaled * token_scale.reciprocal()
    return _with_bias(scaled.to(y.dtype), bias)


def mixed_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    share: float | Tensor,
    granularity: str = "tensor",
    group_size: int | None = None,
    activation_bits: int | None = 8,
    gathered: GatheredWeight | None = None,
) -> Tensor:
    """The warm-up from full precision to ternary: both operands are `v + share * (dequantised(v) - v)`, with the gradient of `v`.

    Args:
        x, weight, bias, gathered: see the top of this module.
        share: 0 is full precision, 1 ternary; a float, or a scalar tensor on the CPU or with `x`.
        granularity, group_size, activation_bits: as of [`fake_quantized_linear`].
    """
    if gathered is None:
        codes, weight_scale = ternarize(weight, granularity, group_size)
        weight = mixed_weight(weight, codes, expand_weight_scale(weight_scale, weight.shape[1], group_size), share)
    if activation_bits is not None:
        x_q, s = quantize_activations(x)
        x = x + share * (x_q / s - x.detach()).to(x.dtype)
    return F.linear(x, weight, bias)


def leaking_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    leak: float | Tensor,
    granularity: str = "tensor",
    group_size: int | None = None,
    activation_bits: int | None = 8,
    scale_gradient: bool = False,
    gathered: GatheredWeight | None = None,
) -> Tensor:
    """[`fake_quantized_linear`], but weights with code 0 take part with a share of their value.

    So their gradients say what they do (after Tequila, arXiv 2509.23809, which keeps such a share for ever, as a bias; here it must be 0
    when training ends).

    Args:
        x, weight, bias, gathered: see the top of this module.
        leak: that share; a float, or a scalar tensor on the CPU or with `x`.
        granularity, group_size, activation_bits, scale_gradient: as of [`fake_quantized_linear`].
    """
    # (Gathered, the weight leaks already, and its codes are wanted for the gradient of the scale alone.)
    if gathered is None or scale_gradient:
        codes, weight_scale = _codes(weight, granularity, group_size, gathered)
    if scale_gradient:
        learned_scale = _learned_scale(weight, granularity, group_size, gathered)
    if gathered is None:
        divisor = expand_weight_scale(weight_scale, weight.shape[1], group_size)
        leaking = leaking_weight(weight, codes, divisor, leak).to(weight.dtype)
        weight = StraightThrough.apply(weight, leaking, divisor.new_ones(()))
    if scale_gradient:
        weight = _learning(weight, codes, learned_scale, group_size)
    return _dequantized_product(x, weight, bias, activation_bits)
