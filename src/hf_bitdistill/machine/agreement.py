"""What the processes of one run must have alike: versions, options, rows, models, a folder. Where they have not, all of them end."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from . import processes
from .processes import ProcessesError


_PACKAGES = ("hf-bitdistill", "torch", "transformers", "accelerate")
# Of a dataset those rows are compared: reading all of a large one would take too long.
_FIRST_ROWS = 8
_FIRST_VALUES = 8
_SHOWN = 3
# Seconds within which every process sees a file that the first one wrote.
_SEEN_WITHIN = 10.0


@dataclass(frozen=True)
class Alike:
    """Named values that every process must have alike.

    Attributes:
        what: names them all, as in "the installed versions".
        values: can be pickled and compared.
        remedy: what a user can do where they differ.
    """

    what: str
    values: Mapping[str, Any]
    remedy: str


def check_alike(parts: Sequence[Alike]) -> None:
    """Compare with the first process, in one exchange; every process gives the same kinds of parts.

    Raises:
        ProcessesError: one has something else; in all processes, with its place, what differs, and the remedy.
    """
    (first, where), *others = processes.gather((list(parts), processes.place()))
    for found, there in others:
        for expected, part in zip(first, found, strict=True):
            one, other = expected.values, part.values
            names = [name for name in dict.fromkeys([*one, *other]) if one.get(name) != other.get(name)]
            if names:
                shown = "; ".join(f"{name}: {one.get(name)!r} and {other.get(name)!r}" for name in names[:_SHOWN])
                more = f"; {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
                raise ProcessesError(
                    f"{expected.what} differ between {where} and {there} ({shown}{more}). {expected.remedy}"
                )


def versions() -> Alike:
    """Of what computes."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return Alike("the installed versions", found, "Install the same versions on every machine.")


def options(values: Mapping[str, Any], apart: Iterable[str] = ()) -> Alike:
    """Options, as far as they are plain values.

    Args:
        apart: names of those that may differ.
    """
    apart = set(apart)
    plain = {name: value for name, value in values.items() if name not in apart and _is_plain(value)}
    return Alike("the options", plain, "Start every process with the same command and the same configuration file.")


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, int, float, bool))


def rows(datasets: Mapping[str, Any]) -> Alike:
    """Datasets: how many rows, and the first ones, where reading these leaves no trace.

    Args:
        datasets: what each is -> it, a mapping of names to several, or `None`.
    """
    found: dict[str, Any] = {}
    for what, dataset in datasets.items():
        several = {f"{what} {name}": each for name, each in dataset.items()} if isinstance(dataset, dict) else {}
        for name, each in (several or {what: dataset}).items():
            found |= _sample_of_rows(name, each)
    return Alike("the data", found, "Give every machine the same data: a folder that they share, or the same copy.")


def _sample_of_rows(name: str, dataset: Any) -> dict[str, Any]:
    if not hasattr(dataset, "__len__"):
        # Of a stream each process may read its own part.
        return {f"columns of {name}": getattr(dataset, "column_names", None)} if dataset is not None else {}
    sample: dict[str, Any] = {f"rows of {name}": len(dataset)}
    read = _plain_rows(dataset)
    if read is not None:
        text = json.dumps(read, sort_keys=True, default=str)
        sample[f"first rows of {name}"] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return sample


def _plain_rows(dataset: Any) -> list[Any] | None:
    """The first rows and the last one; `None` where reading a row may draw random numbers, as a transform does."""
    from datasets import Dataset

    count = len(dataset)
    chosen = [*range(min(_FIRST_ROWS, count)), *([count - 1] if count > _FIRST_ROWS else [])]
    if isinstance(dataset, Dataset):
        return dataset.with_format(None).select(chosen).to_list()
    if isinstance(dataset, (list, tuple)):
        return [dataset[row] for row in chosen]
    return None


def sequences(what: str, ids: Iterable[Sequence[int]]) -> Alike:
    """Token ids, all of them."""
    digest, count = hashlib.sha256(), 0
    for each in ids:
        count += 1
        digest.update(json.dumps(list(each)).encode())
    return Alike(what, {"number": count, "contents": digest.hexdigest()[:16]}, "Give every machine the same data.")


def model(what: str, module: Any) -> Alike:
    """A model: names, shapes and types of its tensors, and a few values of each."""
    digest = hashlib.sha256()
    for name, tensor in _tensors(module):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if not tensor.is_meta and tensor.numel():
            # (Of one row from each end: views, where a flat tensor might be a copy.)
            for row, part in ((0, slice(_FIRST_VALUES)), (-1, slice(-_FIRST_VALUES, None))):
                values = tensor[(row,) * (tensor.dim() - 1)][part] if tensor.dim() else tensor
                digest.update(repr(values.detach().tolist()).encode())
    return Alike(what, {"contents": digest.hexdigest()[:16]}, "Give every machine the same files of it.")


def _tensors(module: Any) -> Iterable[tuple[str, Any]]:
    from torch.nn import Module

    if not isinstance(module, Module):  # the native decoder
        return ()
    return chain(module.named_parameters(), module.named_buffers())


def is_in_shards(module: Any) -> bool:
    """Whether a model is divided among the processes (FSDP, ZeRO-3), so that they compute with it together or not at all."""
    if processes.world_size() == 1:
        return False
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import DTensor
    from torch.nn import Module

    if not isinstance(module, Module):
        return False
    if any(isinstance(part, FullyShardedDataParallel) for part in module.modules()):
        return True
    return any(isinstance(each, DTensor) or hasattr(each, "ds_id") for _, each in module.named_parameters())


def check_shared(folder: str | Path, remedy: str) -> None:
    """Refuse a folder that is not the same one in every process. It is made where it is not there.

    Raises:
        OSError: the first process cannot write there; in the others a ProcessesError.
        ProcessesError: another one does not see what the first one writes; in all processes, with its place.
    """
    if processes.world_size() == 1:
        return
    folder = Path(folder)

    def leave() -> str:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f"_bitdistill.tmp-{uuid.uuid4().hex}"
        probe.touch()
        return probe.name

    name = processes.from_first(leave, f"writing into {folder}")
    end = time.monotonic() + _SEEN_WITHIN
    while not (seen := (folder / name).exists()) and time.monotonic() < end:
        time.sleep(0.2)  # a network file system may show it late
    found = processes.gather((seen, processes.place()))
    if processes.is_first():
        (folder / name).unlink(missing_ok=True)
    for is_there, where in found:
        if not is_there:
            raise ProcessesError(
                f"{folder} in {where} is not the folder of {found[0][1]}: it is on a disk of its own. {remedy}"
            )
