"""The tables of a data view, as text and page show them alike."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import yaml

from ..cleaning import describe
from ..tasks import Task, task_values
from .look import DataView, SplitView


_PERCENTILES = (50, 90, 95, 99)
_BINS = 16

_KINDS = {
    "messages": "conversations",
    "prompt_completion": "prompts with completions",
    "text": "plain text",
}


def kind_of(view: DataView) -> str:
    recognized = view.recognized
    if recognized.task is not None:
        return f"{recognized.task.kind} ({'texts with a label' if recognized.task.label_words else 'texts with a written answer'})"
    return _KINDS[recognized.kind]


def how_to_override(view: DataView) -> str:
    if view.recognized.kind == "task":
        return "--text_columns, --label_column and --label_words, or --task FILE.yaml with a prompt of your own"
    return "--text_columns and --label_column for a classification, or --task FILE.yaml with a prompt of your own"


def recognized_rows(view: DataView) -> list[list[str]]:
    """`[what, value]`: what the data were taken for."""
    recognized, task = view.recognized, view.recognized.task
    rows = [["kind", kind_of(view)], ["columns", ", ".join(recognized.columns)]]
    if task is not None:
        rows += [["prompt", task.prompt], ["answer", f"column {task.target_field}"]]
        if task.label_words:
            values = task.label_values or [str(number) for number in range(task.num_labels)]
            pairs = (f"{value} -> {word}" for value, word in zip(values, task.label_words, strict=True))
            rows.append(["labels", ", ".join(pairs)])
        rows.append(["metric", task.metric])
    if recognized.kind == "messages":
        turns = "all of the assistant's turns" if view.turns == "all" else "the assistant's last turn"
        rows.append(["trained on", f"{turns} (--turns)"])
    if recognized.kind == "prompt_completion":
        rows.append(["trained on", "the completion"])
    unit = "tokens of a block" if recognized.kind == "text" else "tokens of an example"
    rows.append(["max_length", f"{view.max_length} {unit}, {view.max_length_from} (--max_length)"])
    rows += [["note", note] for note in recognized.notes]
    rows.append(["to override", how_to_override(view)])
    return rows


def split_rows(view: DataView) -> list[list[str]]:
    """`[split, rows, looked at, used, shortened, left out]`."""
    rows = []
    for split in view.splits:
        used = split.looked_at - split.left_out.total()
        looked = "all" if split.looked_at == split.rows else f"{split.looked_at:,}"
        why = describe(split.left_out)
        rows.append([split.name, f"{split.rows:,}", looked, f"{used:,}", f"{split.shortened:,}", why or "none"])
    return rows


SPLIT_HEADER = ["split", "rows", "looked at", "used", "shortened", "left out"]


def held_out_text(view: DataView) -> str:
    if not view.held_out_from_train:
        return ""
    return "There is no validation split: its rows were held out of the training rows by a fixed seed (--seed)."


def percentile(lengths: Sequence[int], share: float) -> int:
    """The smallest length that so many per cent of the rows do not exceed."""
    ordered = sorted(lengths)
    return ordered[max(0, math.ceil(share / 100 * len(ordered)) - 1)]


LENGTH_HEADER = ["split", "mean", *(f"{share} %" for share in _PERCENTILES), "longest", "tokens in all"]


def length_rows(view: DataView) -> list[list[str]]:
    rows = []
    for split in filter(lambda split: split.lengths, view.splits):
        lengths = split.lengths
        values = [percentile(lengths, share) for share in _PERCENTILES]
        mean = f"{sum(lengths) / len(lengths):,.0f}"
        rows.append([split.name, mean, *(f"{v:,}" for v in values), f"{max(lengths):,}", f"{sum(lengths):,}"])
    return rows


CUT_HEADER = ["--max_length", "rows longer", "of all", "tokens beyond it"]


def cut_rows(view: DataView) -> list[list[str]]:
    """What other limits would cut of the training rows; none for plain text, which is packed."""
    lengths = view.splits[0].lengths
    if view.recognized.kind == "text" or not lengths:
        return []
    powers = [2**power for power in range(4, 31) if percentile(lengths, 50) // 2 < 2**power < max(lengths)]
    rows = []
    for limit in sorted({*powers[:8], view.max_length}):
        over = [length - limit for length in lengths if length > limit]
        mark = " (now)" if limit == view.max_length else ""
        beyond = sum(over) / sum(lengths)
        rows.append([f"{limit:,}{mark}", f"{len(over):,}", f"{len(over) / len(lengths):.1%}", f"{beyond:.1%}"])
    return rows


def histogram(lengths: Sequence[int]) -> list[tuple[int, int, int]]:
    """`(first length, last length, rows)` of bins of equal width from the shortest to the longest."""
    low, high = min(lengths), max(lengths)
    width = max(1, math.ceil((high - low + 1) / _BINS))
    counts = [0] * (1 + (high - low) // width)
    for length in lengths:
        counts[(length - low) // width] += 1
    return [(low + number * width, low + (number + 1) * width - 1, count) for number, count in enumerate(counts)]


LABEL_HEADER = ["split", "label", "rows", "share"]


def label_rows(view: DataView) -> list[list[str]]:
    rows = []
    for split in view.splits:
        total = split.labels.total()
        for word, count in split.labels.items():
            rows.append([split.name, word, f"{count:,}", f"{count / max(total, 1):.1%}"])
    return rows


def duplicate_text(view: DataView) -> str:
    found, rows = view.duplicates, view.splits[1].rows
    share = found.shared / max(rows, 1)
    text = f"{found.shared:,} of {rows:,} validation rows ({share:.1%}) are among the training rows too"
    if found.shared and view.recognized.kind in ("task", "prompt_completion"):
        text += f", {found.shared_answer:,} of them with the same answer"
    if found.shared:
        text += ": what is measured on them is remembered, not learned"
    return f"{text}. {found.within_train:,} training rows repeat an earlier one."


def task_file(task: Task) -> str:
    """A task as a file for `--task`, to be changed."""
    values = task_values(task)
    values.pop("name")
    # (A JSON string is YAML, and keeps a prompt of several lines readable.)
    prompt = f"prompt: {json.dumps(values.pop('prompt'), ensure_ascii=False)}\n"
    return prompt + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def lengths_of(view: DataView) -> SplitView | None:
    """The split whose lengths are drawn: the training rows."""
    return next((split for split in view.splits if split.lengths), None)
