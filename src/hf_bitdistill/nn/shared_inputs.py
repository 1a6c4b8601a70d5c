"""Activations that several layers read (query, key and value; gate and up), quantised once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .._compat import version_of
from ..ops import NativePasses
from ..quantization import QuantizedInput


class _LayerPasses(NativePasses):
    """What was made of a tensor is made once, as long as that exists and is not written to."""

    def __init__(self) -> None:
        self._made = WeakTensorKeyDictionary()  # the tensor: what its version was, and what was made

    def quantized_input(self, x: Tensor, dtype: torch.dtype) -> QuantizedInput:
        if x.is_inference():  # (torch counts no versions of it)
            return super().quantized_input(x, dtype)
        version = version_of(x)
        found: tuple[int, QuantizedInput] | None = self._made.get(x)
        if found is None or found[0] != version or found[1].values.dtype != dtype:
            found = version, super().quantized_input(x, dtype)
            self._made[x] = found
        return found[1]


LAYER_PASSES = _LayerPasses()
