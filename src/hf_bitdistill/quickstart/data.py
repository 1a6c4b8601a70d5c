"""The quickstart's data, written as files that anybody's could be: prompts with completions, and plain text."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files.atomic import write_text
from .corpus import QUICKSTART_PACKAGES, STANDARD_LIBRARY, CorpusError, Split, extract, split_texts
from .settings import QuickstartError, QuickstartSettings
from .task import TASK, build_examples


if TYPE_CHECKING:
    from datasets import Dataset

_MADE_OF = "made_of.json"


@dataclass(frozen=True)
class DataFiles:
    """Where the data is.

    Attributes:
        train, test: rows with `prompt` and `completion`; `dataset` is their folder.
        corpus: rows with `text`: what is not held out.
    """

    folder: Path

    @property
    def dataset(self) -> Path:
        return self.folder / "docstrings"

    @property
    def train(self) -> Path:
        return self.dataset / "train.jsonl"

    @property
    def test(self) -> Path:
        return self.dataset / "test.jsonl"

    @property
    def corpus(self) -> Path:
        return self.folder / "text.jsonl"

    def digests(self) -> dict[str, str | None]:
        """Of the contents of each file; `None` of one that is not there."""
        return {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
            for file in (self.train, self.test, self.corpus)
        }


def prepare(files: DataFiles, settings: QuickstartSettings) -> bool:
    """Write the files, unless they are there as they would be written. A file that would be written as it is is not touched.

    Returns:
        Whether they had to be made.

    Raises:
        QuickstartError: there is too little text on this machine, or the folder cannot be written.
    """
    note = files.folder / _MADE_OF
    identity = _identity(settings)
    if note.is_file() and note.read_text(encoding="utf-8") == _note(identity, files):
        return False
    try:
        documents = extract(QUICKSTART_PACKAGES, int(settings.source_megabytes * 1e6), settings.torch_threads)
        sizes: dict[Split, int] = {"train": settings.train_examples, "test": settings.test_examples}
        examples = build_examples(documents, sizes, settings.seed)
    except CorpusError as error:
        raise QuickstartError(f"Not enough text: {error}.") from None
    texts = split_texts(documents, "train")
    random.Random(settings.seed).shuffle(texts)
    try:
        files.dataset.mkdir(parents=True, exist_ok=True)
        _write(files.train, _rows(examples["train"]))
        _write(files.test, _rows(examples["test"]))
        _write(files.corpus, ({"text": text} for text in texts))
        write_text(note, _note(identity, files))
    except OSError as error:
        raise QuickstartError(f"Cannot write to {files.folder}: {error.strerror or error}.") from None
    return True


def _rows(examples: Dataset) -> Iterable[dict[str, str]]:
    # The completion begins with the space that separates it from the prompt.
    return ({"prompt": TASK.format_prompt(row), "completion": f" {TASK.format_answer(row)}"} for row in examples)


def _write(file: Path, rows: Iterable[dict[str, str]]) -> None:
    text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    # (A docstring may hold half of a surrogate pair, which no file can.)
    text = text.encode("utf-8", "replace").decode("utf-8")
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        write_text(file, text)


def _identity(settings: QuickstartSettings) -> dict[str, Any]:
    """All that decides what is in the files."""
    versions: dict[str, str | None] = {}
    for package in QUICKSTART_PACKAGES:
        try:
            python = package == STANDARD_LIBRARY
            versions[package] = platform.python_version() if python else importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    deciding = ("seed", "source_megabytes", "train_examples", "test_examples")
    return {"packages": versions, **{name: getattr(settings, name) for name in deciding}}


def _note(identity: dict[str, Any], files: DataFiles) -> str:
    return json.dumps({**identity, "files": files.digests()}, indent=2) + "\n"
