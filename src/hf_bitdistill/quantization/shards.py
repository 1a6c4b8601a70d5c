"""The arithmetic of a latent weight whose rows are spread over processes: what each sends of its shard, and what all make of it.

A shard is `[r, C]`, the first `r` of the `S = ceil(R / processes)` rows that a process has room for; `r` is less than `S` in the last ones.
It is sent as bytes: the codes of `S` rows, five in a byte ([`hf_bitdistill.quantization.dense`]), then the scales (float32) of those rows, unless
there is one scale for the matrix, which all know.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from . import dense
from .ternary import MIN_SCALE, accumulation_dtype, expand_weight_scale, group_counts, num_groups, ternary_codes


_SCALE_BYTES = torch.float32.itemsize


@dataclass(frozen=True)
class ShardLayout:
    """How a latent weight `[rows, columns]` is spread over `processes`."""

    rows: int
    columns: int
    processes: int
    granularity: str
    group_size: int | None

    @property
    def shard_rows(self) -> int:
        """Rows that a process has room for."""
        return math.ceil(self.rows / self.processes)

    def first_row(self, process: int) -> int:
        return min(process * self.shard_rows, self.rows)

    @property
    def code_bytes(self) -> int:
        return dense.dense_bytes(self.shard_rows, self.columns)

    @property
    def scales(self) -> int:
        """That a process sends."""
        if self.granularity == "tensor":
            return 0
        return self.shard_rows * (1 if self.granularity == "row" else num_groups(self.columns, self.group_size))

    def filled(self, part: Tensor) -> Tensor:
        """A shard `[r, ...]` with rows of zeros behind it, `[shard_rows, ...]`."""
        missing = self.shard_rows - len(part)
        return part if missing == 0 else F.pad(part, (*(0, 0) * (part.ndim - 1), 0, missing))

    def pack_codes(self, codes: Tensor) -> Tensor:
        """Codes `[r, C]` of a shard, any dtype -> uint8 `[code_bytes]`."""
        return dense.pack_codes(self.filled(codes.to(torch.int8)).flatten())

    def pack(self, shard: Tensor, weight_scale: Tensor) -> Tensor:
        """What a process sends: uint8 `[code_bytes + 4 * scales]`.

        Args:
            shard: latent, `[r, C]`.
            weight_scale: of the whole matrix `[1]`, or of the shard `[r]` or `[r, G]`.
        """
        codes = self.pack_codes(ternary_codes(shard, weight_scale, self.group_size))
        if self.scales == 0:
            return codes
        return torch.cat([codes, self.filled(weight_scale).flatten().view(torch.uint8)])

    def split(self, gathered: Tensor) -> tuple[Tensor, Tensor | None]:
        """Of what all sent, uint8 `[processes * (code_bytes + 4 * scales)]`: the codes, uint8 `[processes, code_bytes]` (a view), and
        the scales `[R]` or `[R, G]` (a copy), or `None` if there is one for the matrix."""
        parts = gathered.view(self.processes, -1)
        codes, scales = parts.split([self.code_bytes, _SCALE_BYTES * self.scales], dim=1)
        if self.scales == 0:
            return codes, None
        # (Cloned first: where the scales begin need not be aligned.)
        weight_scale = scales.clone(memory_format=torch.contiguous_format).view(torch.float32)
        shape = (-1,) if self.granularity == "row" else (-1, num_groups(self.columns, self.group_size))
        return codes, weight_scale.view(shape)[: self.rows]

    def unpack_codes(self, packed: Tensor, codes: Tensor) -> None:
        """Write the codes of uint8 `[processes, code_bytes]` into `codes` `[processes * shard_rows, C]`, contiguous, any dtype."""
        dense.unpack_codes(packed, codes.view(self.processes, -1))

    def unpacked(self, packed: Tensor, dtype: torch.dtype) -> Tensor:
        """The codes `[R, C]` of uint8 `[processes, code_bytes]`."""
        codes = torch.empty((self.processes * self.shard_rows, self.columns), dtype=dtype, device=packed.device)
        self.unpack_codes(packed, codes)
        return codes[: self.rows]


@dataclass(frozen=True)
class GatheredWeight:
    """What came of the shards of a latent weight.

    Attributes:
        layout: how it is spread.
        weight_scale: as of [`absmean_scale`], of the whole matrix.
        packed: its codes, uint8 `[processes, code_bytes]`.
        effective: the parameter holds the weight that a training with a warm-up or a leak multiplies by ([`mixed_weight`],
            [`leaking_weight`]), or the latent weight itself where nothing is to be quantised. Otherwise it holds the codes.
        signs: of the latent weights, packed as codes are; `None` where the scales are not learned.
    """

    layout: ShardLayout
    weight_scale: Tensor
    packed: Tensor
    effective: bool = False
    signs: Tensor | None = None

    def codes(self, weight: Tensor) -> Tensor:
        """The codes `[R, C]`, without gradient, in the dtype of `weight`: what the parameter holds."""
        return self.layout.unpacked(self.packed, weight.dtype) if self.effective else weight.detach()

    def learned_scale(self, weight: Tensor) -> Tensor:
        """`weight_scale`, whose gradient reaches `weight` as that of the absmean of the latent weight would."""
        return _LearnedScale.apply(weight, self)


class _LearnedScale(torch.autograd.Function):
    """Forward: the scale. Backward: each latent weight has its sign's share of the mean's gradient, `dL/dgamma * sign(W) / n`."""

    @staticmethod
    def forward(ctx, weight: Tensor, gathered: GatheredWeight) -> Tensor:
        ctx.gathered, ctx.dtype = gathered, weight.dtype
        return gathered.weight_scale.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor):
        gathered, layout = ctx.gathered, ctx.gathered.layout
        # A scale at its lower clamp does not move.
        gradient = torch.where(gathered.weight_scale > MIN_SCALE, gradient, 0.0)
        if layout.granularity == "tensor":
            wide = gradient.to(accumulation_dtype(gradient.device))
            share = (wide / (layout.rows * layout.columns)).to(gradient.dtype)
        elif layout.granularity == "row":
            share = gradient / layout.columns
        else:
            share = gradient / group_counts(layout.columns, layout.group_size, gradient.device)
        signs = layout.unpacked(gathered.signs, gradient.dtype)
        share = expand_weight_scale(share, layout.columns, layout.group_size)
        return signs.mul_(share).to(ctx.dtype), None
