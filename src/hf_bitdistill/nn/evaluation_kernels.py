"""Online layers that compute by the native kernels, for as long as their weights stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import MAX_COLUMNS, packed_linear, ternary_pack
from ..ops.layout_source import Source
from ..quantization import pack_ternary, result_dtype
from .bit_linear import BitLinear


class WeightInKernels:
    """What the latent weight of one layer is rounded to, in the layout of the kernels: made on first use, and again once the weight is another
    one or was written to (but through `.data`, which torch does not count)."""

    def __init__(self) -> None:
        self._source: Source | None = None
        self._packed: Tensor | None = None

    # A copy of a layer makes its own.
    def __reduce__(self) -> tuple[Any, ...]:
        return WeightInKernels, ()

    def linear(self, layer: BitLinear, x: Tensor, normed: bool) -> Tensor | None:
        """The forward of `layer` without a gradient, bit for bit; `None` where the kernels do not compute it."""
        weight = layer.weight
        on_cpu = x.device.type == weight.device.type == "cpu" and type(weight) is nn.Parameter
        if not on_cpu or layer.activation_bits is None or layer.in_features > MAX_COLUMNS or layer._gather is not None:
            return None
        packed = self._of(layer)
        if packed is None:
            return None
        dtype = result_dtype(x)
        norm = None if normed else layer.rms_norm
        if norm is not None and (x.dtype != torch.float32 or dtype != torch.float32):
            # The kernels round nothing between the SubLN and the product.
            x, norm = norm(x), None
        if x.dtype != dtype:
            x = x.float()  # (exact; the result is rounded once)
        if norm is None:
            return packed_linear(x, packed, layer.out_features, layer.bias).to(dtype)
        return packed_linear(x, packed, layer.out_features, layer.bias, norm.weight, norm.eps).to(dtype)

    def _of(self, layer: BitLinear) -> Tensor | None:
        weight = layer.weight
        if self._source is None or not self._source.is_still(weight, weight):
            codes, weight_scale = layer.ternarize()
            self._source = Source(weight, weight)
            # A weight that is no number has no code.
            self._packed = None
            if bool(weight_scale.isfinite().all()):
                stored = pack_ternary(codes)
                self._packed = ternary_pack(stored, weight_scale.view(-1), layer.out_features, layer.group_size or 0)
        return self._packed


@contextmanager
def kernels_while_evaluating(model: nn.Module) -> Iterator[None]:
    """Within the context every [`BitLinear`] of `model` that is on a CPU, in evaluation mode and asked for no gradient computes by the native
    kernels: the same bits, without rounding its weight anew at every call. Takes half a byte a weight meanwhile. May be nested."""
    layers = [module for module in model.modules() if isinstance(module, BitLinear) and module.in_kernels is None]
    try:
        for layer in layers:
            layer.in_kernels = WeightInKernels()
        yield
    finally:
        for layer in layers:
            layer.in_kernels = None
