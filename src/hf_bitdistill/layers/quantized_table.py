"""Embedding and output head on a table of 8-bit or 4-bit integers, for inference on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops import pack_table, packed_embedding, packed_linear


class QuantizedTable(nn.Module):
    """What an embedding and the output head tied to it share.

    Args:
        table: floats `[R, C]` on a CPU; not kept.
        bits: 8 or 4.

    Attributes:
        weight: the packed table, in the layout of the kernels.
    """

    def __init__(self, table: Tensor, bits: int):
        super().__init__()
        self.rows, self.columns = table.shape
        self.bits = bits
        self.register_buffer("weight", pack_table(table, bits))

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        if self.weight.device.type != "cpu":
            raise RuntimeError(
                f"an embedding or output head of {self.bits} bits computes on CPUs only, not on {self.weight.device}: "
                "load the model with head_bits=16 to move it"
            )
        return self

    def extra_repr(self) -> str:
        return f"{self.rows}, {self.columns}, bits={self.bits}"


class _WithoutFloats(nn.Module):
    """A layer on a [`QuantizedTable`]. Whoever asks for its float weight (`resize_token_embeddings`, tying, initialisation) is told."""

    table: QuantizedTable

    def __getattr__(self, name: str):
        if name == "weight":
            raise AttributeError(
                f"{type(self).__name__} is a table of {self.table.bits}-bit integers and has no float weight to read, resize or tie: "
                "load the checkpoint with head_bits=16, change that model (resize_token_embeddings), and quantize its head afterwards."
            )
        return super().__getattr__(name)


class QuantizedEmbedding(_WithoutFloats):
    """`nn.Embedding` on a [`QuantizedTable`].

    Args:
        table: shared with the output head where the two are tied.
        dtype: of the output.
        scale: multiplies the output; architectures that scale their embeddings keep the factor in the embedding layer.
    """

    def __init__(self, table: QuantizedTable, dtype: torch.dtype, scale: float | Tensor | None = None):
        super().__init__()
        self.table = table
        self.num_embeddings, self.embedding_dim = table.rows, table.columns
        # A buffer, so that `.to(dtype)` changes the dtype of the output as it would that of a float table.
        factor = torch.ones(()) if scale is None else torch.as_tensor(scale)
        self.register_buffer("scale", factor.detach().clone().to(dtype), persistent=False)
        self._scaled = scale is not None

    def forward(self, input_ids: Tensor) -> Tensor:
        """Token ids `[...]` -> `[..., C]`.

        Raises:
            IndexError: an id is no row of the table; names it and its place.
        """
        rows = packed_embedding(input_ids, self.table.weight, self.embedding_dim).to(self.scale.dtype)
        return rows * self.scale if self._scaled else rows


class QuantizedHead(_WithoutFloats):
    """`nn.Linear` on a [`QuantizedTable`]; each token's hidden state is rounded to int8, as in the ternary layers.

    Args:
        table: shared with the embedding where the two are tied.
        bias: `[R]` or `None`.
    """

    def __init__(self, table: QuantizedTable, bias: Tensor | None = None):
        super().__init__()
        self.table = table
        self.in_features, self.out_features = table.columns, table.rows
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., C]` -> `[..., R]`, in the dtype of `x`."""
        return packed_linear(x, self.table.weight, self.out_features, self.bias)
