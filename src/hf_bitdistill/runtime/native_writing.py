"""Native files from decoders: see [`native_format`] and [`native_key`]."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig
from transformers.utils import logging

from ..files.atomic import file_aside, lock_folder
from ..files.disk_room import check_room, size_text
from ..files.weight_files import find_weight_files
from ..machine import processes
from ..modeling.model_heads import head_of
from ..modeling.preflight import read_config
from .families import Norm, Projection
from .loading import load_decoder
from .matrices import Table
from .native_decoder import KvDtype, LoadedProjection, Weights
from .native_format import TensorWriter, write
from .native_key import (
    States,
    cache_folder,
    check_enabled,
    digests_of,
    is_enabled,
    make_key,
    places,
    remove_unused,
    settled,
    states_of,
)
from .native_reading import ReadyDecoder
from .spec_json import encode_spec
from .students import NotAStudentError, Student, head_bits_of


logger = logging.get_logger(__name__)

#: Smaller checkpoints load in a moment: nothing is written for them unless it is asked for.
_WORTH_BYTES = 64 << 20
# Tensors of a model outside its decoder.
_EXTRAS = {"sequence_classification": ("score.weight",)}


class RecordedWeights:
    """Hands on what another source of weights gives, and remembers it."""

    def __init__(self, weights: Weights):
        self._weights = weights
        self.norms: dict[str, Tensor] = {}
        self.projections: dict[str, LoadedProjection] = {}
        self.tables: dict[str, Table] = {}

    def norm(self, norm: Norm) -> Tensor:
        return self.norms.setdefault(norm.tensor, self._weights.norm(norm))

    def projection(self, projection: Projection) -> LoadedProjection:
        return self.projections.setdefault(projection.module, self._weights.projection(projection))

    def table(self, name: str) -> Table:
        return self.tables.setdefault(name, self._weights.table(name))


@dataclass(frozen=True)
class NativeSource:
    """What a native file is made of.

    Attributes:
        config: of the checkpoint.
        files: its weights, and `states` what the system said of them before they were read.
        head: of [`hf_bitdistill.modeling.model_heads.HEADS`].
    """

    config: PreTrainedConfig
    files: list[str]
    states: States
    head: str

    @classmethod
    def of(cls, config: PreTrainedConfig, files: Sequence[str], head: str) -> NativeSource | None:
        """Of files that are about to be read; `None` where one is not there, which reading it tells better."""
        try:
            return cls(copy.deepcopy(config), list(files), states_of(files), head)
        except OSError:
            return None


def load_and_keep(
    student: Student,
    source: NativeSource | None,
    head_bits: int,
    kv_dtype: KvDtype = "float16",
    num_threads: int | None = None,
) -> ReadyDecoder:
    """As [`load_decoder`], and a native file is written for the next start, where that is worth it and there is a place.

    Args:
        source: what `student` was read from; `None`: nothing is written. (Of several processes on a machine the first writes.)
    """
    ready, spec_weights = _load(student, head_bits, kv_dtype, num_threads)
    if source is None or student.is_trainable or not is_enabled() or not processes.is_first_here():
        return ready
    if not _is_worth_it(source, head_bits):
        return ready
    try:
        place = _write_native_file(source, head_bits, ready, spec_weights)
    except (OSError, ValueError) as error:
        logger.info(f"no native file was written, from which the model would load faster: {error}")
    else:
        size = size_text(place.stat().st_size)
        logger.warning(
            f"{place} ({size}) was written, from which the model loads faster from now on. It may be deleted at any time."
        )
    return ready


def _is_worth_it(source: NativeSource, head_bits: int) -> bool:
    """Whether a model is large, or had a file that was asked for and is of no use any more."""
    if sum(state[0] for state in source.states.values()) >= _WORTH_BYTES:
        return True
    return any(place.exists() for place in places(source.files, make_key(source.config, source.head, head_bits)))


def make_native_file(folder: str | Path, head_bits: int | None = None) -> Path:
    """Write the native file of a packed checkpoint now, and not when it is first loaded.

    Args:
        folder: of the checkpoint.
        head_bits: what embedding and head become in memory; default: what the config says.

    Raises:
        NotAStudentError, CheckpointError: it is no packed student, or damaged.
        UnsupportedModelError: the native decoder cannot compute it.
        OSError: there is no place for it; says why.
        ValueError: native files are switched off.
    """
    check_enabled()
    config = read_config(Path(folder))
    files = find_weight_files(folder, config)
    head = head_of(config)
    source = NativeSource.of(config, files, head)
    student = Student(config, files, head)
    assert source is not None  # (its files were read)
    if student.is_trainable:
        raise NotAStudentError(f"{folder} is not packed yet: pack it first (bitdistill pack).")
    head_bits = head_bits or head_bits_of(config)
    ready, weights = _load(student, head_bits, "float16", None)
    return _write_native_file(source, head_bits, ready, weights)


def _load(
    student: Student, head_bits: int, kv_dtype: KvDtype, num_threads: int | None
) -> tuple[ReadyDecoder, RecordedWeights]:
    seen: list[RecordedWeights] = []

    def watch(weights: Weights) -> RecordedWeights:
        seen.append(RecordedWeights(weights))
        return seen[0]

    decoder = load_decoder(student, head_bits, kv_dtype, num_threads, watch)
    extras = {name: student.files.read(name).float().clone() for name in _EXTRAS.get(student.head, ())}
    student.files.close()
    return ReadyDecoder(decoder, student.config, student.needs_export, extras), seen[0]


def _write_native_file(source: NativeSource, head_bits: int, ready: ReadyDecoder, weights: RecordedWeights) -> Path:
    """Keep a decoder that was just loaded for the next start. Returns the file.

    Raises:
        OSError: there is no place to write it to.
        ValueError: the checkpoint changed while it was read.
    """
    key = make_key(source.config, source.head, head_bits)
    digests = digests_of(source.files)
    if states_of(source.files) != source.states:
        raise ValueError("the checkpoint changed while it was read")
    writer = TensorWriter()
    index = {
        "key": key,
        "sources": [os.path.realpath(file) for file in source.files],
        "sizes": {name: state[0] for name, state in source.states.items()},
        "digests": digests,
        "needs_export": ready.needs_export,
        "quantization": ready.config.quantization_config.to_dict(),
        "spec": encode_spec(ready.decoder.spec),
        "tables": {
            name: [
                table.kind,
                writer.add(table.data),
                table.rows,
                table.columns,
                str(table.dtype).removeprefix("torch."),
            ]
            for name, table in weights.tables.items()
        },
        "projections": {
            name: [
                part.kind,
                writer.add(part.weight),
                writer.add(part.bias),
                writer.add(part.norm_weight),
                part.norm_eps,
            ]
            for name, part in weights.projections.items()
        },
        "norms": {name: writer.add(tensor) for name, tensor in weights.norms.items()},
        "extras": {name: writer.add(tensor) for name, tensor in ready.extras.items()},
    }
    failed: OSError | None = None
    for place in places(source.files, key):
        try:
            _write(place, index, writer, settled(source.states))
        except BlockingIOError:
            raise OSError(
                f"another process is writing a native file in {place.parent}: load or pack the model again later"
            ) from None
        except OSError as error:
            failed = error
        else:
            return place
    raise failed or OSError("the model's last save was interrupted: save it again")


def _write(place: Path, index: Mapping[str, Any], writer: TensorWriter, stamp: States | None) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = lock_folder(place.parent)
    try:
        with file_aside(place, durable=False) as aside:
            # (What a killed writer left is gone by now. A cache must not take the last room on a disk.)
            check_room(place.parent, {"the native file": writer.size, "as much again to be left": writer.size})
            if place.parent != cache_folder():
                (place.parent / ".gitignore").write_text("*\n", encoding="utf-8")
            write(aside, index, writer, stamp)
        remove_unused(place)
    finally:
        if lock is not None:
            os.close(lock)
