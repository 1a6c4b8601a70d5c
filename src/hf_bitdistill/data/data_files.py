"""Local data files: which there are, what format they have, reading them, and saying what is wrong with one."""

from __future__ import annotations

import csv
import gzip
import json
import logging
import re
import zlib
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO, cast

from ..files.data_formats import FORMATS


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

logger = logging.getLogger(__name__)


# Characters of a row of a text file that is read as one document: what is in memory of it at once.
DOCUMENT_PIECE = 1 << 16

# Column of a text file's rows: whether the next row goes on with the same document.
CONTINUES = "continues_in_next_row"

# What stands in a cell of a CSV without a value. ("None", "NA" and "null", which pandas adds, can be classes, and texts.)
_MISSING = ["", "NaN", "nan", "-NaN", "-nan", "#N/A", "#NA", "<NA>", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"]

# What stands for a number that is missing, beside these.
_MISSING_NUMBERS = ["#N/A N/A", "N/A", "n/a", "NA", "NULL", "null", "None"]

# A byte order mark at the start of a file is no text.
_ENCODING = "utf-8-sig"


def file_builder(path: Path) -> str:
    """The name of the ``datasets`` builder for a file, by its ending.

    Raises:
        ValueError: If the ending is not one of :data:`FORMATS`.
    """
    for ending, builder in FORMATS.items():
        if path.name.endswith(ending):
            return builder
    raise ValueError(f"cannot tell the format of {path}; known endings are {', '.join(FORMATS)}")


def find_split_files(folder: Path, stems: Sequence[str]) -> list[Path]:
    """Files of a split in a folder: ``<stem><ending>``, or ``<stem>-00000-of-00002<ending>`` and its siblings.

    Args:
        folder: An existing folder.
        stems: Names to try, best first; the first that has files wins.

    Returns:
        Sorted paths.

    Raises:
        FileNotFoundError: If no stem has a file, or one of its siblings is missing; the message says what the folder holds.
    """
    names = sorted(path for path in folder.iterdir() if path.is_file())
    for stem in stems:
        whole = [folder / f"{stem}{ending}" for ending in FORMATS if (folder / f"{stem}{ending}").is_file()]
        if whole:
            return whole[:1]
        parts = {}
        for path in names:
            match = re.match(rf"{re.escape(stem)}-\d+-of-(\d+)", path.name)
            if match and path.name.endswith(tuple(FORMATS)):
                parts[path] = int(match[1])
        if parts:
            count = max(parts.values())
            if len(parts) != count:
                raise FileNotFoundError(
                    f"{folder} holds {len(parts)} of the {count} files of the split {stem!r}: {file_names(list(parts))}. Copy or download "
                    "the others, or remove what is not of this split"
                )
            return list(parts)
    found = ", ".join(path.name for path in names) or "no files"
    raise FileNotFoundError(f"{folder} has no file for the split {' or '.join(map(repr, stems))}; it holds {found}")


def file_names(files: Sequence[Path]) -> str:
    """At most three paths, and how many more there are, for a message."""
    shown = ", ".join(str(path) for path in files[:3])
    return shown if len(files) <= 3 else f"{shown} and {len(files) - 3} more"


def read_files(
    files: Sequence[Path], *, streaming: bool = False, sample_by: str | None = None
) -> Dataset | IterableDataset:
    """Reads local files of one format as one dataset.

    A byte order mark is not part of the text. Empty files among others are left out with a warning.

    Args:
        files: Paths of existing files with the same format.
        streaming: Whether to return an ``IterableDataset`` that reads while it is iterated, a shard a file.
        sample_by: What a row of a text file is: ``"line"``, ``"paragraph"``, or ``"document"`` (the whole file; a long one
            in several rows of which all but the last are true in the column :data:`CONTINUES`).

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If formats are mixed, everything is empty, or a file cannot be parsed (streaming: when it is reached); the
            message names the file, the row (counted from 0) where there is one, and the cause.
    """
    for path in files:
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
    builders = {file_builder(path) for path in files}
    if len(builders) != 1:
        raise ValueError(
            f"files of one split must have one format, not {', '.join(sorted(builders))}: {file_names(files)}"
        )
    builder = builders.pop()
    empty = [path for path in files if _is_empty(path)]
    if len(empty) == len(files):
        raise ValueError(f"{file_names(files)}: {'the file is' if len(files) == 1 else 'all files are'} empty")
    if empty:
        logger.warning("left out %d of %d files, which are empty: %s", len(empty), len(files), file_names(empty))
        files = [path for path in files if path not in empty]
    if builder == "text":
        return _read_texts(files, streaming, sample_by or "line")
    dataset = _load(builder, files, streaming)
    if not streaming:
        return dataset
    from datasets import IterableDataset

    arguments = {"files": [str(path) for path in files], "builder": builder}
    return IterableDataset.from_generator(_rows, features=dataset.features, gen_kwargs=arguments)


def _load(builder: str, files: Sequence[Path], streaming: bool) -> Dataset | IterableDataset:
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    try:
        names = [str(path) for path in files]
        options: dict[str, Any] = {}
        if builder == "csv":
            options = {"keep_default_na": False, "na_values": _MISSING}
            if ".tsv" in files[0].suffixes:
                options["sep"] = "\t"
                if any(map(_has_open_quotes, files)):
                    options["quoting"] = csv.QUOTE_NONE
        dataset = load_dataset(builder, data_files={"train": names}, split="train", streaming=streaming, **options)
        if not streaming and builder == "json":
            dataset.data.validate(full=True)  # arrow's reader of JSON takes any bytes for text
        return _whole_numbers(_numbers_with_gaps(dataset)) if builder == "csv" and not streaming else dataset
    except (DatasetGenerationError, EOFError, OSError, ValueError, zlib.error) as error:
        raise ValueError(_explain(files, error)) from error


def _numbers_with_gaps(dataset: Dataset) -> Dataset:
    """Makes columns numbers again that are text only because a missing number is written as a word."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from datasets import Value

    words, names = pa.array(_MISSING_NUMBERS), dataset.column_names
    for name in names:
        column = dataset.data.column(name)
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            continue
        missing = pc.is_in(column, value_set=words.cast(column.type))
        if not pc.any(missing).as_py() or pc.all(missing).as_py():
            continue
        try:
            numbers = pc.if_else(missing, None, column).cast(pa.float64())
        except pa.ArrowInvalid:
            continue  # they are words among words
        dataset = dataset.remove_columns(name).add_column(name, numbers.to_pylist(), feature=Value("float64"))
    return dataset if dataset.column_names == names else dataset.select_columns(names)


def _whole_numbers(dataset: Dataset) -> Dataset:
    """Makes columns integers again that pandas read as floating-point numbers only because a cell of them is empty."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from datasets import Value

    for name in dataset.column_names:
        column = dataset.data.column(name)
        if not pa.types.is_floating(column.type) or not 0 < column.null_count < len(column):
            continue
        if pc.all(pc.and_(pc.is_finite(column), pc.equal(column, pc.floor(column)))).as_py():
            dataset = dataset.cast_column(name, Value("int64"))
    return dataset


def _rows(files: list[str], builder: str) -> Iterator[dict[str, Any]]:
    """The rows of files one after the other; what cannot be read is named."""
    for name in files:
        path = Path(name)
        # .iter, and not plain iteration, which would divide the file among the workers of a DataLoader once more.
        batches = _load(builder, [path], True).iter(batch_size=64)
        while True:
            try:
                batch = next(batches, None)
            except (EOFError, OSError, ValueError, zlib.error) as error:  # (arrow's errors are ValueErrors)
                raise ValueError(_explain([path], error)) from error
            if batch is None:
                break
            yield from (dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True))


def _read_texts(files: Sequence[Path], streaming: bool, sample_by: str) -> Dataset | IterableDataset:
    from datasets import Dataset, Features, IterableDataset, Value
    from datasets.exceptions import DatasetGenerationError

    if sample_by not in _SAMPLES:
        raise ValueError(f"sample_by must be one of {', '.join(_SAMPLES)}, got {sample_by!r}")
    columns = {"text": Value("string")}
    if sample_by == "document":
        columns[CONTINUES] = Value("bool")
    arguments: dict[str, Any] = {"files": [str(path) for path in files], "sample_by": sample_by}
    if streaming:
        return IterableDataset.from_generator(_text_rows, features=Features(columns), gen_kwargs=arguments)
    # What a file is called says nothing about what is in it: the cache must not serve the text of yesterday.
    arguments["stamps"] = tuple((path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    arguments["files"] = tuple(arguments["files"])
    try:
        return Dataset.from_generator(_text_rows, features=Features(columns), gen_kwargs=arguments)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, ValueError):
            raise ValueError(str(error.__cause__)) from error
        raise


def _text_rows(
    files: Sequence[str], sample_by: str, stamps: Sequence[tuple[int, int]] = ()
) -> Iterator[dict[str, Any]]:
    for name in files:
        opener = gzip.open if name.endswith(".gz") else open
        try:
            with opener(name, "rt", encoding=_ENCODING) as file:
                yield from _SAMPLES[sample_by](file)
        except (EOFError, OSError, UnicodeDecodeError, zlib.error) as error:
            raise ValueError(_explain([Path(name)], error)) from error


def _lines(file: TextIO) -> Iterator[dict[str, Any]]:
    for line in file:
        yield {"text": line.removesuffix("\n")}


def _paragraphs(file: TextIO) -> Iterator[dict[str, Any]]:
    for is_text, group in groupby(file, key=lambda line: line != "\n"):
        if is_text:
            yield {"text": "".join(group).removesuffix("\n")}


def _document(file: TextIO) -> Iterator[dict[str, Any]]:
    piece = file.read(DOCUMENT_PIECE)
    while piece:
        following = file.read(DOCUMENT_PIECE)
        yield {"text": piece, CONTINUES: bool(following)}
        piece = following


# What a row of a text file is.
_SAMPLES = {"line": _lines, "paragraph": _paragraphs, "document": _document}


def _has_open_quotes(path: Path) -> bool:
    """Whether every line of a TSV file is a row by itself, and some quote in one stays open: then quotes are text."""
    tabs, is_open = None, False
    try:
        with _open(path) as file:
            for line in filter(bytes.strip, file):
                tabs = line.count(b"\t") if tabs is None else tabs
                if line.count(b"\t") != tabs:
                    return False
                is_open = is_open or line.count(b'"') % 2 == 1
    except (EOFError, OSError, zlib.error):
        return False  # (told when it is read)
    return is_open


# ---- What is wrong with a file ----


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if path.name.endswith(".gz") else path.open("rb")


def _is_empty(path: Path) -> bool:
    """Whether a file, or what a compressed one holds, has no byte besides a byte order mark."""
    try:
        with _open(path) as file:
            return file.read(4) in (b"", b"\xef\xbb\xbf")
    except (EOFError, OSError, zlib.error):
        # A damaged file is told when it is read. One of no length at all is no gzip file, but empty.
        return path.stat().st_size == 0


def _explain(files: Sequence[Path], error: BaseException) -> str:
    """One line: which of the files is damaged, where, and how; what was raised, if none is seen to be."""
    for path in files:
        problem = _diagnose(path)
        if problem is not None:
            return f"cannot read {path}: {problem}"
    cause = error.__cause__ or error.__context__ or error
    return f"cannot read {file_names(files)}: {cause}"


def _diagnose(path: Path) -> str | None:
    builder = file_builder(path)
    try:
        if builder == "arrow":
            return None
        return _diagnose_parquet(path) if builder == "parquet" else _diagnose_lines(path, is_json=builder == "json")
    except (EOFError, OSError, zlib.error) as error:
        return str(error)


def _diagnose_parquet(path: Path) -> str | None:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
    except ArrowException as error:
        return f"it is damaged or no Parquet file ({error})"
    with file:
        first = 0
        for group in range(file.num_row_groups):
            try:
                file.read_row_group(group)
            except (ArrowException, OSError) as error:
                return f"damaged in rows {first} to {first + file.metadata.row_group(group).num_rows - 1} ({error})"
            first += file.metadata.row_group(group).num_rows
    return None


def _diagnose_lines(path: Path, is_json: bool) -> str | None:
    with _open(path) as file:
        is_json = is_json and not file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(
            b"["
        )  # one list, not lines
        file.seek(0)
        for row, line in enumerate(file):
            try:
                text = line.decode(_ENCODING)
            except UnicodeDecodeError as error:
                return f"row {row} is not UTF-8 (byte {line[error.start]:#04x} at position {error.start} of the line)"
            if is_json and text.strip():
                try:
                    json.loads(text)
                except ValueError as error:
                    return f"row {row} is not JSON ({error})"
    return None
