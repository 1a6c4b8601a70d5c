"""Rows of any kind that :mod:`.recognition` knows as token ids with labels, with a count of what is left out and why."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .cleaning import usable_rows
from .conversations import TOO_LONG, Turns, encode_completions, encode_conversations
from .preprocessing import IGNORE_INDEX, PromptEncoder, build_dataset
from .recognition import Recognized
from .tasks import Task


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

#: Why a row is left out, besides the reasons of :mod:`.cleaning` and :mod:`.conversations`.
ONLY_PROMPT = "only the prompt left after truncation"

#: Tokens of a conversation, or of a prompt with its completion, unless something else is asked for.
DEFAULT_LENGTH = 1024

#: Tokens of a block of plain text to train on, unless something else is asked for.
DEFAULT_BLOCK = 256

# Longer than any text.
_NO_LIMIT = sys.maxsize // 2


@dataclass
class EncodedRows:
    """Rows as token ids.

    Attributes:
        dataset: ``input_ids``, ``attention_mask`` and ``labels`` (-100 where there is no loss), unpadded, each within the limit.
        left_out: How many rows were left out, by reason.
        shortened: How many rows of ``dataset`` lost the end of a text to the limit.
        lengths: Tokens of every row that could be encoded, before the limit.
        usable: Of a task: the rows whose cells are good, labels as ids; ``None`` otherwise.
        rows: Of a task: those of ``usable`` that ``dataset`` was made of, in its order; ``None`` otherwise.
    """

    dataset: Dataset
    left_out: Counter[str] = field(default_factory=Counter)
    shortened: int = 0
    lengths: list[int] = field(default_factory=list)
    usable: Dataset | None = None
    rows: Dataset | None = None


def encode_rows(
    recognized: Recognized,
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None = None,
    *,
    turns: Turns = "all",
    use_chat_template: bool = False,
    source: str = "the dataset",
) -> EncodedRows:
    """Encodes rows for training.

    Args:
        recognized: Of any kind but ``"text"``, which has no rows (:func:`pack_corpus`).
        max_length: Tokens of a row. Of a task the text is cut (never the instruction nor the answer), and a row of whose text nothing is
            left is left out; conversations and completions are left out as a whole. Default: the task's, or :data:`DEFAULT_LENGTH`.
        turns: Of conversations.
        use_chat_template: Of a task.
        source: Where the rows are from, for messages.

    Raises:
        ValueError: No row is left, or columns are missing or of another type.
    """
    if recognized.task is not None and recognized.kind == "task":
        usable, left_out = usable_rows(dataset, recognized.task, source)
        found = encode_task_rows(
            recognized.task, usable, tokenizer, max_length, use_chat_template=use_chat_template, source=source
        )
        found.left_out = left_out + found.left_out
        return found
    limit = DEFAULT_LENGTH if max_length is None else max_length
    if recognized.kind == "messages":
        column = recognized.columns[0]
        encoded = encode_conversations(dataset, tokenizer, _NO_LIMIT, column=column, turns=turns)
    elif recognized.kind == "prompt_completion":
        encoded = encode_completions(dataset, tokenizer, _NO_LIMIT)
    else:
        raise ValueError(f"rows of the kind {recognized.kind!r} are packed, not encoded one by one")
    lengths = _lengths(encoded.dataset)
    kept = [row for row, length in enumerate(lengths) if length <= limit]
    left_out = encoded.left_out + Counter({TOO_LONG: len(lengths) - len(kept)})
    if not kept:
        raise ValueError(f"{source}: no example is left to train on: all are longer than {limit} tokens (max_length)")
    return EncodedRows(encoded.dataset.select(kept), left_out, 0, lengths)


def encode_task_rows(
    task: Task,
    usable: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None = None,
    *,
    use_chat_template: bool = False,
    source: str = "the dataset",
) -> EncodedRows:
    """Encodes rows of a task for training.

    Args:
        usable: As :func:`.cleaning.usable_rows` gives them.
        max_length, use_chat_template, source: As of :func:`encode_rows`.

    Raises:
        ValueError: No row is left.
    """
    from datasets import concatenate_datasets

    options: dict[str, Any] = {"use_chat_template": use_chat_template}
    limit = task.max_length if max_length is None else max_length
    whole = build_dataset(task, usable, tokenizer, _NO_LIMIT, **options)
    lengths = _lengths(whole)
    long = [row for row, length in enumerate(lengths) if length > limit]
    reasons = _too_long(task, usable.select(long), tokenizer, limit, options) if long else []
    bad = {row: reason for row, reason in zip(long, reasons, strict=True) if reason}
    kept = [row for row in range(len(usable)) if row not in bad]
    if not kept:
        raise ValueError(f"{source}: no example fits max_length {limit}")
    shortened = [row for row in long if row not in bad]
    if shortened:
        short = build_dataset(task, usable.select(shortened), tokenizer, limit, **options)
        at = dict(zip(shortened, range(len(whole), len(whole) + len(short)), strict=True))
        built = concatenate_datasets([whole, short]).select([at.get(row, row) for row in kept])
    else:
        built = whole.select(kept) if bad else whole
    rows = usable.select(kept) if bad else usable
    return EncodedRows(built, Counter(bad.values()), len(shortened), lengths, usable, rows)


def _lengths(encoded: Dataset) -> list[int]:
    """Tokens of every row, which Arrow counts without making lists of them."""
    import pyarrow.compute as pc

    return pc.list_value_length(encoded.with_format("arrow")["input_ids"][:]).to_pylist()


def _too_long(
    task: Task, rows: Dataset, tokenizer: PreTrainedTokenizerBase, limit: int, options: dict
) -> list[str | None]:
    """Why each of the rows, which are longer than the limit, cannot be shortened; `None` if it can."""
    encoder = PromptEncoder(task, tokenizer, limit, **options)
    examples = list(rows)
    none = [{**row, **dict.fromkeys(task.text_fields, "")} for row in examples]
    bare = [{**row, task.document_field: ""} for row in examples]
    no_limit = [_NO_LIMIT] * len(examples)
    least = [len(ids or ()) for ids in encoder.encode_prompts(none, no_limit)]
    without = [len(ids or ()) for ids in encoder.encode_prompts(bare, no_limit)]
    answers = {text: len(encoder.encode_answer(text)) + 1 for text in set(map(task.format_answer, examples))}
    room = [limit - answers[task.format_answer(row)] for row in examples]
    return [
        TOO_LONG if smallest > space else ONLY_PROMPT if rest >= space else None
        for smallest, rest, space in zip(least, without, room, strict=True)
    ]


def trained_tokens(labels: list[int]) -> int:
    """How many labels there is a loss on."""
    return sum(label != IGNORE_INDEX for label in labels)
