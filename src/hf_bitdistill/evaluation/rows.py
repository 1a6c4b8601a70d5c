"""The rows that a model is measured on: the same ones for whoever measures it again."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from ..data.cleaning import check_left_out, describe, usable_rows, usable_texts
from ..data.conversations import Encoded, Turns, encode_completions, encode_conversations
from ..data.corpus import pack_corpus
from ..data.encoding import DEFAULT_LENGTH
from ..data.fingerprint import fingerprint_rows
from ..data.sources import load_rows_to_measure
from ..data.task_loading import load_task_dataset
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


def rows_to_measure(
    dataset: Dataset, how: Measurement, tokenizer: PreTrainedTokenizerBase, max_left_out: float = 1.0
) -> tuple[Dataset, str | None]:
    """The rows of a dataset that a model can be measured on, at most ``how.limit`` of them.

    Args:
        dataset: As it was loaded.
        how: Of which kind ``"task"`` gives ``task.columns`` (labels as ids), the others ``input_ids``, ``attention_mask`` and ``labels``.
        tokenizer: The model's.
        max_left_out: The largest share of other rows.

    Returns:
        The rows, and what is said of the others, if there are any.

    Raises:
        ValueError: There are more of the others, or no row is left.
    """
    source, total = how.place, len(dataset)
    if how.kind == "task":
        assert how.task is not None
        usable, left_out = usable_rows(dataset, how.task, source)
        rows = few(usable, how.limit)
    elif how.kind == "text":
        column = how.column or "text"
        usable, left_out = usable_texts(dataset, column, source)
        rows = few(text_blocks(usable, tokenizer, how.max_length or BLOCK_TO_MEASURE, column), how.limit)
    else:
        chosen = few(dataset, how.limit)
        found = encode_answers(chosen, how, tokenizer, how.max_length or DEFAULT_LENGTH)
        rows, left_out, total = found.dataset, found.left_out, len(chosen)
    return rows, not_measured(left_out, total, source, max_left_out)


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
    loaded = load_rows_to_measure(
        how.dataset,
        config_name=how.dataset_config,
        revision=how.dataset_revision,
        train_split=how.train_split,
        split=how.split,
        seed=ROWS_SEED,
        skip_undecodable=True,
    )
    rows, said = rows_to_measure(loaded.rows, how, tokenizer)
    if same_as is not None and fingerprint_rows(rows) != same_as:
        how = how if keep_limit else dataclasses.replace(how, limit=None)
        rows, said = rows_to_measure(loaded.rows if loaded.whole is None else loaded.whole, how, tokenizer)
    unread = f"left out when it was read: {describe(loaded.left_out)}" if loaded.left_out.total() else None
    for each in filter(None, (unread, said)):
        logger.warning(f"{how.place}: {each}")
    return rows, how
