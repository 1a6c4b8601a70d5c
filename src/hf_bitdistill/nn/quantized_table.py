"""Embedding and output head on a table of 8-bit or 4-bit integers, for inference."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops import (
    pack_codes,
    pack_table,
    packed_embedding,
    packed_linear,
    stored_table_embedding,
    stored_table_linear,
)
from ..ops.stored import is_exporting
from ..quantization import check_table, dequantize_table
from .kernel_weight import KernelWeight


class QuantizedTable(nn.Module):
    """What an embedding and the output head tied to it share: rounded in memory, in the layout of the kernels alone.

    Args:
        table: floats `[R, C]` on a CPU; not kept.
        bits: 8 or 4.

    Attributes:
        weight: the packed table, in the layout of the kernels.
    """

    weight: Tensor

    def __init__(self, table: Tensor, bits: int):
        super().__init__()
        self.rows, self.columns = table.shape
        self.bits = bits
        self.register_buffer("weight", pack_table(table, bits))

    @classmethod
    def of_packed(cls, packed: Tensor, rows: int, columns: int, bits: int) -> QuantizedTable:
        """Of what [`hf_bitdistill.ops.TablePacker`] made."""
        table = cls.__new__(cls)
        nn.Module.__init__(table)
        table.rows, table.columns, table.bits = rows, columns, bits
        table.register_buffer("weight", packed)
        return table

    def lookup(self, input_ids: Tensor) -> Tensor:
        """Rows, float32 `[..., C]`."""
        return packed_embedding(input_ids, self.weight, self.columns)

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """`[..., C]` -> `[..., R]`, in the dtype of `x`, rounded to int8 a token."""
        return packed_linear(x, self.weight, self.rows, bias)

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


class StoredTable(KernelWeight):
    """A [`QuantizedTable`] that a checkpoint holds: it can be saved again, and computes on any device.

    In a state dict its tensors are those of the layer it is part of: `embed_tokens.weight`, not `embed_tokens.table.weight`.

    Args:
        weight, weight_scale: see [`hf_bitdistill.quantization.quantize_table`]. They may be views into a file.
        columns: C.
    """

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, weight: Tensor, weight_scale: Tensor, columns: int):
        super().__init__()
        self.rows, self.columns = weight.shape[0], columns
        self.bits = 8 if weight.dtype == torch.int8 else 4
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", weight_scale)

    def check(self) -> None:
        """Refuse content that no table has.

        Raises:
            ValueError: its message starts with the tensor's name.
        """
        check_table(self.weight, self.weight_scale, self.columns)

    def dequantized(self, rows: slice) -> Tensor:
        """Some rows as float32 `[n, C]`."""
        return dequantize_table(self.weight[rows], self.weight_scale[rows], self.columns)

    def lookup(self, input_ids: Tensor) -> Tensor:
        """Rows, float32 `[..., C]`."""
        if self._uses_kernels(input_ids):
            return packed_embedding(input_ids, self.kernel_weight(), self.columns)
        return stored_table_embedding(input_ids, self.weight, self.weight_scale, self.columns)

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """`[..., C]` -> `[..., R]`, in the dtype of `x`, rounded to int8 a token."""
        if self._uses_kernels(x):
            return packed_linear(x, self.kernel_weight(), self.rows, bias)
        return stored_table_linear(x, self.weight, self.weight_scale, bias)

    def _uses_kernels(self, x: Tensor) -> bool:
        return x.device.type == "cpu" and self.weight.device.type == "cpu" and not is_exporting()

    def _pack_for_kernels(self) -> Tensor:
        return pack_codes(self.weight, self.weight_scale, self.columns)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix.removesuffix("table."), keep_vars)

    def extra_repr(self) -> str:
        return f"{self.rows}, {self.columns}, bits={self.bits}"


class _WithoutFloats(nn.Module):
    """A layer on a [`QuantizedTable`]. Whoever asks for its float weight (`resize_token_embeddings`, tying, initialisation) is told."""

    table: QuantizedTable | StoredTable

    def __getattr__(self, name: str):
        if name == "weight":
            before = (
                "change the student before it is packed"
                if isinstance(self.table, StoredTable)
                else "load the checkpoint with head_bits=16, change that model (resize_token_embeddings), and quantize its head afterwards"
            )
            raise AttributeError(
                f"{type(self).__name__} is a table of {self.table.bits}-bit integers and has no float weight to read, resize or tie: {before}."
            )
        return super().__getattr__(name)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        if isinstance(dict(self.named_children()).get("table"), StoredTable):
            for name in ("weight", "weight_scale"):
                if prefix + name in state_dict:
                    state_dict[f"{prefix}table.{name}"] = state_dict.pop(prefix + name)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class QuantizedEmbedding(_WithoutFloats):
    """`nn.Embedding` on a [`QuantizedTable`] or a [`StoredTable`].

    Args:
        table: shared with the output head where the two are tied.
        dtype: of the output.
        scale: multiplies the output; architectures that scale their embeddings keep the factor in the embedding layer.
    """

    def __init__(self, table: QuantizedTable | StoredTable, dtype: torch.dtype, scale: float | Tensor | None = None):
        super().__init__()
        self.table = table
        self.num_embeddings, self.embedding_dim = table.rows, table.columns
        # A buffer, so that `.to(dtype)` changes the dtype of the output as it would that of a float table.
        factor = torch.ones(()) if scale is None else torch.as_tensor(scale)
        self.register_buffer("scale", factor.detach().clone().to(table.weight.device, dtype), persistent=False)
        self.is_scaled = scale is not None

    def forward(self, input_ids: Tensor) -> Tensor:
        """Token ids `[...]` -> `[..., C]`.

        Raises:
            IndexError: an id is no row of the table; names it and its place.
        """
        rows = self.table.lookup(input_ids).to(self.scale.dtype)
        return rows * self.scale if self.is_scaled else rows


class QuantizedHead(_WithoutFloats):
    """`nn.Linear` on a [`QuantizedTable`] or a [`StoredTable`]; each token's hidden state is rounded to int8, as in the ternary layers.

    Args:
        table: shared with the embedding where the two are tied.
        bias: `[R]` or `None`.
        tied: the table is the embedding's, which saves and moves it.
    """

    def __init__(self, table: QuantizedTable | StoredTable, bias: Tensor | None = None, tied: bool = False):
        super().__init__()
        if tied:
            self.__dict__["table"] = table  # no submodule: its tensors exist once in a state dict
        else:
            self.table = table
        self.in_features, self.out_features = table.columns, table.rows
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., C]` -> `[..., R]`, in the dtype of `x`."""
        return self.table.multiply(x, self.bias)
