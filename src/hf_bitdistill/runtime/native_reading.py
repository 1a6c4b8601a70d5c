"""Decoders from native files: see [`native_format`] and [`native_key`]."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.utils import logging

from ..config import BitNetConfig
from ..files.weight_files import warn_of_stale_files
from .families import Norm, Projection, UnsupportedModelError
from .matrices import HEAD_BITS, Table
from .native_decoder import LoadedProjection, NativeDecoder, check_options, load_library
from .native_format import NativeFile, dtype_named, view
from .native_key import digests_of, is_enabled, make_key, places, settled, states_of
from .spec_json import decode_spec
from .students import head_bits_of, offline_config


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class ReadyDecoder:
    """A decoder that was read from a native file, and what else a model knows of its checkpoint.

    Attributes:
        config: of the offline student.
        needs_export: see [`Student`].
        extras: tensors outside the decoder, float32, by their names in the checkpoint.
    """

    decoder: NativeDecoder
    config: PreTrainedConfig
    needs_export: bool
    extras: dict[str, Tensor]


class _StoredWeights:
    """The weights in a native file."""

    def __init__(self, index: dict[str, Any], data: Tensor):
        self._index, self._data = index, data
        self._tables: dict[str, Table] = {}

    def tensor(self, place: Any) -> Tensor:
        tensor = view(self._data, place)
        if tensor is None:
            raise ValueError("a tensor is missing")
        return tensor

    def _floats(self, place: Any) -> Tensor | None:
        tensor = view(self._data, place)
        if tensor is not None and tensor.dtype != torch.float32:
            raise ValueError("a vector is not float32")
        return tensor

    def norm(self, norm: Norm) -> Tensor:
        tensor = self._floats(self._index["norms"][norm.tensor])
        if tensor is None:
            raise ValueError("a norm is missing")
        return tensor

    def projection(self, projection: Projection) -> LoadedProjection:
        kind, weight, bias, norm, eps = self._index["projections"][projection.module]
        return LoadedProjection(self.tensor(weight), self._floats(bias), self._floats(norm), eps, kind)

    def table(self, name: str) -> Table:
        if name not in self._tables:
            kind, place, rows, columns, dtype = self._index["tables"][name]
            self._tables[name] = Table(kind, self.tensor(place), rows, columns, dtype_named(dtype))
        return self._tables[name]


def open_native_file(
    config: PreTrainedConfig,
    files: Sequence[str],
    head: str,
    head_bits: int | None,
    kv_dtype: Any,
    num_threads: int | None,
) -> ReadyDecoder | None:
    """The decoder of a checkpoint from its native file. `None` where there is none, or none that can be trusted.

    Args:
        config: of the checkpoint.
        files: its weights.
        head: of [`hf_bitdistill.modeling.model_heads.HEADS`].
        head_bits, kv_dtype, num_threads: see [`load_decoder`]; `None`: what the config says.

    Raises:
        ValueError: an option has no meaning.
    """
    if not is_enabled():
        return None
    try:
        head_bits = head_bits or head_bits_of(config)
    except ValueError:
        return None  # told by whoever loads the checkpoint itself
    if head_bits not in HEAD_BITS:
        return None
    check_options(kv_dtype, num_threads)
    try:
        load_library()
    except UnsupportedModelError:
        return None
    key = make_key(config, head, head_bits)
    for place in places(files, key):
        try:
            stored = NativeFile(place)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
        except (OSError, ValueError) as error:
            _pass_over(place, error)
            continue
        if stored.index.get("key") != key or not _is_of(stored, files):
            logger.info(f"{place}: is of another state of the checkpoint, and is made anew.")
            continue
        try:
            ready = _decoder(stored, config, kv_dtype, num_threads)
        except MemoryError:
            raise
        except Exception as error:  # whatever an index leads to that no version of ours wrote
            _pass_over(place, error)
            continue
        warn_of_stale_files(files)
        return ready
    return None


def _pass_over(file: Path, error: Exception) -> None:
    logger.warning(
        f"{file}: {' '.join(str(error).split()) or type(error).__name__}. It is not used, and is made anew from the checkpoint."
    )


def _is_of(stored: NativeFile, files: Sequence[str]) -> bool:
    """Whether a native file was made of just these files, as they are now."""
    before, sizes = states_of(files), stored.index.get("sizes")
    if stored.stamp == before:
        return True
    if sizes != {name: state[0] for name, state in before.items()} or digests_of(files) != stored.index.get("digests"):
        return False
    if settled(before) is not None and states_of(files) == before:
        with suppress(OSError, ValueError):  # (not ours to write: compared again at the next start)
            stored.write_stamp(before)
    return True


def _decoder(stored: NativeFile, config: PreTrainedConfig, kv_dtype: Any, num_threads: int | None) -> ReadyDecoder:
    index = stored.index
    needs_export = index["needs_export"]
    if not isinstance(needs_export, bool):
        raise ValueError("its index is damaged")
    spec, quantization = decode_spec(index["spec"]), BitNetConfig.from_dict(index["quantization"])
    data = stored.read()
    weights = _StoredWeights(index, data)
    decoder = NativeDecoder(spec, weights, kv_dtype, num_threads)
    extras = {name: weights.tensor(place).clone() for name, place in index["extras"].items()}
    return ReadyDecoder(decoder, offline_config(config, quantization), needs_export, extras)
