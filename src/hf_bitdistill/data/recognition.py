"""What kind of examples a dataset holds, told by its columns, in the conventions of the ecosystem."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .task_loading import refuse_regression
from .tasks import Task


if TYPE_CHECKING:
    from datasets import Dataset

Kind = Literal["messages", "prompt_completion", "task", "text"]

# Names of a column, best first.
_LABELS = ("label", "labels", "class", "target")
_PAIRS = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text1", "text2"),
    ("text_a", "text_b"),
)
_TEXTS = ("text", "sentence", "content", "review", "document")

# More different values than this in a label column are no classes; more different whole numbers than this, unless they count up from 0 or 1
# as numbers of classes do, are a quantity.
_MOST_CLASSES, _MOST_NUMBERS = 256, 20


@dataclass(frozen=True)
class Recognized:
    """What a dataset holds.

    Attributes:
        kind: ``"messages"`` (conversations), ``"prompt_completion"``, ``"task"`` (a prompt with a label or a text as its answer) or
            ``"text"`` (plain text).
        columns: The columns that are read, in the order of the kind's name.
        task: Of the kind ``"task"``.
        notes: What a user should know of it.
    """

    kind: Kind
    columns: tuple[str, ...]
    task: Task | None = None
    notes: tuple[str, ...] = ()


def recognize(
    dataset: Dataset,
    source: str,
    *,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    label_words: Sequence[str] | None = None,
) -> Recognized:
    """Tells the kind of a dataset by its columns.

    In this order: ``messages`` (or ``conversations``), ``prompt`` and ``completion``, a label beside one text or a known pair of texts,
    ``text`` alone.

    Args:
        dataset: A map-style dataset.
        source: Where it is from, for messages; its end names the task.
        text_columns: The columns with the texts of a prompt, whatever they are called.
        label_column: The column with the label, whatever it is called.
        label_words: The answer of each class, in the order of ``ClassLabel`` or of the sorted values. Default: the names or values.

    Raises:
        ValueError: A named column is missing, the labels are no classes (a regression, say), or the columns say nothing; says what to do.
    """
    present = list(dataset.column_names)
    for name in [*(text_columns or ()), *([label_column] if label_column else [])]:
        if name not in present:
            raise ValueError(f"{source} has no column {name!r}; it has {', '.join(present)}")
    if text_columns is None and label_column is None:
        columns = conversation_columns(present)
        if columns is not None:
            if label_words:
                raise ValueError(
                    f"{source}: there are words for classes, and the columns are those of {' and '.join(columns)}: name the text columns and "
                    "the label column, or leave the words out"
                )
            return Recognized("messages" if len(columns) == 1 else "prompt_completion", columns)
    label = label_column or next((name for name in _LABELS if name in present), None)
    texts = tuple(text_columns or _text_columns(dataset, label))
    if label is not None and texts:
        task = _classification(dataset, source, texts, label, label_words)
        return Recognized("task", (*texts, label), task, () if label_words else _notes(task))
    if texts and label is None:
        if label_words or len(text_columns or ()) > 1:
            what = "words for classes" if label_words else "several texts"
            raise ValueError(
                f"{source}: there are {what}, and no column with a label among {', '.join(present)}: name it (the label column)"
            )
        others = [name for name in present if name not in texts]
        note = f"taken for plain text; {', '.join(others)} not read (--label_column NAME makes it a classification)"
        return Recognized("text", texts[:1], notes=(note,) if others else ())
    raise ValueError(
        f"{source}: the columns {', '.join(present)} do not say what is the prompt and what the answer. Name them (text columns and the "
        "label column), or write a task file with a prompt"
    )


def conversation_columns(present: Sequence[str]) -> tuple[str, ...] | None:
    """The column of conversations, or those of prompts and completions; ``None`` where there are neither."""
    for name in ("messages", "conversations"):
        if name in present:
            return (name,)
    return ("prompt", "completion") if {"prompt", "completion"} <= set(present) else None


def _text_columns(dataset: Dataset, label: str | None) -> Sequence[str]:
    from datasets import Value

    strings = [
        name
        for name, kind in dataset.features.items()
        if name != label and isinstance(kind, Value) and kind.dtype in ("string", "large_string")
    ]
    pair = next((pair for pair in _PAIRS if set(pair) <= set(strings)), None)
    if pair is not None and label is not None:
        return pair
    known = [name for name in _TEXTS if name in strings]
    if known:
        return known[:1]
    # With a label the only text there is must be it.
    return strings if len(strings) == 1 and label is not None else ()


def _classification(
    dataset: Dataset, source: str, texts: Sequence[str], label: str, words: Sequence[str] | None
) -> Task:
    values, names = _classes(dataset, source, label)
    if words is not None:
        if len(words) != len(names):
            raise ValueError(
                f"{source}: {len(words)} label words for {len(names)} classes in column {label!r}: {', '.join(names)}"
            )
        names = list(words)
    elif values:
        _refuse_quantity(values, source, label)
    title = [name.replace("_", " ").capitalize() for name in texts]
    body = "\n".join(f"{each}: {{{name}}}" for each, name in zip(title, texts, strict=True))
    choices = f"{', '.join(names[:-1])} or {names[-1]}".replace("{", "{{").replace("}", "}}")
    return Task(
        name=_task_name(source),
        prompt=f"{body}\n{label.replace('_', ' ').capitalize()} ({choices}):",
        target_field=label,
        label_words=tuple(names),
        label_values=tuple(values),
    )


def _notes(task: Task) -> tuple[str, ...]:
    if not all(map(_is_number, task.label_words)):
        return ()
    words = ", ".join(task.label_words[:5]) + (", ..." if task.num_labels > 5 else "")
    return (
        f"the answers are the numbers {words}, which tell a model nothing of the classes: --label_words gives them names, in this order",
    )


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _task_name(source: str) -> str:
    end = source.rstrip("/\\").replace("\\", "/").rpartition("/")[2]
    return end.partition(".")[0] or end


def _classes(dataset: Dataset, source: str, label: str) -> tuple[list[str], list[str]]:
    """Values of the label column as text (none for a ``ClassLabel``), and a name for each."""
    import pyarrow as pa
    from datasets import ClassLabel

    feature: Any = dataset.features[label]
    if isinstance(feature, ClassLabel):
        return [], [name.replace("_", " ") for name in feature.names]
    column = dataset.with_format("arrow")[label][:]
    refuse_regression(column.type, label, source)
    if not (
        pa.types.is_integer(column.type) or pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    ):
        raise ValueError(f"{source}: column {label!r} holds {column.type}, which is no label")
    values = sorted(value for value in column.unique().to_pylist() if value not in (None, ""))
    if pa.types.is_integer(column.type) and values and values[0] < 0 and set(values) == {-1}:
        raise ValueError(f"{source}: all labels are hidden (-1): nothing can be trained or measured on them")
    if len(values) < 2:
        raise ValueError(f"{source}: column {label!r} has {len(values)} different values; two classes are needed")
    if len(values) > _MOST_CLASSES or len(values) * 2 > len(column):
        raise ValueError(
            f"{source}: column {label!r} has {len(values)} different values in {len(column)} rows: it holds quantities or texts, not "
            "classes. For a text that the model should write, use the columns prompt and completion, or a task file"
        )
    names = [str(value) for value in values]
    return names, list(names)


def _refuse_quantity(values: Sequence[str], source: str, label: str) -> None:
    """Refuses numbers that measure something.

    Args:
        values: All that stands in the column, as text.

    Raises:
        ValueError: Fractions, or many whole numbers with gaps.
    """
    if not all(map(_is_number, values)):
        return
    numbers = sorted(map(float, values))
    whole = all(number.is_integer() for number in numbers)
    if whole and (
        len(numbers) <= _MOST_NUMBERS or (numbers[-1] - numbers[0] + 1 == len(numbers) and numbers[0] in (0, 1))
    ):
        return
    raise ValueError(
        f"{source}: column {label!r} holds {len(numbers)} different numbers from {numbers[0]:g} to {numbers[-1]:g}: a quantity and no class, "
        "and regression is not supported. Put them into classes; if they are classes, give the answer of each (--label_words, or a task file)"
    )
