"""Digests in the metadata of a student's safetensors files, by which a changed or mixed-up checkpoint is told from what was saved.

Each file records the digest of each of its tensors, one of the whole model, and those options of the student that give its weights
their meaning. They find damage and mistakes, not forgery: whoever changes a file on purpose can write another digest. A tool that
writes new files without this metadata makes a checkpoint without digests, which loads as those of older versions do.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from ..config import BitNetConfig
from ..files.tensor_headers import CheckpointError, read_header


METADATA_KEY = "bitdistill_digests"

# `head_bits` is not among them: it may be edited, and so may everything outside quantization_config.
_OPTIONS = (
    "quantization_mode",
    "sub_norm",
    "sub_norm_eps",
    "weight_granularity",
    "group_size",
    "activation_bits",
    "modules_to_not_convert",
    "modules_without_sub_norm",
    "projections",
    "table_bits",
    "weight_bits",
    "surgery_version",
)
# Of a float: bytes, and the bits of plus infinity. What is above these, sign aside, is infinite or no number.
_FLOATS = {
    "F64": (8, 0x7FF0000000000000),
    "F32": (4, 0x7F800000),
    "F16": (2, 0x7C00),
    "BF16": (2, 0x7F80),
}
_PIECE = 4 << 20  # a multiple of every float's size


@dataclass(frozen=True)
class _Tensor:
    file: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


def _tensors(file: str, header: dict[str, Any], start: int) -> list[_Tensor]:
    entries = [
        _Tensor(file, name, entry["dtype"], tuple(entry["shape"]), start + entry["data_offsets"][0], _size_of(entry))
        for name, entry in header.items()
        if name != "__metadata__"
    ]
    return sorted(entries, key=lambda tensor: tensor.start)


def _size_of(entry: dict[str, Any]) -> int:
    first, last = entry["data_offsets"]
    return last - first


def _pieces(tensor: _Tensor) -> Iterator[memoryview]:
    """The bytes of a tensor, a piece at a time; a piece is overwritten by the next. (Read, not mapped: setting up and clearing the pages of a
    mapping takes longer than a copy that stays in the cache.)"""
    buffer = memoryview(bytearray(min(_PIECE, tensor.size)))
    left = tensor.size
    with open(tensor.file, "rb", buffering=0) as stream:
        stream.seek(tensor.start)
        while left:
            piece = buffer[: min(_PIECE, left)]
            filled = 0
            while filled < len(piece):
                count = stream.readinto(piece[filled:])
                if not count:
                    raise CheckpointError(f"{tensor.file}: tensor {tensor.name!r} is cut off.")
                filled += count
            left -= len(piece)
            yield piece


def _digest(tensor: _Tensor, check_finite: bool = False) -> str:
    """Of dtype, shape and bytes."""
    digest = xxhash.xxh3_128(f"{tensor.dtype}{list(tensor.shape)}".encode())
    for piece in _pieces(tensor):
        digest.update(piece)
        if check_finite and tensor.dtype in _FLOATS and not _is_finite(piece, *_FLOATS[tensor.dtype]):
            raise CheckpointError(
                f"{Path(tensor.file).name}: tensor {tensor.name!r} is not finite (it has a NaN or an infinity). Nothing was saved; "
                "go back to a checkpoint from before the run diverged."
            )
    return digest.hexdigest()


def _is_finite(piece: memoryview, size: int, infinity: int) -> bool:
    """Whether floats of `size` bytes all are. On integers, because numpy has no bfloat16 and torch would start threads of its own."""
    sign = 1 << (8 * size - 1)
    positive, negative = np.frombuffer(piece, f"<i{size}").max(), np.frombuffer(piece, f"<u{size}").max()
    return bool(int(positive) < infinity and int(negative) < infinity + sign)


def _digests(tensors: list[_Tensor], check_finite: bool = False) -> list[str]:
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda tensor: _digest(tensor, check_finite), tensors))


def _digest_of_model(digests: dict[str, str]) -> str:
    return xxhash.xxh3_128(json.dumps(sorted(digests.items())).encode()).hexdigest()


def _options(config: BitNetConfig | dict[str, Any]) -> dict[str, Any]:
    values = dict(config if isinstance(config, dict) else config.to_dict())
    if values.get("weight_granularity") != "group":
        values.pop("group_size", None)
    for name, default in (("table_bits", 16), ("weight_bits", 2)):
        if values.get(name) == default:  # (what it is without being written)
            del values[name]
    options = {name: values.get(name) for name in _OPTIONS}
    # The order of a list says nothing, and empty means `None`.
    return {name: (sorted(value) if isinstance(value, list) else value) or None for name, value in options.items()}


def digest_of_file(file: str | Path) -> str:
    """Of all bytes of a file, whatever it holds."""
    digest, buffer = xxhash.xxh3_128(), memoryview(bytearray(_PIECE))
    with open(file, "rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def add_digests(files: Iterable[str | Path], config: BitNetConfig | dict[str, Any]) -> None:
    """Write digests into all weight files of a student that was just saved, which nobody reads yet.

    Raises:
        CheckpointError: a tensor holds a NaN or an infinity; names file and tensor.
    """
    headers = {str(file): read_header(str(file)) for file in files}
    tensors = [tensor for file, (header, start) in headers.items() for tensor in _tensors(file, header, start)]
    digests = dict(zip((tensor.name for tensor in tensors), _digests(tensors, check_finite=True), strict=True))
    common = {"model": _digest_of_model(digests), "options": _options(config)}
    for file, (header, start) in headers.items():
        own = {tensor.name: digests[tensor.name] for tensor in tensors if tensor.file == file}
        record = json.dumps({"tensors": own, **common}, separators=(",", ":"), sort_keys=True)
        metadata = {**header.pop("__metadata__", {}), METADATA_KEY: record}
        _replace_header(file, {"__metadata__": metadata, **header}, start)


def _replace_header(file: str, header: dict[str, Any], start: int) -> None:
    """Give a file a longer header, in place: a copy of a large file would need the space for it."""
    content = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    content += b" " * (-len(content) % 8)
    shift = 8 + len(content) - start
    size = os.path.getsize(file)
    with open(file, "r+b", buffering=0) as stream:
        for end in range(size, start, -_PIECE) if shift else ():
            begin = max(start, end - _PIECE)
            stream.seek(begin)
            piece = _read_all(stream, end - begin)
            stream.seek(begin + shift)
            _write_all(stream, piece)
        stream.seek(0)
        _write_all(stream, struct.pack("<Q", len(content)) + content)


def _read_all(stream, count: int) -> bytes:
    pieces = []
    while count:
        pieces.append(stream.read(count))
        count -= len(pieces[-1])
    return b"".join(pieces)


def _write_all(stream, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[stream.write(view) :]


def check_digests(files: Iterable[str | Path], config: BitNetConfig | dict[str, Any] | None) -> bool:
    """Compare a student's files, and its options, with what was saved. Files without any digests pass.

    Reads every file once, as loading does afterwards from the system's cache.

    Args:
        files: all weight files of the model; each can be read as safetensors.
        config: the student's; `None`: config.json says that it is in full precision.

    Returns:
        Whether every file has digests.

    Raises:
        CheckpointError: naming the file and the tensor or the option.
    """
    headers = {str(file): read_header(str(file)) for file in files}
    records = {file: record for file, (header, _) in headers.items() if (record := _record(file, header)) is not None}
    if not records:
        return False
    first, record = next(iter(records.items()))
    for file, other in records.items():
        if other["model"] != record["model"]:
            raise CheckpointError(
                f"{file} and {Path(first).name} are parts of two different saves: copy or save the model again."
            )
    _check_options(first, record["options"], config)

    tensors = [tensor for file, (header, start) in headers.items() for tensor in _tensors(file, header, start)]
    digests = dict(zip(((tensor.file, tensor.name) for tensor in tensors), _digests(tensors), strict=True))
    for (file, name), digest in digests.items():
        expected = records[file]["tensors"].get(name) if file in records else digest
        if digest != expected:
            raise CheckpointError(
                f"{file}: tensor {name!r} is not the one that was saved{_whose(digest, records)}: the file is damaged or was "
                "changed. Take a whole copy; a tool that changes weights on purpose must write its file without the metadata "
                f"{METADATA_KEY!r}."
            )
    for file, other in records.items():
        missing = next((name for name in other["tensors"] if (file, name) not in digests), None)
        if missing is not None:
            raise CheckpointError(f"{file}: tensor {missing!r}, which was saved, is missing.")
    if _digest_of_model({name: digest for (_, name), digest in digests.items()}) != record["model"]:
        foreign = [Path(file).name for file in headers if file not in records]
        raise CheckpointError(
            f"{first} is a part of a model whose other parts "
            + (f"are not {', '.join(foreign)}" if foreign else "are missing")
            + ": copy or save the model again."
        )
    return len(records) == len(headers)


def _record(file: str, header: dict[str, Any]) -> dict[str, Any] | None:
    text = header.get("__metadata__", {}).get(METADATA_KEY)
    if text is None:
        return None
    try:
        record = json.loads(text)
        if isinstance(record["tensors"], dict) and isinstance(record["model"], str):
            return {**record, "options": dict(record["options"])}
    except (ValueError, KeyError, TypeError):
        pass
    raise CheckpointError(f"{file}: the metadata {METADATA_KEY!r} is damaged.")


def _whose(digest: str, records: dict[str, dict[str, Any]]) -> str:
    name = next(
        (name for record in records.values() for name, other in record["tensors"].items() if other == digest), None
    )
    return "" if name is None else f" but {name!r}"


def _check_options(file: str, saved: dict[str, Any], config: BitNetConfig | dict[str, Any] | None) -> None:
    if config is None:
        raise CheckpointError(
            f"{file} holds the weights of a BitNet student, but its config.json has no quantization_config: restore the config.json "
            "that was saved with it."
        )
    for name, value in _options(config).items():
        # (A record may be of another version, with fewer or more options.)
        if name in saved and saved[name] != value:
            raise CheckpointError(
                f"{file}: the weights were saved with {name}={saved[name]!r}, but quantization_config in config.json says {value!r}: "
                "restore the config.json that was saved with them."
            )
