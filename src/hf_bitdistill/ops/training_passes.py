"""What a training computes on a CPU beside its matrix products, by the native library: one pass over memory each.

No operators of torch: they are called within an `autograd.Function` that a compiler does not see. What they do not fit is left to the
operators of torch, which give the same bits (a SubLN: the same up to rounding).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..quantization import QuantizedInput, TrainingPasses, has_values
from . import binding as n
from . import c_header as c
from .operators import num_threads


_KINDS = {torch.float32: c.FLOAT32, torch.bfloat16: c.BFLOAT16}


def _library(*tensors: Tensor) -> n.NativeLibrary | None:
    """The library, if it reads and writes such tensors."""
    for tensor in tensors:
        if (
            tensor.device.type != "cpu"
            or not has_values(tensor)
            or tensor.dtype not in _KINDS
            or not tensor.is_contiguous()
            or not tensor.numel()
        ):
            return None
    library, _ = n.load()
    if library is not None:
        library.set_threads(num_threads())
    return library


def _array(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.numel()


class NativePasses(TrainingPasses):
    """[`TrainingPasses`] by the native library where there is one."""

    def quantized_input(self, x: Tensor, dtype: torch.dtype) -> QuantizedInput:
        flat = x.detach().reshape(-1, x.shape[-1])
        library = _library(flat) if dtype in _KINDS else None
        if library is None:
            return super().quantized_input(x, dtype)
        values, scale = flat.new_empty(flat.shape, dtype=dtype), flat.new_empty((len(flat), 1), dtype=torch.float32)
        library.call(
            "train_quantize",
            *_array(flat),
            _KINDS[flat.dtype],
            *flat.shape,
            *_array(values),
            _KINDS[dtype],
            *_array(scale),
        )
        return QuantizedInput(values, scale)

    def codes(self, weight: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> Tensor:
        weight = weight.detach()
        library = _library(weight, weight_scale) if dtype in _KINDS else None
        if library is None:
            return super().codes(weight, weight_scale, dtype)
        codes = weight.new_empty(weight.shape, dtype=dtype)
        kinds = _KINDS[weight.dtype], _KINDS[dtype]
        library.call(
            "train_ternarize",
            *_array(weight),
            kinds[0],
            *weight.shape,
            *_array(weight_scale),
            *_array(codes),
            kinds[1],
        )
        return codes

    def scaled(self, values: Tensor, out: Tensor, scale: Tensor | None, row_scale: Tensor) -> Tensor:
        library = _library(values, out, row_scale, *([] if scale is None else [scale]))
        if library is None:
            return super().scaled(values, out, scale, row_scale)
        arrays = (*((None, 0) if scale is None else _array(scale)), *_array(row_scale), *_array(out))
        library.call("train_scale", *_array(values), _KINDS[values.dtype], *values.shape, *arrays, _KINDS[out.dtype])
        return out


def normalize(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor] | None:
    """An RMSNorm: `x * r * weight` in the dtype of `x`, and `r` float32 `[..., 1]`; `None` where the library does not compute it.

    Args:
        x: `[..., C]`.
        weight: float32 `[C]`.
    """
    library = _library(x, weight) if weight.dtype == torch.float32 else None
    if library is None:
        return None
    out, inverse_rms = torch.empty_like(x), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
    shape = inverse_rms.numel(), x.shape[-1]
    library.call(
        "train_norm", *_array(x), _KINDS[x.dtype], *shape, *_array(weight), eps, *_array(out), *_array(inverse_rms)
    )
    return out, inverse_rms


def normalize_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, inverse_rms: Tensor
) -> tuple[Tensor, Tensor] | None:
    """The gradients of [`normalize`] with respect to `x` and `weight`; `None` where the library does not compute them."""
    gradient = gradient.contiguous()
    library = _library(gradient, x, weight) if weight.dtype == torch.float32 and gradient.dtype == x.dtype else None
    if library is None:
        return None
    grad_x, tokens = torch.empty_like(x), inverse_rms.numel()
    sums = weight.new_empty((-(-tokens // c.NORM_TOKENS), len(weight)))
    shape = _KINDS[x.dtype], tokens, x.shape[-1]
    arrays = (*_array(weight), *_array(inverse_rms), *_array(grad_x), *_array(sums))
    library.call("train_norm_backward", *_array(gradient), *_array(x), *shape, *arrays)
    return grad_x, sums.sum(dim=0)
