"""Documents of packed and left-padded batches: which take part, and their tokens brought together."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...data.preprocessing import IGNORE_INDEX
from .attention_states import AttentionStates


def within_documents(targets: Tensor, documents: Tensor) -> Tensor:
    """Targets without those that a token of another document, or padding, would have to predict.

    Args:
        targets: `[B, T]` int64, aligned with the logits.
        documents: `[B, T]` int64, see `hf_bitdistill.data.batches.DOCUMENTS`.
    """
    alike = (documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] >= 0)
    kept = targets.clone()
    kept[:, :-1].masked_fill_(~alike, IGNORE_INDEX)
    # Nothing comes after the last one.
    kept[:, -1:] = IGNORE_INDEX
    return kept


def labelled_tokens(documents: Tensor, labelled: Tensor) -> Tensor:
    """`[B, T]` bool: the tokens of documents that have a labelled token.

    Args:
        documents: `[B, T]` int64.
        labelled: `[B, T]` bool.
    """
    # As many places as there can be documents, so that nothing waits for their number; the last is padding's.
    has_label = torch.zeros(documents.numel() + 1, dtype=torch.bool, device=documents.device)
    has_label[documents[labelled]] = True
    has_label[-1] = False
    return has_label[documents]


def document_groups(documents: Tensor, mask: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The documents of a batch, those of like lengths together, so that pairs of tokens exist within documents only.

    Args:
        documents: `[B, T]` int64.
        mask: `[B, T]` bool: the tokens that take part, whole documents.

    Yields:
        Tokens `[D, L]` int64, places in the flattened batch, and which of them are real, `[D, L]` bool. No document is less than half as
        long as the longest of its group: at most half of a group is padding.
    """
    device = documents.device
    # Once, and together: on an accelerator reading them waits for everything before.
    documents, mask = torch.stack([documents, mask.to(documents.dtype)]).cpu().flatten(1)
    numbers, lengths = documents.masked_fill(mask == 0, -1).unique_consecutive(return_counts=True)
    starts = lengths.cumsum(0) - lengths
    spans = sorted(
        (length, start)
        for number, length, start in zip(numbers.tolist(), lengths.tolist(), starts.tolist(), strict=True)
        if number >= 0
    )
    while spans:
        longest = spans[-1][0]
        group = [span for span in spans if 2 * span[0] >= longest]
        del spans[len(spans) - len(group) :]
        length, start = torch.tensor(group).T[:, :, None]
        column = torch.arange(longest)
        # Beyond its end a document repeats its last token.
        yield (start + column.minimum(length - 1)).to(device), (column < length).to(device)


def gather_states(states: AttentionStates, tokens: Tensor) -> AttentionStates:
    """Q, K, V `[B, heads, T, d]` of a group of documents, `[D, heads, L, d]`."""
    return AttentionStates(*(value.transpose(1, 2).flatten(0, 1)[tokens].transpose(1, 2) for value in states))
