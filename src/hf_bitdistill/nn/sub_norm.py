"""SubLN: the RMSNorm in front of a quantised projection."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn

from ..ops import normalize, normalize_backward
from ..quantization import accumulation_dtype, is_plain


def _inverse_rms(values: Tensor, eps: float) -> Tensor:
    """`1 / sqrt(mean(x^2) + eps)` of float32 `[..., C]`: float32 `[..., 1]`."""
    # In float64 the mean does not depend on the order of summation, so every backend gets the same float32.
    mean_square = values.to(accumulation_dtype(values.device)).square().sum(dim=-1, keepdim=True) / values.shape[-1]
    return (1.0 / (mean_square + eps).sqrt()).float()


class _Normalize(torch.autograd.Function):
    """`x / rms(x) * weight`. Keeps the input and one number a token for the gradient, where autograd would keep three tensors of the
    input's shape, one of them in float64. The gradient is computed in float32."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        computed = normalize(x, weight, eps) if is_plain(x, weight) else None
        if computed is not None:
            ctx.save_for_backward(x, weight, computed[1])
            return computed[0]
        values = x.float()
        inverse_rms = _inverse_rms(values, eps)
        ctx.save_for_backward(x, weight, inverse_rms)
        return (values * inverse_rms * weight.float()).to(x.dtype)

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        x, weight, inverse_rms = ctx.saved_tensors
        # (Gradients of gradients are torch's.)
        by_library = is_plain(x, weight, grad_output) and not torch.is_grad_enabled()
        computed = normalize_backward(grad_output, x, weight, inverse_rms) if by_library else None
        if computed is not None:
            wants_x, wants_weight = ctx.needs_input_grad[:2]
            return computed[0] if wants_x else None, computed[1] if wants_weight else None, None
        grad = grad_output.float()
        normalized = x.float() * inverse_rms
        grad_x = grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad * normalized).reshape(-1, weight.shape[0]).sum(dim=0).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            # d x_hat_i / d x_j = (delta_ij - x_hat_i x_hat_j / C) / rms
            grad = grad * weight.float()
            along = (grad * normalized).mean(dim=-1, keepdim=True)
            grad_x = ((grad - normalized * along) * inverse_rms).to(x.dtype)
        return grad_x, grad_weight, None


class SubLN(nn.Module):
    """`x / sqrt(mean(x^2) + eps) * weight`, in float32 with the mean in float64 (BitNet Distillation, section 3.1).

    The name deliberately lacks "RMSNorm": transformers initialises every module so named by the host architecture's rule
    (Gemma's is zeros), while a SubLN starts at ones in any architecture.

    Args:
        features: width of the input.
        eps: added to the mean square.
    """

    def __init__(
        self,
        features: int,
        eps: float = 1e-6,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        # As float32 has it, like the native library's. Rounded here, not in the forward, where torch.compile would break its graph.
        self.eps = ctypes.c_float(eps).value
        self.weight = nn.Parameter(torch.ones(features, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., features]` -> the same shape and dtype."""
        return _Normalize.apply(x, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps:g}"
