"""Looks at a dataset with a model's tokenizer: what it is, what is left out, how long it is, what is trained on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..cleaning import usable_texts
from ..conversations import Turns
from ..corpus import pack_texts
from ..encoding import DEFAULT_BLOCK, DEFAULT_LENGTH, encode_rows, trained_tokens
from ..pieces import PIECE, PieceCutter, text_encoder
from ..preprocessing import IGNORE_INDEX
from ..recognition import Recognized, check_read, recognize
from ..sources import Examples
from ..task_loading import select_columns
from ..tasks import Task


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

# Longest and most samples' candidates read: those shown are spread over the lengths.
_BATCH = 512


@dataclass(frozen=True)
class Sample:
    """One example as the model reads it.

    Attributes:
        parts: ``(text, is trained on, is a special token)`` in their order.
        tokens, trained: How many there are, and on how many there is a loss.
    """

    parts: tuple[tuple[str, bool, bool], ...]
    tokens: int
    trained: int


@dataclass
class SplitView:
    """What was found in one split.

    Attributes:
        name: ``"train"`` or ``"validation"``.
        rows: Of the split, those that could not be read included.
        looked_at: Of these.
        left_out: By kind, of those looked at.
        lengths: Tokens of each row that could be encoded, before the limit; of plain text, of each document.
        shortened: Rows whose text is cut.
        labels: Rows by label word (only of classification).
    """

    name: str
    rows: int
    looked_at: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    lengths: list[int] = field(default_factory=list)
    shortened: int = 0
    labels: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Duplicates:
    """Rows that read the same (white space at the ends aside).

    Attributes:
        within_train: Training rows that repeat an earlier one's input.
        shared: Validation rows whose input is also in the training rows.
        shared_answer: Of these, with the same answer there.
    """

    within_train: int
    shared: int
    shared_answer: int


@dataclass
class DataView:
    """Everything that `bitdistill data` shows."""

    source: str
    model: str
    recognized: Recognized
    max_length: int
    max_length_from: str
    held_out_from_train: bool
    turns: Turns
    splits: list[SplitView]
    samples: list[Sample]
    duplicates: Duplicates


def look_at(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    model: str,
    *,
    task: Task | None = None,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    label_words: Sequence[str] | None = None,
    max_length: int | None = None,
    context: int | None = None,
    turns: Turns = "all",
    use_chat_template: bool = False,
    samples: int = 3,
    max_rows: int = 20_000,
    seed: int = 0,
) -> DataView:
    """Looks at the two splits of a dataset.

    Args:
        examples: From :func:`hf_bitdistill.data.sources.load_examples`.
        tokenizer: The model's.
        model: Its name, for the report.
        task: What the rows are; default: what their columns say (with ``text_columns``, ``label_column``, ``label_words``).
        max_length: Tokens of a row, of plain text of a block. Default: the task's, or 1024 (a block: 256), at most ``context``.
        context: The longest sequence that the model reads.
        turns: Of conversations: which of the assistant's are learned.
        use_chat_template: Of a task: prompts go into the tokenizer's chat template.
        samples: Examples to show.
        max_rows: Rows of each split to encode, chosen by ``seed``; 0: all. Duplicates are looked for among all rows in any case.

    Raises:
        ValueError: The columns say nothing, no row can be used, ``max_length`` is longer than ``context``, or an option is given that data
            of this kind do not read.
    """
    if task is not None:
        recognized = Recognized("task", task.columns, task)
    else:
        recognized = recognize(
            examples.train,
            examples.source,
            config_name=examples.config_name,
            text_columns=text_columns,
            label_column=label_column,
            label_words=label_words,
        )
    check_read(recognized.kind, examples.source, turns, use_chat_template)
    limit, origin = _limit(recognized, max_length, context)
    options: dict[str, Any] = {"turns": turns, "use_chat_template": use_chat_template}
    views: list[SplitView] = []
    shown: list[Sample] = []
    parts = {"train": examples.train, "validation": examples.validation}
    for (name, dataset), unread in zip(parts.items(), examples.left_out, strict=True):
        view = SplitView(name, len(dataset) + unread.total(), left_out=Counter(unread))
        if 0 < max_rows < len(dataset):
            dataset = dataset.shuffle(seed=seed).select(range(max_rows))
        view.looked_at = len(dataset) + unread.total()
        if recognized.kind == "text":
            texts, empty = usable_texts(dataset, recognized.columns[0], f"{examples.source} ({name})")
            view.left_out += empty
            blocks = _look_at_text(texts, recognized.columns[0], tokenizer, limit, view, samples)
            found = [(ids, ids) for ids in blocks]
        else:
            found = _look_at_rows(dataset, recognized, tokenizer, limit, view, samples, seed, options, examples.source)
        views.append(view)
        shown = shown or [_sample(ids, labels, tokenizer) for ids, labels in found]
    return DataView(
        source=examples.source,
        model=model,
        recognized=recognized,
        max_length=limit,
        max_length_from=origin,
        held_out_from_train=examples.held_out_from_train,
        turns=turns,
        splits=views,
        samples=shown,
        duplicates=find_duplicates(recognized, examples.train, examples.validation, examples.source),
    )


def _limit(recognized: Recognized, asked: int | None, context: int | None) -> tuple[int, str]:
    if asked is not None:
        if asked < 2:
            raise ValueError(f"max_length must be at least 2, got {asked}")
        if context is not None and asked > context:
            raise ValueError(f"max_length is {asked}, and the model reads at most {context} tokens")
        return asked, "asked for"
    if recognized.task is not None and recognized.kind == "task":
        limit, origin = recognized.task.max_length, "the task's"
    else:
        limit, origin = DEFAULT_BLOCK if recognized.kind == "text" else DEFAULT_LENGTH, "the default"
    return (context, "the model's context") if context is not None and context < limit else (limit, origin)


def _look_at_rows(
    dataset: Dataset,
    recognized: Recognized,
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
    view: SplitView,
    samples: int,
    seed: int,
    options: dict[str, Any],
    source: str,
) -> list[tuple[list[int], list[int]]]:
    encoded = encode_rows(recognized, dataset, tokenizer, limit, source=f"{source} ({view.name})", **options)
    view.left_out += encoded.left_out
    view.lengths, view.shortened = encoded.lengths, encoded.shortened
    task = recognized.task
    if task is not None and task.label_words and encoded.usable is not None:
        counts: Counter[Any] = Counter(encoded.usable[task.target_field])
        view.labels = Counter({word: counts.get(label, 0) for label, word in task.id2label.items()})
    rows = encoded.dataset.shuffle(seed=seed).select(range(min(samples, len(encoded.dataset))))
    return [(list(row["input_ids"]), list(row["labels"])) for row in rows]


def _look_at_text(
    dataset: Dataset, column: str, tokenizer: PreTrainedTokenizerBase, limit: int, view: SplitView, samples: int
) -> list[list[int]]:
    encode = text_encoder(tokenizer)
    for batch in dataset.iter(batch_size=_BATCH):
        texts = batch[column]
        short = [text for text in texts if len(text) <= PIECE]
        lengths = iter([len(ids) for ids in encode(short)] if short else [])
        view.lengths += [
            next(lengths) if len(text) <= PIECE else sum(len(encode([piece])[0]) for piece in _pieces(text, encode))
            for text in texts
        ]
    pairs = ([(text, False) for text in batch[column]] for batch in dataset.iter(batch_size=16))
    return list(islice(pack_texts(pairs, tokenizer, limit, eos=tokenizer.eos_token_id, drop_remainder=False), samples))


def _pieces(text: str, encode: Any) -> Iterator[str]:
    return (piece for piece, _ in PieceCutter(encode).cut([(text, False)]))


def _sample(ids: list[int], labels: list[int], tokenizer: PreTrainedTokenizerBase) -> Sample:
    special = set(tokenizer.all_special_ids)
    states = [(label != IGNORE_INDEX, token in special) for token, label in zip(ids, labels, strict=True)]
    parts: list[tuple[str, bool, bool]] = []
    done, start = "", 0
    for end in range(1, len(ids) + 1):
        if end < len(ids) and states[end] == states[start]:
            continue
        # What the tokens add to the text before them: a space at their start would be lost if they were decoded alone.
        text: Any = tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        added: Any = text[len(done) :] if text.startswith(done) else tokenizer.decode(ids[start:end])
        parts.append((added, *states[start]))
        done, start = text, end
    return Sample(tuple(parts), len(ids), trained_tokens(labels))


def find_duplicates(recognized: Recognized, train: Dataset, validation: Dataset, source: str) -> Duplicates:
    """Looks for equal inputs, among all rows."""
    answers: dict[str, set[str]] = {}
    within = 0
    for key, answer in _inputs(recognized, train, source):
        within += key in answers
        answers.setdefault(key, set()).add(answer)
    shared = same = 0
    for key, answer in _inputs(recognized, validation, source):
        if key in answers:
            shared += 1
            same += answer in answers[key]
    return Duplicates(within, shared, same)


def _inputs(recognized: Recognized, dataset: Dataset, source: str) -> Iterator[tuple[str, str]]:
    """`(what is read, what is to be answered)` of every row that has both, as text."""
    task = recognized.task
    if task is not None:
        dataset = select_columns(dataset, task, source)
        reads, answer = task.text_fields, task.target_field
    elif recognized.kind == "prompt_completion":
        reads, answer = ("prompt",), "completion"
    else:
        reads, answer = recognized.columns, None
    for batch in dataset.select_columns([*reads, *([answer] if answer else [])]).iter(batch_size=_BATCH):
        rows = zip(*(batch[name] for name in reads), strict=True)
        for texts, target in zip(rows, batch[answer] if answer else [""] * len(batch[reads[0]]), strict=True):
            if all(texts):
                yield "\0".join(map(_as_text, texts)), _as_text(target)


def _as_text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
