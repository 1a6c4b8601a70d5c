"""What kind of examples a dataset holds, told by its columns, in the conventions of the ecosystem."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .task_loading import refuse_regression
from .tasks import TASKS, Task


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
    config_name: str | None = None,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    label_words: Sequence[str] | None = None,
) -> Recognized:
    """Tells the kind of a dataset by its columns.

    In this order: the data of a built-in task (told by the name too, where nothing is said of columns and words), ``messages`` (or
    ``conversations``), ``prompt`` and ``completion``, a label beside one text or a known pair of texts, ``text`` alone.

    Args:
        dataset: A map-style dataset.
        source: Where it is from, for messages; its end names the task.
        config_name: Configuration of a dataset on the Hub.
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
    if not (text_columns or label_column or label_words):
        builtin = _builtin(present, source, config_name)
        if builtin is not None:
            return Recognized("task", builtin.columns, builtin)
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


def _builtin(present: Sequence[str], source: str, config_name: str | None) -> Task | None:
    """The built-in task of that name, if the columns are its own: its prompt says more than the names of columns."""
    by_hub = {(task.hub_id, task.hub_config): task for task in TASKS.values()}
    task = by_hub.get((source, config_name)) or TASKS.get(Path(source).name)
    if task is None:
        return None
    known = ({name, *task.field_aliases.get(name, ())} for name in task.columns)
    return task if all(names & set(present) for names in known) else None


def check_read(kind: Kind, source: str, turns: str, use_chat_template: bool = False) -> None:
    """Refuses options of one kind of data that data of another kind do not read.

    Args:
        turns: Of conversations: which of the assistant's are learned; ``"all"`` says nothing.
        use_chat_template: Of a task.

    Raises:
        ValueError: Names the option.
    """
    what = {
        "messages": "conversations, which are always in the chat template",
        "prompt_completion": "prompts with completions",
        "task": "texts of a task with their answers",
        "text": "plain text",
    }[kind]
    if turns != "all" and kind != "messages":
        raise ValueError(
            f"turns {turns!r} is read of conversations alone (a column messages), and {source} holds {what}: leave turns out"
        )
    if use_chat_template and kind != "task":
        raise ValueError(
            f"use_chat_template is read of a task alone, and {source} holds {what}: leave use_chat_template out"
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
    is_whole = pa.types.is_integer(column.type)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.string())
    elif not (is_whole or pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise ValueError(
            f"{source}: column {label!r} holds {column.type}, which is no label: a label is a word, a whole number, or true and false. Name "
            "another column (the label column)"
        )
    values = sorted(value for value in column.unique().to_pylist() if value not in (None, ""))
    if is_whole and set(values) == {-1}:
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
