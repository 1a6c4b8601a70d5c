"""The life of a decoder and a cache in the native library."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from ctypes import c_int64, c_void_p

from ..ops.binding import NativeLibrary
from ..ops.c_header import ConfigStruct


def _destroy(library: NativeLibrary, name: str, pointer: int | None, _kept_alive: object) -> None:
    library.status(name, pointer)  # returns nothing


def _destroy_with(owner: object, library: NativeLibrary, name: str, pointer: int | None, kept_alive: object) -> None:
    """Destroy a handle when its owner goes, but not when the process ends: a daemon thread may be computing with it then."""
    weakref.finalize(owner, _destroy, library, name, pointer, kept_alive).atexit = False


class DecoderHandle:
    """A `bd_decoder`.

    Args:
        library: the native library.
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
