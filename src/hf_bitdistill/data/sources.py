"""A dataset from wherever it is: the Hub, a file, a folder of files, or a folder that ``save_to_disk`` wrote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from ..files.data_formats import FORMATS, looks_like_path
from .cleaning import describe, read_usable
from .data_files import find_split_files, read_files


if TYPE_CHECKING:
    from datasets import Dataset

# What a split is called elsewhere, best first.
_OTHER_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "validation_matched", "valid", "val", "dev", "eval", "test"),
}

# Share of the training rows, and most of them, that stand in for a split to measure on.
_HELD_OUT, _MAX_HELD_OUT = 0.1, 2000

#: What a row of a text file is, unless something else is asked for.
ROW_OF_TEXT = "paragraph"

# What `save_to_disk` writes for a dataset and for several splits.
_SAVED = "state.json"
_SAVED_SPLITS = "dataset_dict.json"


@dataclass(frozen=True)
class Examples:
    """Rows to train on and rows to measure on.

    Attributes:
        source: Where they are from, for messages and reports.
        train: Rows to train on.
        validation: Rows to measure on; never trained on.
        held_out_from_train: Whether there was no such split, so that a part of the training rows was taken away for it.
        left_out: Rows that could not even be read, by kind: of the training split (and what was held out of it), and of the other one.
        config_name: Configuration of a dataset on the Hub that was asked for.
        validation_split: What the split to measure on is called; None: there is none.
    """

    source: str
    train: Dataset
    validation: Dataset
    held_out_from_train: bool
    left_out: tuple[Counter[str], Counter[str]] = field(default_factory=lambda: (Counter(), Counter()))
    config_name: str | None = None
    validation_split: str | None = None


@dataclass(frozen=True)
class RowsToMeasure:
    """Rows to measure on alone.

    Attributes:
        rows: Those that :class:`Examples` has as ``validation``.
        whole: All rows that they were taken away from, where there was no split to measure on; otherwise None.
        left_out: Rows that could not even be read, by kind, of the split that ``rows`` are of.
    """

    rows: Dataset
    whole: Dataset | None
    left_out: Counter[str]


def load_examples(
    path_or_hub_id: str | PathLike,
    *,
    config_name: str | None = None,
    revision: str | None = None,
    train_split: str | None = None,
    validation_split: str | None = None,
    held_out: float = _HELD_OUT,
    max_held_out: int = _MAX_HELD_OUT,
    seed: int = 0,
    sample_by: str = ROW_OF_TEXT,
    skip_undecodable: bool = False,
) -> Examples:
    """Loads the two splits of a dataset.

    Args:
        path_or_hub_id: A file (csv, tsv, json, jsonl, txt, each also gzipped; parquet, arrow), a folder with files named by split, a
            folder that ``save_to_disk`` wrote, or a dataset id.
        config_name, revision: Of a dataset on the Hub; refused for anything else.
        train_split: Default: ``train``; of a single file, all of it.
        validation_split: Default: ``validation``, or what it is usually called instead, ``test`` last; never ``train_split``.
        held_out: Without a split to measure on, this share of the training rows is taken away for it, at most ``max_held_out`` rows.
        seed: Chooses these rows. The same seed takes the same ones.
        sample_by: What a row of a text file is: ``"paragraph"`` (default), ``"line"`` or ``"document"``.
        skip_undecodable: Leave out, and count, rows of local files with bytes that are not UTF-8, instead of refusing the file.

    Raises:
        FileNotFoundError: The path or a named split is missing; says what there is.
        ValueError: A file is damaged or of unknown format, there are fewer than two rows, or a local path was given a configuration or a
            revision.
        ConnectionError: The Hub cannot be reached, or has no such dataset.
    """
    source = str(path_or_hub_id)
    splits = _Splits.open(path_or_hub_id, config_name, revision, sample_by, skip_undecodable)
    train = splits.load("train", train_split)
    if train is None:
        raise FileNotFoundError(f"{source} has no split {train_split or 'train'!r}; it has {splits.names()}")
    validation = splits.load("validation", validation_split, without=train_split)
    if validation is None and validation_split is not None:
        raise FileNotFoundError(f"{source} has no split {validation_split!r}; it has {splits.names()}")
    left_out = (splits.left_out["train"], splits.left_out["validation"])
    if validation is not None:
        return Examples(source, train, validation, False, left_out, config_name, splits.found["validation"])
    train, held = _hold_out(train, source, held_out, max_held_out, seed, left_out[0])
    return Examples(source, train, held, True, left_out, config_name)


def load_rows_to_measure(
    path_or_hub_id: str | PathLike,
    *,
    config_name: str | None = None,
    revision: str | None = None,
    train_split: str | None = None,
    split: str | None = None,
    held_out: float = _HELD_OUT,
    max_held_out: int = _MAX_HELD_OUT,
    seed: int = 0,
    skip_undecodable: bool = False,
) -> RowsToMeasure:
    """The rows that :func:`load_examples`, given the same arguments, has to measure on, without those to train on.

    Raises:
        As :func:`load_examples`.
    """
    source = str(path_or_hub_id)
    splits = _Splits.open(path_or_hub_id, config_name, revision, ROW_OF_TEXT, skip_undecodable)
    rows = splits.load("validation", split, without=train_split)
    if rows is not None:
        return RowsToMeasure(rows, None, splits.left_out["validation"])
    whole = splits.load("train", train_split) if split is None else None
    if whole is None:
        raise FileNotFoundError(f"{source} has no split {split or 'validation'!r}; it has {splits.names()}")
    left_out = splits.left_out["train"]
    return RowsToMeasure(_hold_out(whole, source, held_out, max_held_out, seed, left_out)[1], whole, left_out)


def _check_local(path: Path, config_name: str | None, revision: str | None) -> None:
    """Refuses what only a dataset on the Hub has, where there is a file or a folder of that name.

    Raises:
        ValueError: Names it.
    """
    said = [f"{what} {value!r}" for what, value in (("configuration", config_name), ("revision", revision)) if value]
    if said and path.exists():
        raise ValueError(
            f"{path} is a local path, and the {' and the '.join(said)} could only be of a dataset on the Hub: leave it out, or give that "
            "dataset's id"
        )


def _hold_out(
    train: Dataset, source: str, share: float, most: int, seed: int, left_out: Counter[str]
) -> tuple[Dataset, Dataset]:
    """Training rows, and the part of them to measure on."""
    if len(train) < 2:
        unread = f" besides {describe(left_out)}" if left_out.total() else ""
        of_text = (
            "; of a .txt file a row is a paragraph, and empty lines part them"
            if train.column_names == ["text"]
            else ""
        )
        raise ValueError(f"{source} has {len(train)} rows{unread}: too few to train and to measure{of_text}")
    count = min(max(1, round(share * len(train))), most)
    parts = train.train_test_split(test_size=count, seed=seed, shuffle=True)
    return parts["train"], parts["test"]


class _Splits:
    """The splits of one source, each loaded when it is asked for."""

    def __init__(self, names: list[str], load):
        self._names, self._load = names, load
        self.left_out: dict[str, Counter[str]] = {kind: Counter() for kind in _OTHER_NAMES}
        self.found: dict[str, str] = {}

    def names(self) -> str:
        return ", ".join(self._names) or "none"

    def load(self, kind: str, name: str | None, without: str | None = None) -> Dataset | None:
        """The split of a name, or the first of the usual ones but `without`: rows that are trained on are measured on only where that is
        asked for by name."""
        wanted = (name,) if name is not None else tuple(each for each in _OTHER_NAMES[kind] if each != without)
        found = next((each for each in wanted if each in self._names), None)
        if found is None:
            return None
        self.found[kind] = found
        loaded = self._load(found)
        if isinstance(loaded, tuple):
            loaded, self.left_out[kind] = loaded
        return loaded

    @classmethod
    def open(
        cls,
        path_or_hub_id: str | PathLike,
        config_name: str | None,
        revision: str | None,
        sample_by: str,
        skip_undecodable: bool,
    ) -> _Splits:
        path = Path(path_or_hub_id).expanduser()
        _check_local(path, config_name, revision)

        def read(files: Sequence[Path]) -> tuple[Dataset, Counter[str]]:
            return (
                read_usable(files, sample_by)
                if skip_undecodable
                else (read_files(files, sample_by=sample_by), Counter())
            )

        if path.is_file():
            return cls(["train"], lambda name: read([path]))
        if path.is_dir():
            return cls._of_folder(path, read)
        if looks_like_path(str(path_or_hub_id)):
            raise FileNotFoundError(f"there is no file or folder {path_or_hub_id}")
        return cls._of_hub(str(path_or_hub_id), config_name, revision)

    @classmethod
    def _of_folder(cls, folder: Path, read: Callable[[Sequence[Path]], tuple[Dataset, Counter[str]]]) -> _Splits:
        from datasets import load_from_disk

        if (folder / _SAVED_SPLITS).is_file() or (folder / _SAVED).is_file():
            try:
                saved = load_from_disk(str(folder))
            except (OSError, ValueError, KeyError) as error:
                raise ValueError(f"cannot read {folder}: {error}") from error
            splits = saved if isinstance(saved, Mapping) else {"train": saved}
            return cls(list(splits), splits.__getitem__)
        stems: dict[str, None] = {}
        for file in sorted(folder.iterdir()):
            ending = next((ending for ending in FORMATS if file.name.endswith(ending)), None)
            if ending is not None and file.is_file():
                stem = file.name.removesuffix(ending)
                stems[stem.rsplit("-", 3)[0] if "-of-" in stem else stem] = None
        if not stems:
            raise FileNotFoundError(f"{folder} holds no data files ({', '.join(FORMATS)})")
        if len(stems) == 1:  # one file (or its shards), whatever it is called
            only = next(iter(stems))
            return cls(["train"], lambda name: read(find_split_files(folder, [only])))
        return cls(list(stems), lambda name: read(find_split_files(folder, [name])))

    @classmethod
    def _of_hub(cls, name: str, config_name: str | None, revision: str | None) -> _Splits:
        from datasets import get_dataset_split_names, load_dataset

        try:
            names = get_dataset_split_names(name, config_name, revision=revision)
        except (ConnectionError, FileNotFoundError, ValueError) as error:
            raise ConnectionError(f"{name} is no local path and cannot be loaded from the Hub: {error}") from error
        return cls(list(names), lambda split: load_dataset(name, config_name, split=split, revision=revision))
