"""Rectangular, padded inputs of transformers to the ragged tokens of the native decoder, and its outputs back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_bitdistill.runtime import NativeDecoder

from .cache import BitNetCache


# Arguments of transformers' models that change nothing here.
_HARMLESS = ("use_cache", "is_first_iteration", "return_dict", "token_type_ids", "cache_position")


def given_cache(cache: Any, past_key_values: Any) -> Any:
    """The cache that `forward` was given, by whichever of its names (see [`CACHE_NAME`]).

    Raises:
        ValueError: by both.
    """
    if cache is not None and past_key_values is not None:
        raise ValueError("cache and past_key_values are two names of one argument: pass one of them.")
    return past_key_values if cache is None else cache


def check_arguments(arguments: dict[str, Any], cache: Any) -> None:
    """Refuse arguments of `forward` that would have to change the result and cannot.

    Raises:
        ValueError: naming the argument.
        TypeError: a cache of another kind.
    """
    for name, value in arguments.items():
        if name not in _HARMLESS and value is not None and value is not False:
            raise ValueError(f"the native decoder does not take {name}.")
    if cache is not None and not isinstance(cache, BitNetCache):
        raise TypeError(
            f"the cache is a {type(cache).__name__}; the native decoder has a cache of its own "
            "(BitNetCache): pass None, or the one that a previous call returned."
        )


class Inputs:
    """One call's tokens.

    Args:
        input_ids: int64 `[B, T]`.
        attention_mask: see [`BitNetCache.new_columns`].
        cache: extended by [`run`].

    Raises:
        ValueError: shapes that do not fit.
    """

    def __init__(self, input_ids: Tensor | None, attention_mask: Tensor | None, cache: BitNetCache):
        if input_ids is None or input_ids.ndim != 2 or input_ids.dtype not in (torch.int64, torch.int32):
            raise ValueError("the native decoder takes input_ids, integers [batch, tokens].")
        self.rows, self.width = input_ids.shape
        self.cache = cache
        self.native = cache.start(self.rows)
        self.real = cache.new_columns(attention_mask, self.rows, self.width)
        self.all_real = bool(self.real.all())
        if self.all_real:
            self.tokens = input_ids.reshape(-1)
            self.sequences = torch.arange(self.rows)
            if self.width > 1:
                self.sequences = self.sequences.repeat_interleave(self.width)
        else:
            self.tokens = input_ids[self.real]
            self.sequences = self.real.nonzero()[:, 0]

    def check_positions(self, position_ids: Tensor | None) -> None:
        """Refuse positions that are not those of the real tokens.

        Raises:
            ValueError: they disagree with the attention mask.
        """
        if position_ids is None:
            return
        past = torch.tensor(self.native.lengths)[:, None]
        expected = past + self.real.cumsum(dim=1) - 1
        if position_ids.shape[-1] != self.width or position_ids.ndim != 2:
            raise ValueError(f"position_ids has shape {list(position_ids.shape)}, expected {[self.rows, self.width]}.")
        if not torch.equal(position_ids.expand(self.rows, -1)[self.real], expected[self.real]):
            raise ValueError(
                "position_ids disagree with attention_mask: the native decoder numbers the real tokens of a row from 0 "
                "on. Leave position_ids out, or mark padding in attention_mask."
            )

    def columns(self, logits_to_keep: int | Tensor) -> Tensor:
        """Columns whose outputs are wanted, int64 `[n]`, or `[B, n]` for columns of its own for each row: the first of the last `n` is that of
        the row's last real token before the others.

        Raises:
            ValueError: a kind of selection that is not supported.
        """
        if isinstance(logits_to_keep, Tensor):
            if logits_to_keep.ndim != 1 or logits_to_keep.dtype == torch.bool:
                raise ValueError("logits_to_keep must be a number or a 1-dimensional tensor of columns.")
            return torch.where(logits_to_keep < 0, logits_to_keep + self.width, logits_to_keep)
        first = self.width - logits_to_keep if 0 < logits_to_keep < self.width else 0
        columns = torch.arange(first, self.width)
        if first and not bool(self.real[:, first].all()):
            # Behind a prompt that is padded on the right: what comes next is said by its last token.
            columns = columns.repeat(self.rows, 1)
            columns[:, 0] = self.last_real(first)
        return columns

    def last_real(self, end: int | None = None) -> Tensor:
        """The column of each row's last real token up to column `end` (default: the last one), int64 `[B]`; `end` where there is none."""
        end = self.width - 1 if end is None else end
        real = self.real[:, : end + 1]
        return torch.where(real.any(dim=1), end - real.flip(1).to(torch.int8).argmax(dim=1), end)

    def run(self, decoder: NativeDecoder, columns: Tensor, hidden: bool = False, greatest: bool = False) -> Tensor:
        """Append the tokens to the cache.

        Args:
            columns: from [`columns`].
            hidden: hidden states instead of logits.
            greatest: logits that are certainly less than the greatest may be -inf.

        Returns:
            float32 `[B, n, vocab_size or hidden_size]`, zeros at padding.
        """
        if self.width == 1 and self.all_real and columns.tolist() == [0]:  # a step of decoding: it is short
            values = decoder.forward(self.native, self.tokens, self.sequences, self.sequences, hidden, greatest)
            self.cache.append(self.real)
            return values[:, None]
        columns = columns.expand(self.rows, -1)
        place = self.real.reshape(-1).cumsum(dim=0).view(self.rows, self.width) - 1
        wanted = self.real.gather(1, columns)
        index = place.gather(1, columns)[wanted]
        ordered, inverse = index, None
        if index.numel() > 1 and not bool((index[1:] > index[:-1]).all()):
            ordered, inverse = torch.unique(index, return_inverse=True)
        values = decoder.forward(self.native, self.tokens, self.sequences, ordered, hidden, greatest)
        self.cache.append(self.real)
        if inverse is not None:
            values = values[inverse]
        if bool(wanted.all()):
            return values.view(self.rows, columns.shape[1], -1)
        out = torch.zeros((self.rows, columns.shape[1], values.shape[-1]), dtype=values.dtype)
        out[wanted] = values
        return out
