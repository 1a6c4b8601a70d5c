"""The decoder's part of the native library: its C structures and the life of its handles (`csrc/bitdistill.h`)."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from ctypes import POINTER, c_float, c_int, c_int32, c_int64, c_size_t, c_void_p
from typing import Any

from ..ops.native import (
    TABLE_BFLOAT16,
    TABLE_FLOAT16,
    TABLE_FLOAT32,
    TABLE_PACKED,
    TABLE_SPLIT,
    NativeLibrary,
    NativeLibraryError,
)


OUTPUT_LOGITS, OUTPUT_HIDDEN, OUTPUT_GREATEST = 0, 1, 2
KV_FLOAT32, KV_FLOAT16, KV_INT8 = 0, 2, 3


class NormStruct(ctypes.Structure):
    """`bd_norm`."""

    _fields_ = [("weight", c_void_p), ("count", c_size_t), ("eps", c_float)]


class TableStruct(ctypes.Structure):
    """`bd_table`."""

    _fields_ = [("kind", c_int32), ("data", c_void_p), ("bytes", c_size_t)]


class AdapterStruct(ctypes.Structure):
    """`bd_adapter`."""

    _fields_ = [("a", c_void_p), ("a_count", c_size_t), ("b", c_void_p), ("b_count", c_size_t), ("rank", c_int64)]


class ProjectionStruct(ctypes.Structure):
    """`bd_projection`."""

    _fields_ = [
        ("weight", TableStruct),
        ("bias", c_void_p),
        ("bias_count", c_size_t),
        ("sub_norm", NormStruct),
        ("adapter", AdapterStruct),
    ]


class RopeStruct(ctypes.Structure):
    """`bd_rope`."""

    _fields_ = [("inv_freq", c_void_p), ("count", c_size_t), ("attention_scaling", c_float)]


class ExpertStruct(ctypes.Structure):
    """`bd_expert`."""

    _fields_ = [("gate_up", ProjectionStruct * 2), ("down", ProjectionStruct)]


class MixtureStruct(ctypes.Structure):
    """`bd_mixture`."""

    _fields_ = [
        ("router", TableStruct),
        ("experts", POINTER(ExpertStruct)),
        ("expert_count", c_int32),
        ("experts_per_token", c_int32),
        ("gate_up_count", c_int32),
        ("normalise", c_int32),
        ("intermediate_size", c_int64),
    ]


class LayerStruct(ctypes.Structure):
    """`bd_layer`."""

    _fields_ = [
        ("input_norm", NormStruct),
        ("post_attention_norm", NormStruct),
        ("pre_feedforward_norm", NormStruct),
        ("post_feedforward_norm", NormStruct),
        ("q_norm", NormStruct),
        ("k_norm", NormStruct),
        ("qkv", ProjectionStruct * 3),
        ("qkv_count", c_int32),
        ("gate_up_count", c_int32),
        ("gate_up", ProjectionStruct * 2),
        ("o", ProjectionStruct),
        ("down", ProjectionStruct),
        ("rope", c_int32),
        ("has_gate", c_int32),
        ("window", c_int64),
        ("mixture", MixtureStruct),
    ]


class ConfigStruct(ctypes.Structure):
    """`bd_decoder_config`."""

    _fields_ = [
        ("vocab_size", c_int64),
        ("hidden_size", c_int64),
        ("intermediate_size", c_int64),
        ("head_dim", c_int64),
        ("max_positions", c_int64),
        ("heads", c_int32),
        ("kv_heads", c_int32),
        ("layer_count", c_int32),
        ("rope_count", c_int32),
        ("layers", POINTER(LayerStruct)),
        ("ropes", POINTER(RopeStruct)),
        ("embedding", TableStruct),
        ("head", TableStruct),
        ("final_norm", NormStruct),
        ("embedding_scale", c_float),
        ("attention_scale", c_float),
        ("attention_softcap", c_float),
        ("logit_softcap", c_float),
        ("activation", c_int32),
        ("kv_dtype", c_int32),
    ]


_SIGNATURES: dict[str, list[Any]] = {
    "bd_decoder_create": [POINTER(ConfigStruct), POINTER(c_void_p)],
    "bd_decoder_destroy": [c_void_p],
    "bd_decoder_forward": [c_void_p, c_void_p, c_void_p, c_void_p, c_size_t, c_void_p, c_size_t, c_int]
    + [c_void_p, c_size_t],
    "bd_cache_create": [c_void_p, c_int64, POINTER(c_void_p)],
    "bd_cache_destroy": [c_void_p],
    "bd_cache_sequences": [c_void_p, POINTER(c_int64)],
    "bd_cache_lengths": [c_void_p, POINTER(c_int64), c_size_t],
    "bd_cache_truncate": [c_void_p, c_int64, c_int64],
    "bd_cache_reorder": [c_void_p, POINTER(c_int64), c_size_t],
    "bd_cache_bytes": [c_void_p, POINTER(c_size_t)],
}


def declare_decoder(library: NativeLibrary) -> None:
    """Make the decoder's functions callable.

    Raises:
        NativeLibraryError: the library has no decoder.
    """
    library.declare(_SIGNATURES)


def _destroy(library: NativeLibrary, name: str, pointer: int | None, _kept_alive: object) -> None:
    library.status(name, pointer)  # returns nothing


def _destroy_with(owner: object, library: NativeLibrary, name: str, pointer: int | None, kept_alive: object) -> None:
    """Destroy a handle when its owner goes, but not when the process ends: a daemon thread may be computing with it then."""
    weakref.finalize(owner, _destroy, library, name, pointer, kept_alive).atexit = False


class DecoderHandle:
    """A `bd_decoder`.

    Args:
        library: with its decoder functions declared.
        config: description of the decoder; may go afterwards.
        borrowed: owners of the weights and tables, kept alive as long as the decoder.

    Raises:
        NativeLibraryError: the parts do not fit together.
    """

    def __init__(self, library: NativeLibrary, config: ConfigStruct, borrowed: object):
        pointer = c_void_p()
        library.call("decoder_create", ctypes.byref(config), ctypes.byref(pointer))
        self.library = library
        self.pointer = pointer.value
        # Here too: the registry of finalizers is emptied before daemon threads are stopped.
        self.borrowed = borrowed
        _destroy_with(self, library, "decoder_destroy", self.pointer, borrowed)

    def forward(
        self,
        cache: CacheHandle,
        tokens: tuple[int, int],
        sequences: int,
        output_index: tuple[int, int],
        output: int,
        out: tuple[int, int],
    ) -> int:
        """`bd_decoder_forward`: addresses (and counts) of int64 tokens, sequences and outputs, and of floats for them.

        Returns:
            The status: the caller knows what to say about it.
        """
        return self.library.status(
            "decoder_forward",
            self.pointer,
            cache.pointer,
            tokens[0],
            sequences,
            tokens[1],
            *output_index,
            output,
            *out,
        )


class CacheHandle:
    """A `bd_cache` of a number of empty sequences."""

    def __init__(self, decoder: DecoderHandle, sequences: int):
        pointer = c_void_p()
        self.library = decoder.library
        self.library.call("cache_create", decoder.pointer, sequences, ctypes.byref(pointer))
        self.pointer = pointer.value
        self.decoder = decoder
        # The finalizer holds the decoder, so that a cache always goes first.
        _destroy_with(self, self.library, "cache_destroy", self.pointer, decoder)

    @property
    def sequences(self) -> int:
        count = c_int64()
        self.library.call("cache_sequences", self.pointer, ctypes.byref(count))
        return count.value

    @property
    def lengths(self) -> list[int]:
        count = self.sequences
        lengths = (c_int64 * count)()
        self.library.call("cache_lengths", self.pointer, lengths, count)
        return list(lengths)

    @property
    def nbytes(self) -> int:
        return self.library.size("cache_bytes", self.pointer)

    def truncate(self, sequence: int, length: int) -> None:
        self.library.call("cache_truncate", self.pointer, sequence, length)

    def reorder(self, source: Sequence[int]) -> None:
        self.library.call("cache_reorder", self.pointer, (c_int64 * len(source))(*source), len(source))


__all__ = [
    "KV_FLOAT16",
    "KV_FLOAT32",
    "KV_INT8",
    "OUTPUT_GREATEST",
    "OUTPUT_HIDDEN",
    "OUTPUT_LOGITS",
    "TABLE_BFLOAT16",
    "TABLE_FLOAT16",
    "TABLE_FLOAT32",
    "TABLE_PACKED",
    "TABLE_SPLIT",
    "AdapterStruct",
    "CacheHandle",
    "ConfigStruct",
    "DecoderHandle",
    "ExpertStruct",
    "LayerStruct",
    "MixtureStruct",
    "NativeLibraryError",
    "NormStruct",
    "ProjectionStruct",
    "RopeStruct",
    "TableStruct",
    "declare_decoder",
]
