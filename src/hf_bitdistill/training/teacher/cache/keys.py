"""By what an example is found again: its tokens, and which of them are learned."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ....data.batches import DOCUMENTS
from ....data.preprocessing import IGNORE_INDEX


DIGEST_BYTES = 16


class Example(NamedTuple):
    """A sequence of a batch.

    Attributes:
        fingerprint: 16 bytes.
        count: positions with a label; a classifier has one.
        row: of the batch.
        tokens: its first tokens, for messages.
    """

    fingerprint: bytes
    count: int  # type: ignore[assignment]  # the tuple's method of this name is not used
    row: int
    tokens: list[int]


def batch_examples(batch: Mapping[str, Any], targets: Tensor) -> list[Example]:
    """The sequences of a batch that have a label, in the order in which the flattened batch holds them.

    The same however the sequence is padded or packed. Labels do not count, only where they are: a teacher does not see them.

    Args:
        batch: prepared, on any device (an accelerator is waited for).
        targets: `[B, T]` aligned with the logits, or `[B]`.

    Raises:
        ValueError: there are no `input_ids`.
    """
    ids = batch.get("input_ids")
    if not isinstance(ids, Tensor):
        raise ValueError("a teacher's cache finds examples by their input_ids, and the batch has none")
    documents, mask = batch.get(DOCUMENTS), batch.get("attention_mask")
    if documents is None:
        documents = torch.arange(len(ids), device=ids.device)[:, None].expand_as(ids)
        if isinstance(mask, Tensor) and mask.shape == ids.shape:
            documents = documents.masked_fill(mask == 0, -1)
    labelled = targets != IGNORE_INDEX
    all_ids, all_documents, all_labelled = (value.cpu().numpy() for value in (ids, documents, labelled))
    examples = []
    for row, numbers in enumerate(all_documents):
        borders = [0, *(np.flatnonzero(np.diff(numbers)) + 1), len(numbers)]
        for start, stop in pairwise(borders):
            if numbers[start] < 0:
                continue
            learned = all_labelled[row, start:stop] if all_labelled.ndim == 2 else all_labelled[row : row + 1]
            count = int(learned.sum())
            if count:
                tokens = all_ids[row, start:stop].astype("<i8")
                digest = hashlib.blake2b(tokens.tobytes(), digest_size=DIGEST_BYTES)
                digest.update(np.packbits(learned).tobytes())
                examples.append(Example(digest.digest(), count, row, tokens[:12].tolist()))
    return examples


def tokenizer_digest(processing_class: Any) -> str | None:
    """What tells tokenizers apart by the ids of their tokens and of the special ones; `None` without a tokenizer."""
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    if tokenizer is None or not hasattr(tokenizer, "get_vocab"):
        return None
    special = [getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "unk")]
    return hashlib.blake2b(
        repr((sorted(tokenizer.get_vocab().items()), special)).encode(), digest_size=DIGEST_BYTES
    ).hexdigest()
