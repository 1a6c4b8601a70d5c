"""Weights that a module holds as its checkpoint does and computes with in the layout of the kernels."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.layout_source import Source


class KernelWeight(nn.Module):
    """Keeps the buffers `weight` and `weight_scale` in the layout of the kernels too, from their first use on.

    The scale keeps its dtype whatever `.to(dtype)` says.
    """

    weight: Tensor
    weight_scale: Tensor
    _packed_for_kernels: Tensor | None = None
    _packed_from: Source | None = None

    def _pack_for_kernels(self) -> Tensor:
        """`weight` and `weight_scale` in the layout of the kernels."""
        raise NotImplementedError

    def kernel_weight(self) -> Tensor:
        """The weight in the layout of the kernels: made on first use, and again once `weight` or `weight_scale` is another tensor or
        was written to (`copy_`, `torch.distributed.checkpoint.load`).

        What is not seen is what [`Source`] does not see, and in a model under `torch.compile` any writing since it was last called
        without. The layout is freed with its weight, which accelerate puts away after each call of an offloaded layer.
        """
        if torch.compiler.is_compiling():  # it cannot guard on a version: its graph takes what is there
            if self._packed_for_kernels is None:
                self._packed_for_kernels = self._pack_for_kernels()
            return self._packed_for_kernels
        source = self._packed_from
        known: Any = self._packed_for_kernels
        tensors: Any = self._buffers  # (an attribute of a module is looked for in more places)
        if source is not None and source.is_still(tensors["weight"], tensors["weight_scale"]):
            return known
        packed = self._packed_for_kernels = self._pack_for_kernels()
        module = weakref.ref(self)

        def gone(weight: weakref.ref) -> None:
            owner = module()
            if owner is not None and owner._packed_from is not None and owner._packed_from.weight is weight:
                owner._drop_packed()

        self._packed_from = Source(self.weight, self.weight_scale, gone)
        return packed

    def _drop_packed(self) -> None:
        self._packed_for_kernels = self._packed_from = None

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self._drop_packed()

    def __getstate__(self):
        # Only another layout of `weight`: a copy makes its own.
        return {**super().__getstate__(), "_packed_for_kernels": None, "_packed_from": None}

    def _apply(self, fn, recurse=True):
        # `.to(torch.bfloat16)` must move the scales but not round them.
        scale = self.weight_scale
        super()._apply(fn, recurse)
        self._drop_packed()
        if self.weight_scale.dtype != scale.dtype:
            self.weight_scale = scale.to(self.weight_scale.device)
        return self
