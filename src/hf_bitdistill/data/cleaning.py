"""Rows of a user's own data that cannot be used: left out and counted by kind, and refused together where they are too many."""

from __future__ import annotations

import codecs
import gzip
import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files.data_formats import FORMATS
from .data_files import read_files
from .task_loading import select_columns, task_rows, written_labels
from .tasks import Task


if TYPE_CHECKING:
    from datasets import Dataset

#: Why a row is left out.
EMPTY = "empty text"
NO_LABEL = "without label"
OTHER_LABEL = "a label that is none of the task's"
NO_ANSWER = "without answer"
NOT_UTF8 = "not UTF-8"

#: The largest share of rows that may be left out.
MAX_LEFT_OUT = 0.1

# Stands for bytes that are no text: Unicode keeps this character free for a program's own use, it is part of no text.
_MARK = "\ufdd0"


def _mark(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)  # (the handler is used for reading alone)
    return _MARK, error.end


codecs.register_error("hf_bitdistill.mark", _mark)


def usable_rows(dataset: Dataset, task: Task, source: str = "the dataset") -> tuple[Dataset, Counter[str]]:
    """The rows of a dataset that a task can be learned from or measured on, in the task's form, and how many others there are.

    Args:
        dataset: With the task's columns, or aliases of them.
        source: Where it is from, for messages.

    Returns:
        ``(dataset, left_out)``: exactly ``task.columns``, texts that are not blank, labels as ids (int in ``[0, num_labels)``); and the
        number of rows left out by kind: :data:`EMPTY`, :data:`NO_LABEL` (also -1, a hidden one), :data:`OTHER_LABEL`,
        :data:`NO_ANSWER`. A row counts once, by the first that is true of it.

    Raises:
        ValueError: A column is missing or of another type, labels are floating-point numbers, or no row can be used.
    """
    import numpy as np
    import pyarrow as pa

    dataset = select_columns(dataset, task, source)
    reasons = np.full(len(dataset), "", dtype=object)

    def leave_out(where: Any, reason: str) -> None:
        where = where.combine_chunks() if isinstance(where, pa.ChunkedArray) else where
        reasons[np.asarray(where, dtype=bool) & (reasons == "")] = reason

    for name in task.text_fields:
        leave_out(_is_blank(dataset, name, source), EMPTY)
    if task.kind == "classification":
        for where, reason in _bad_labels(dataset, task, source):
            leave_out(where, reason)
    else:
        leave_out(_is_blank(dataset, task.target_field, source), NO_ANSWER)
    left_out = Counter(reasons[reasons != ""].tolist())
    if left_out.total() == len(dataset):
        raise ValueError(f"{source}: no row can be used: {describe(left_out) or 'there are no rows'}")
    if left_out:
        dataset = dataset.select(np.flatnonzero(reasons == ""))
    return task_rows(dataset, task, source), left_out


def usable_texts(dataset: Dataset, column: str, source: str = "the dataset") -> tuple[Dataset, Counter[str]]:
    """The rows of plain text that there is something to learn from or to measure in, and how many others there are.

    Returns:
        ``(dataset, left_out)``: the column alone, of rows that are not blank; and the number of the others (:data:`EMPTY`).

    Raises:
        ValueError: The column is missing or of another type, or no row can be used.
    """
    import numpy as np

    if column not in dataset.column_names:
        raise ValueError(f"{source} has no column {column!r}; it has {', '.join(dataset.column_names)}")
    dataset = dataset.select_columns([column])
    blank = np.asarray(_is_blank(dataset, column, source), dtype=bool)
    left_out = Counter({EMPTY: int(blank.sum())} if blank.any() else {})
    if left_out.total() == len(dataset):
        raise ValueError(f"{source}: no row can be used: {describe(left_out) or 'there are no rows'}")
    return (dataset.select(np.flatnonzero(~blank)) if left_out else dataset), left_out


def _is_blank(dataset: Dataset, name: str, source: str) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    column = dataset.with_format("arrow")[name][:]
    if pa.types.is_null(column.type):
        column = column.cast(pa.string())
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise ValueError(f"{source}: column {name!r} must hold text, it holds {column.type}")
    return pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), True)


def _bad_labels(dataset: Dataset, task: Task, source: str) -> list[tuple[Any, str]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    written = written_labels(dataset, task, source)
    if written is None:
        column = dataset.with_format("arrow")[task.target_field][:]
        if not pa.types.is_integer(column.type):
            raise ValueError(f"{source}: column {task.target_field!r} must hold integers, it holds {column.type}")
        missing = pc.fill_null(pc.equal(column, -1), True)
        other = pc.or_(pc.less(column, 0), pc.greater_equal(column, task.num_labels))
    else:
        texts, values = written
        hidden = pa.array([each for each in ("", "-1") if each not in values], pa.string())
        missing = pc.or_(pc.is_null(texts), pc.is_in(texts, value_set=hidden))
        other = pc.invert(pc.is_in(texts, value_set=pa.array(values)))
    return [(missing, NO_LABEL), (pc.fill_null(other, True), OTHER_LABEL)]


def describe(left_out: Mapping[str, int]) -> str:
    """Counts by kind in words, the largest first."""
    return ", ".join(f"{count:,} {kind}" for kind, count in Counter(left_out).most_common() if count)


def check_left_out(left_out: Mapping[str, int], total: int, source: str, limit: float = MAX_LEFT_OUT) -> None:
    """Refuses data of which too much is left out.

    Args:
        left_out: Rows by kind.
        total: Rows, the ones left out included.
        source: Where they are from, for messages.
        limit: The largest share.

    Raises:
        ValueError: The share is larger; says which kinds there are.
    """
    count = sum(left_out.values())
    if total and count > limit * total:
        raise ValueError(
            f"{source}: {count:,} of {total:,} rows ({count / total:.1%}) cannot be used: {describe(left_out)}. That is more than "
            f"max_left_out {100 * limit:g}%: mend the data, raise max_length for what is too long, or raise max_left_out"
        )


def read_usable(files: Sequence[Path], sample_by: str | None = None) -> tuple[Dataset, Counter[str]]:
    """Reads local files as :func:`read_files` does, but leaves out and counts rows with bytes that are not UTF-8.

    Raises:
        FileNotFoundError, ValueError: As :func:`read_files`, of anything else that is wrong.
    """
    try:
        return read_files(files, sample_by=sample_by), Counter()
    except ValueError:
        if not any(_has_other_bytes(path) for path in files):
            raise
    with tempfile.TemporaryDirectory() as folder:
        copies = []
        for number, path in enumerate(files):
            ending = next(ending for ending in FORMATS if path.name.endswith(ending)).removesuffix(".gz")
            # (A folder each, so that messages name the file.)
            copy = Path(folder) / str(number) / f"{path.name.removesuffix('.gz').removesuffix(ending)}{ending}"
            copy.parent.mkdir()
            with _open(path) as source, copy.open("w", encoding="utf-8", newline="") as target:
                decoder = codecs.getincrementaldecoder("utf-8")("hf_bitdistill.mark")
                while chunk := source.read(1 << 20):
                    target.write(decoder.decode(chunk))
                target.write(decoder.decode(b"", final=True))
            copies.append(copy)
        dataset = read_files(copies, sample_by=sample_by)
        kept = [at for at, row in enumerate(dataset) if _MARK not in json.dumps(row, ensure_ascii=False, default=str)]
        # In memory: the copies, and what was made of them, are gone afterwards.
        left_out = Counter({NOT_UTF8: len(dataset) - len(kept)})
        return dataset.select(kept).flatten_indices(keep_in_memory=True), left_out


def _open(path: Path) -> Any:
    return gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb")


def _has_other_bytes(path: Path) -> bool:
    if path.name.endswith((".parquet", ".arrow")):
        return False
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with _open(path) as file:
            while chunk := file.read(1 << 20):
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return True
    except (EOFError, OSError):
        return False
    return False
