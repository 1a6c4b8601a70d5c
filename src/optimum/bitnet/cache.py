"""`BitNetCache`: the native decoder's keys and values, in the shape that transformers' `generate` expects of a cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from hf_bitdistill.runtime import NativeCache, NativeDecoder


class BitNetCache(Cache):
    """Keys and values of a batch.

    Padding never enters the native cache, whose sequences have lengths of their own. To transformers a cache is a
    rectangle of columns, so this class remembers which columns of which row were real tokens.

    Args:
        decoder: whose cache it is. Memory is taken at the first forward, which decides the number of rows.
    """

    def __init__(self, decoder: NativeDecoder):
        super().__init__(layers=[])
        self.decoder = decoder
        self.native: NativeCache | None = None
        self.real = torch.zeros((0, 0), dtype=torch.bool)
        """`[rows, columns]`: whether a column of a row is a token (not padding)."""

    def __repr__(self) -> str:
        return f"BitNetCache(rows={self.real.shape[0]}, columns={self.real.shape[1]})"

    def __len__(self) -> int:
        return len(self.decoder.spec.layers)

    def __deepcopy__(self, memo):
        raise TypeError("a BitNetCache cannot be copied; run the common prefix again, or use batch_repeat_interleave.")

    # ---- what forward needs -------------------------------------------------------------------------------------

    def start(self, rows: int) -> NativeCache:
        """The native cache, for a batch of `rows`.

        Raises:
            ValueError: it holds another number of rows.
        """
        if self.native is None:
            self.native = self.decoder.new_cache(rows)
            self.real = torch.zeros((rows, 0), dtype=torch.bool)
        if self.real.shape[0] != rows:
            raise ValueError(f"the cache holds {self.real.shape[0]} rows, input_ids has {rows}.")
        return self.native

    def new_columns(self, attention_mask: Tensor | None, rows: int, columns: int) -> Tensor:
        """Which of the new columns are real, bool `[rows, columns]`.

        Args:
            attention_mask: `[rows, past + columns]`; `[rows, columns]` where nothing is past; `None`: all real.

        Raises:
            ValueError: another shape or other values, or it contradicts what past columns were.
        """
        past = self.real.shape[1]
        if attention_mask is None:
            return torch.ones((rows, columns), dtype=torch.bool)
        if tuple(attention_mask.shape) != (rows, past + columns):
            raise ValueError(
                f"attention_mask has shape {list(attention_mask.shape)}, expected {[rows, past + columns]} "
                f"({past} columns in the cache and {columns} new ones)."
            )
        mask = attention_mask.to(torch.bool)
        if attention_mask.dtype != torch.bool and not torch.equal(mask.to(attention_mask.dtype), attention_mask):
            raise ValueError("attention_mask must hold zeros and ones only.")
        if past and not torch.equal(mask[:, :past], self.real):
            raise ValueError(
                "attention_mask hides or shows other past tokens than when they were computed; the native cache cannot "
                "do that: start with an empty cache."
            )
        return mask[:, past:]

    def append(self, columns: Tensor) -> None:
        """Note new columns, after their tokens were computed."""
        self.real = torch.cat([self.real, columns], dim=1)

    # ---- what transformers calls --------------------------------------------------------------------------------

    def update(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("a BitNetCache belongs to a native decoder; no other model can write into it.")

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns so far, padding included."""
        return self.real.shape[1]

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return self.decoder.spec.max_positions

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.real.shape[1] + query_length, 0

    def reset(self) -> None:
        self.native, self.real = None, torch.zeros((0, 0), dtype=torch.bool)

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last columns; like transformers' own caches it takes a number <= 0."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes minus the number of tokens to remove, not {tokens_to_remove}.")
        if tokens_to_remove == 0 or self.native is None:
            return
        kept = self.real[:, :tokens_to_remove]
        for row, length in enumerate(kept.sum(dim=1).tolist()):
            self.native.truncate(row, length)
        self.real = kept

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row `beam_idx[i]` was."""
        if self.native is not None:
            beam_idx = beam_idx.cpu()
            self.native.reorder(beam_idx.tolist())
            self.real = self.real[beam_idx]

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.reorder_cache(torch.arange(self.real.shape[0]).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        indices = indices.nonzero().view(-1) if indices.dtype == torch.bool else indices
        self.reorder_cache(indices)

    def activate_past_recording(self) -> None:
        """Nothing to do: everything is kept."""

    def is_recording_past(self, layer_idx: int = 0) -> bool:
        return True

    @property
    def batch_size(self) -> int:
        return self.real.shape[0] if self.native is not None else -1

    @property
    def max_batch_size(self) -> int:
        return self.batch_size

    @property
    def max_cache_len(self) -> int:
        return self.get_max_length()

    @property
    def is_compileable(self) -> bool:
        return False

    @property
    def is_croppable(self) -> bool:
        return True

    @property
    def is_initialized(self) -> bool:
        return self.native is not None

    @property
    def is_linear(self) -> list[bool]:
        return [False] * len(self)

    @property
    def is_sliding(self) -> list[bool]:
        return [layer.window > 0 for layer in self.decoder.spec.layers]

    @property
    def nbytes(self) -> int:
        """Memory of keys and values, in bytes."""
        return 0 if self.native is None else self.native.nbytes
