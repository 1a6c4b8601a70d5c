"""The rows that a model is measured on: the same ones for whoever measures it again."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from ..data.cleaning import check_left_out, describe, usable_rows
from ..data.conversations import Encoded, Turns, encode_completions, encode_conversations
from ..data.corpus import pack_corpus
from ..data.encoding import DEFAULT_LENGTH
from ..data.fingerprint import fingerprint_rows
from ..data.sources import load_rows_to_measure
from ..data.task_loading import load_task_dataset
from ..data.tasks import Task
from .score_record import Measurement


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

#: Chooses a part of the rows, and the part of the training rows that stands in where there is no split to measure on.
ROWS_SEED = 0

#: Tokens of a block of plain text to measure on, unless something else was asked for.
BLOCK_TO_MEASURE = 512


def few(dataset: Dataset, limit: int | None) -> Dataset:
    """At most ``limit`` rows (all, if it is 0 or None), always the same ones."""
    if not limit or len(dataset) <= limit:
        return dataset
    return dataset.shuffle(seed=ROWS_SEED).select(range(limit))


def not_measured(left_out: Mapping[str, int], total: int, source: str, max_left_out: float = 1.0) -> str | None:
    """What is said of rows that a model cannot be measured on; `None` where there are none.

    Args:
        left_out: Rows by kind.
        total: Rows, these included.
        max_left_out: The largest share of them.

    Raises:
        ValueError: There are more.
    """
    check_left_out(left_out, total, f"{source}, rows to measure on", max_left_out)
    return f"of {total:,} rows to measure on, not measured: {describe(left_out)}" if any(left_out.values()) else None


def rows_to_measure(dataset: Dataset, task: Task, source: str, max_left_out: float = 1.0) -> Dataset:
    """The rows of a task that a model can be measured on, in the task's form. A warning says how many others there are, by kind.

    Args:
        max_left_out: The largest share of others.

    Raises:
        ValueError: There are more, or no row is left.
    """
    usable, left_out = usable_rows(dataset, task, source)
    if said := not_measured(left_out, len(dataset), source, max_left_out):
        logger.warning(f"{source}: {said}")
    return usable


def text_blocks(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, size: int, column: str) -> Dataset:
    """Plain text in blocks of at most ``size`` tokens, with a label for every token: ``input_ids``, ``attention_mask``, ``labels``."""
    from datasets import Dataset

    blocks = pack_corpus(dataset, tokenizer, size, column, drop_remainder=False)
    ids = [list(row) for row in blocks["input_ids"]]
    return Dataset.from_dict(
        {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids], "labels": [list(row) for row in ids]}
    )


def encode_answers(dataset: Dataset, how: Measurement, tokenizer: PreTrainedTokenizerBase, length: int) -> Encoded:
    """Conversations, or prompts with completions, as ``how.kind`` says, in at most ``length`` tokens each."""
    if how.kind == "messages":
        turns = cast(Turns, how.turns)
        return encode_conversations(dataset, tokenizer, length, column=how.column or "messages", turns=turns)
    return encode_completions(dataset, tokenizer, length)


def load_rows(
    how: Measurement, tokenizer: PreTrainedTokenizerBase, same_as: str | None = None, keep_limit: bool = True
) -> tuple[Dataset, Measurement]:
    """The rows that a measurement names.

    Args:
        how: Of which kind ``"task"`` gives ``task.columns`` (labels as ids), the others ``input_ids``, ``attention_mask`` and ``labels``.
        tokenizer: The model's.
        same_as: The fingerprint that a part of the training rows must have to stand in for a split to measure on that is missing;
            otherwise all rows are taken. Default: that part, whatever it is.
        keep_limit: Whether rows that are other than ``same_as`` says are limited as those were.

    Returns:
        The rows, and what they are: ``how``, without its limit where that was not kept.

    Raises:
        FileNotFoundError, ConnectionError: The data cannot be found.
        ValueError: They do not suit the task, or nothing is left of them.
    """
    if how.dataset is None:
        assert how.task is not None
        rows = load_task_dataset(how.task, how.split or "validation", data_dir=how.data_dir, max_samples=how.limit)
        return rows, how
    rows, whole = load_rows_to_measure(
        how.dataset,
        config_name=how.dataset_config,
        revision=how.dataset_revision,
        train_split=how.train_split,
        split=how.split,
        seed=ROWS_SEED,
    )
    found = _encode(rows, how, tokenizer)
    if same_as is not None and fingerprint_rows(found) != same_as:
        how = how if keep_limit else dataclasses.replace(how, limit=None)
        found = _encode(rows if whole is None else whole, how, tokenizer)
    return found, how


def _encode(dataset: Dataset, how: Measurement, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    source = str(how.dataset)
    if how.kind == "task":
        assert how.task is not None
        return few(rows_to_measure(dataset, how.task, source), how.limit)
    if how.kind == "text":
        size = how.max_length or BLOCK_TO_MEASURE
        return few(text_blocks(dataset, tokenizer, size, how.column or "text"), how.limit)
    chosen = few(dataset, how.limit)
    found = encode_answers(chosen, how, tokenizer, how.max_length or DEFAULT_LENGTH)
    if said := not_measured(found.left_out, len(chosen), source):
        logger.warning(f"{source}: {said}")
    return found.dataset
