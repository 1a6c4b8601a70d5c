"""What of a batch is learned: targets aligned with the logits, tokens that take part, and how many of each there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...data.batches import DOCUMENTS
from ...data.preprocessing import IGNORE_INDEX
from ...modeling.model_heads import Head
from .document_groups import labelled_tokens, within_documents


def shift_labels(labels: Tensor) -> Tensor:
    """Aligns a causal LM's labels with its logits: position `i` predicts token `i + 1`.

    Args:
        labels: `[B, T]` int64.

    Returns:
        `[B, T]` int64: `labels[:, 1:]` followed by a column of -100.
    """
    return F.pad(labels[..., 1:], (0, 1), value=IGNORE_INDEX)


def batch_targets(batch: Mapping[str, Any], head: Head) -> Tensor:
    """Labels aligned with the logits: `[B, T]` for a causal LM, `[B]` for a classifier.

    Args:
        batch: prepared, see `hf_bitdistill.data.batches.prepare_batch`.

    Raises:
        ValueError: there are none, or they are no integers.
    """
    labels = batch.get("labels")
    if head == "causal_lm" and batch.get("shift_labels") is not None:
        return batch["shift_labels"]
    if labels is None:
        raise ValueError(
            f"the batch has no labels (only {', '.join(batch)}); for plain text use a "
            "DataCollatorForLanguageModeling(tokenizer, mlm=False)"
        )
    if head == "causal_lm":
        targets = shift_labels(labels)
        documents = batch.get(DOCUMENTS)
        return targets if documents is None else within_documents(targets, documents)
    if labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(
            f"classification needs one integer label a sequence, got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    return labels


def taking_part(batch: Mapping[str, Any], targets: Tensor, is_read: bool) -> Tensor:
    """`[B, T]` bool: the real tokens of the sequences (or documents) that have a label.

    Args:
        batch: prepared.
        targets: of [`batch_targets`].
        is_read: a term reads more of it than its size.

    Raises:
        ValueError: such a term, and an attention mask that does not say which tokens are real.
    """
    mask, documents = batch.get("attention_mask"), batch.get(DOCUMENTS)
    if mask is None and documents is not None:
        return labelled_tokens(documents, targets != IGNORE_INDEX)
    if mask is None or (mask.ndim != 2 and not is_read):
        states = batch["input_ids"] if batch.get("input_ids") is not None else batch["inputs_embeds"]
        mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    elif mask.ndim != 2:
        raise ValueError(
            f"the attention and hidden state losses need an attention mask [B, T], got {tuple(mask.shape)}"
        )
    labelled = (targets != IGNORE_INDEX).reshape(targets.shape[0], -1).any(-1)
    return mask.bool() & labelled[:, None]
