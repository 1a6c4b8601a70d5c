"""Reads a task's examples, from the Hub by the dataset's usual name or from local files."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .data_files import file_names, find_split_files, read_files
from .tasks import Task, get_task


if TYPE_CHECKING:
    from datasets import Dataset


def load_task_dataset(
    task: str | Task,
    split: str = "train",
    *,
    data_dir: str | PathLike | None = None,
    data_files: str | PathLike | Sequence[str | PathLike] | None = None,
    max_samples: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Loads one split of a task with the task's columns, checked.

    Args:
        task: A task or its name.
        split: ``"train"``, ``"validation"`` or ``"test"``, or the dataset's own name of a split (such as
            ``"validation_mismatched"``); with ``data_dir`` the stem of any file in it.
        data_dir: A folder with files such as ``train.jsonl.gz`` and ``validation.parquet`` (MNLI:
            ``validation_matched``), or a folder that has such a folder under the task's name. None: the Hub.
        data_files: The file or files of this split (jsonl, json, csv, each also gzipped, or parquet), instead of
            ``data_dir``.
        max_samples: Take a random subset of at most this many examples. None: all, in their order.
        seed: Chooses the subset. The same seed gives the same examples.

    Returns:
        A map-style dataset with exactly ``task.columns``; texts are str, labels are int in ``[0, num_labels)``.

    Raises:
        FileNotFoundError: A path is missing, or the folder has no file for the split.
        ValueError: Unreadable file, unknown label, missing column, empty (null) cell, label outside the task's range or hidden
            (GLUE's test sets): each names the file, the column and, where there is one, the row (counted from 0).
        ConnectionError: The Hub cannot be reached.
    """
    task = get_task(task)
    if data_dir is not None and data_files is not None:
        raise ValueError("give data_dir or data_files, not both")
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"max_samples must be at least 1, got {max_samples}")
    own_split = task.splits.get(split, split)
    if data_files is not None:
        paths = [data_files] if isinstance(data_files, (str, PathLike)) else list(data_files)
        files = [Path(path) for path in paths]
    elif data_dir is not None:
        files = _files_of_split(task, Path(data_dir), (own_split, split))
    else:
        files = []
    if own_split in task.hidden_label_splits and not files:
        raise ValueError(_hidden_labels(task, f"the split {own_split!r}"))

    dataset = read_files(files) if files else _load_from_hub(task, own_split)
    source = file_names(files) if files else f"{task.hub_id} ({own_split})"
    dataset = task_rows(dataset, task, source)
    if max_samples is not None and max_samples < len(dataset):
        dataset = dataset.shuffle(seed=seed).select(range(max_samples))
    return dataset


def task_rows(dataset: Dataset, task: Task, source: str) -> Dataset:
    """The rows of a dataset in the form of a task: its columns alone, labels as ids, every cell checked.

    Args:
        source: Where the rows are from, for messages.

    Raises:
        ValueError: As in :func:`load_task_dataset`.
    """
    dataset = _label_ids(select_columns(dataset, task, source), task, source)
    _check_cells(dataset, task, source)
    return dataset


def _files_of_split(task: Task, folder: Path, stems: Sequence[str]) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    # A folder that holds one folder per task is accepted too, so that one path serves all tasks.
    nested = folder / task.name
    return find_split_files(nested if nested.is_dir() else folder, list(dict.fromkeys(stems)))


def _load_from_hub(task: Task, split: str) -> Dataset:
    from datasets import load_dataset

    if not task.hub_id:
        raise ValueError(f"task {task.name} names no dataset of the Hub: give data_dir or data_files")
    try:
        return load_dataset(task.hub_id, task.hub_config, split=split)
    except (ConnectionError, FileNotFoundError) as error:
        # Offline, datasets reports either of the two, depending on what its cache holds.
        raise ConnectionError(
            f"cannot load {task.hub_id} ({split}) from the Hub: {error}. For local files give data_dir or data_files."
        ) from error


def select_columns(dataset: Dataset, task: Task, source: str) -> Dataset:
    """A task's columns alone, under the task's names for them.

    Raises:
        ValueError: One is missing.
    """
    present = dataset.column_names
    renames = {}
    for name in task.columns:
        if name in present:
            continue
        alias = next((alias for alias in task.field_aliases.get(name, ()) if alias in present), None)
        if alias is None:
            raise ValueError(f"{source}: the column {name!r} of task {task.name} is missing; it has {present}")
        renames[alias] = name
    if renames:
        dataset = dataset.rename_columns(renames)
    return _ids_of_the_task(dataset.select_columns(list(task.columns)), task)


def _ids_of_the_task(dataset: Dataset, task: Task) -> Dataset:
    """The ids of a ``ClassLabel`` as the task counts them, where all its names are words of the task: splits that were encoded one by one
    count otherwise."""
    from datasets import ClassLabel

    name = task.target_field
    feature: Any = dataset.features[name]
    if task.kind != "classification" or task.label_values or not isinstance(feature, ClassLabel):
        return dataset
    words, names = ([each.replace("_", " ") for each in all_of] for all_of in (task.label_words, feature.names))
    if not set(names) <= set(words) or names == words[: len(names)]:
        return dataset
    ids = [words.index(each) for each in names]
    values = [ids[value] if value is not None and value >= 0 else value for value in dataset[name]]
    return dataset.remove_columns(name).add_column(name, values)


def refuse_regression(kind: Any, column: str, source: str) -> None:
    """Refuses a label column of floating-point numbers.

    Args:
        kind: The column's Arrow type.

    Raises:
        ValueError: It holds floating-point numbers.
    """
    import pyarrow as pa

    if pa.types.is_floating(kind):
        raise ValueError(
            f"{source}: column {column!r} holds floating-point numbers, and a number is no class: regression is not supported. Put the "
            "numbers into classes and give these names"
        )


def written_labels(dataset: Dataset, task: Task, source: str) -> tuple[Any, tuple[str, ...]] | None:
    """The label column of a task as text, and what can stand in it, in the order of the label ids; `None` if it holds the ids.

    Raises:
        ValueError: It holds floating-point numbers.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    column = dataset.with_format("arrow")[task.target_field][:]
    refuse_regression(column.type, task.target_field, source)
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    if not task.label_values and not is_text:
        return None
    values = task.label_values or task.label_words
    if pa.types.is_boolean(column.type):
        # A file may spell them in capitals, which a reader of CSV takes for truth values all the same.
        spelled = {value.lower(): value for value in values}
        yes, no = (pa.scalar(spelled.get(word, word)) for word in ("true", "false"))
        return pc.if_else(column, yes, no), values
    return column.cast(pa.string()), values


def _label_ids(dataset: Dataset, task: Task, source: str) -> Dataset:
    """Replaces labels that are written out by their ids."""
    import pyarrow as pa
    import pyarrow.compute as pc

    name = task.target_field
    if task.kind != "classification" or len(dataset) == 0:
        return dataset
    written = written_labels(dataset, task, source)
    if written is None:
        return dataset  # they are the ids
    texts, values = written
    ids = pc.index_in(texts, value_set=pa.array(values))
    unknown = pc.and_(pc.is_null(ids), pc.is_valid(texts))
    if pc.any(unknown).as_py():
        row = pc.index(unknown, True).as_py()
        raise ValueError(
            f"{source}: row {row} has the label {texts[row].as_py()!r} in column {name!r}; task {task.name} knows {', '.join(values)}"
        )
    return dataset.remove_columns(name).add_column(name, ids.to_pylist())


def _check_cells(dataset: Dataset, task: Task, source: str) -> None:
    """Checks every cell column by column in Arrow, which reads 300,000 long articles in a moment."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if len(dataset) == 0:
        raise ValueError(f"{source}: there are no examples")
    for name in task.columns:
        # (Of the rows selected: ``dataset.data`` has all that were read.)
        column = dataset.with_format("arrow")[name][:]
        if column.null_count:
            row = pc.index(pc.is_null(column), True).as_py()
            raise ValueError(f"{source}: row {row} has no value in column {name!r}")
        if name == task.target_field and task.kind == "classification":
            if not pa.types.is_integer(column.type):
                raise ValueError(f"{source}: column {name!r} must hold integers, it holds {column.type}")
            bad = pc.or_(pc.less(column, 0), pc.greater_equal(column, task.num_labels))
            if pc.any(bad).as_py():
                if pc.all(pc.equal(column, -1)).as_py():
                    raise ValueError(f"{source}: {_hidden_labels(task, 'this split')}")
                row = pc.index(bad, True).as_py()
                raise ValueError(
                    f"{source}: row {row} has the label {column[row].as_py()}; "
                    f"task {task.name} has labels 0 to {task.num_labels - 1}"
                )
        elif not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            raise ValueError(f"{source}: column {name!r} must hold text, it holds {column.type}")


def _hidden_labels(task: Task, split: str) -> str:
    return (
        f"all labels of {split} of task {task.name} are hidden (-1), so nothing can be trained or measured on it; "
        "use the split 'validation'"
    )
