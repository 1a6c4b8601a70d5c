"""The files of a cache: what it says about itself, and its shards."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ....files.atomic import write_text
from ....files.json_files import read_json
from ....files.tensor_headers import CheckpointError


INFO = "teacher_cache.json"
FORMAT = 1

# What a run that goes on must have in common with the one that began.
_SETTINGS = (
    "format",
    "teacher",
    "teacher_digest",
    "tokenizer_digest",
    "head",
    "k",
    "dtype",
    "vocab_size",
    "temperatures",
    "examples",
    "shard_examples",
)


@dataclass
class CacheInfo:
    """What a cache says about itself.

    Attributes:
        teacher: name or path.
        teacher_digest: of its parameters.
        tokenizer_digest: see [`tokenizer_digest`]; `None`: not known.
        head: of the teacher.
        k: outcomes that are kept.
        dtype: of their log-probabilities: `"float16"` or `"bfloat16"`.
        vocab_size: leading columns of the teacher's logits among which they are.
        temperatures: at which the mass of the tail is kept.
        examples, positions: how many there are (positions of the shards written so far).
        shard_examples: examples a shard.
        shards: file -> examples with a label in it.
        complete: whether all are there.
    """

    teacher: str | None
    teacher_digest: str
    tokenizer_digest: str | None
    head: str
    k: int
    dtype: str
    vocab_size: int
    temperatures: list[float]
    examples: int
    shard_examples: int
    positions: int = 0
    shards: dict[str, int] = field(default_factory=dict)
    complete: bool = False
    format: int = FORMAT

    def settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _SETTINGS}

    def write(self, folder: Path) -> None:
        write_text(folder / INFO, json.dumps(asdict(self), indent=2) + "\n")


def read_info(folder: str | os.PathLike) -> CacheInfo:
    """What a cache says about itself.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: its file is damaged or of another format.
    """
    file = Path(folder) / INFO
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder} is no teacher's cache: it has no {INFO} (bitdistill cache-teacher writes one)"
        )
    content = read_json(file)
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{file}: its format is {content.get('format')!r}, and this version reads {FORMAT}.")
    names = {each.name for each in fields(CacheInfo)}
    if set(content) != names:
        raise CheckpointError(f"{file}: damaged: {', '.join(sorted(set(content) ^ names))} missing or unknown.")
    return CacheInfo(**content)


def shard_name(number: int) -> str:
    return f"teacher-{number:05d}.safetensors"
