"""Datasets of conversations, and of prompts with completions, given to the trainer as they are."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from ..data.batch_checks import context_length
from ..data.conversations import encode_completions, encode_conversations
from ..data.recognition import conversation_columns
from ..modeling.model_heads import model_head


if TYPE_CHECKING:
    from .config import DistillationConfig


logger = logging.get_logger(__name__)


def encode_datasets(
    model: nn.Module | None, args: DistillationConfig, processing_class: Any, train: Any, evaluation: Any
) -> tuple[Any, Any]:
    """Both datasets of a trainer by [`encode_rows`]; those of a classifier as they are."""
    if model is not None and model_head(model) != "causal_lm":
        return train, evaluation
    length = args.max_sequence_length or (None if model is None else context_length(model.config)) or sys.maxsize
    return (
        encode_rows(train, processing_class, length, "train_dataset"),
        encode_rows(evaluation, processing_class, length, "eval_dataset"),
    )


def encode_rows(dataset: Any, processing_class: Any, max_length: int, name: str) -> Any:
    """A dataset as token ids and labels, if it has `messages` (or `conversations`), or `prompt` and `completion`, and no `input_ids`.

    Args:
        dataset: map-style, a list of rows, or a mapping of datasets; anything else is handed back.
        processing_class: the tokenizer, or a processor that has one; conversations need its chat template.
        max_length: tokens; longer rows are left out, and a warning says how many.
        name: of the dataset, for messages.

    Raises:
        ValueError: there is no tokenizer or chat template, the dataset is streamed, or nothing is left.
    """
    if isinstance(dataset, Mapping) and not hasattr(dataset, "column_names"):
        return {
            key: encode_rows(part, processing_class, max_length, f"{name}[{key!r}]") for key, part in dataset.items()
        }
    columns = _columns(dataset)
    found = None if "input_ids" in columns else conversation_columns(columns)
    if found is None:
        return dataset
    what = " and ".join(found)
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError(f"{name} has {what}: pass processing_class (the tokenizer), or encode it before")
    if not hasattr(dataset, "__len__"):
        raise ValueError(
            f"{name} has {what} and is streamed: encode it before (hf_bitdistill.data.conversations), or load it as a whole"
        )
    if len(found) == 1:
        encoded = encode_conversations(dataset, tokenizer, max_length, column=found[0])
    else:
        encoded = encode_completions(dataset, tokenizer, max_length)
    if encoded.left_out:
        reasons = ", ".join(f"{count} {reason}" for reason, count in encoded.left_out.items())
        logger.warning(
            f"{name}: {encoded.left_out.total()} of {len(dataset)} rows are left out ({reasons}; max_sequence_length is {max_length})."
        )
    return encoded.dataset


def _columns(dataset: Any) -> list[str]:
    columns = getattr(dataset, "column_names", None)
    if columns is not None:
        return list(columns)
    is_rows = isinstance(dataset, (list, tuple)) and dataset and isinstance(dataset[0], Mapping)
    return list(dataset[0]) if is_rows else []
