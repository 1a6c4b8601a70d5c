"""`csrc/bitdistill.h` in Python: its constants, structures and functions, in its order.

A test reads the header and compares every name, type and value with this file; [`check_layout`] compares sizes and offsets with those that the
compiler of a library gave them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from ctypes import POINTER, c_char_p, c_double, c_float, c_int, c_int32, c_int64, c_size_t, c_void_p
from typing import NamedTuple


ABI_VERSION = 9
ALIGNMENT = 64
NORM_TOKENS = 64
MAX_THREADS = 256
"""More are refused. Nothing here gains by as many."""

ERROR_ARGUMENT, ERROR_CODE, ERROR_SCALE, ERROR_ISA, ERROR_OUT_OF_MEMORY = 5, 6, 7, 10, 11
FLOAT32, BFLOAT16, FLOAT16, SCALED_INT8 = 0, 1, 2, 3
TERNARY, INT8, INT4, TERNARY_DENSE = 0, 1, 2, 3
TABLE_PACKED, TABLE_FLOAT32, TABLE_BFLOAT16, TABLE_FLOAT16, TABLE_SPLIT = 0, 1, 2, 3, 4
SILU, GELU, GELU_TANH, RELU, RELU_SQUARED = 0, 1, 2, 3, 4
OUTPUT_LOGITS, OUTPUT_HIDDEN, OUTPUT_GREATEST = 0, 1, 2


# ---- Structures -----------------------------------------------------------------------------------------------------
# Pointers to numbers are plain addresses (`Tensor.data_ptr()`).


class WeightInfo(ctypes.Structure):
    """`bd_weight_info`."""

    _fields_ = [
        ("format", c_int32),
        ("tensor_scale", c_int32),
        ("rows", c_int64),
        ("cols", c_int64),
        ("group_size", c_int64),
        ("groups", c_int64),
    ]


class LayoutRow(ctypes.Structure):
    """`bd_layout_row`."""

    _fields_ = [("structure", c_char_p), ("field", c_char_p), ("offset", c_size_t), ("bytes", c_size_t)]


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


STRUCTURES: dict[str, type[ctypes.Structure]] = {
    "bd_weight_info": WeightInfo,
    "bd_layout_row": LayoutRow,
    "bd_norm": NormStruct,
    "bd_table": TableStruct,
    "bd_adapter": AdapterStruct,
    "bd_projection": ProjectionStruct,
    "bd_rope": RopeStruct,
    "bd_expert": ExpertStruct,
    "bd_mixture": MixtureStruct,
    "bd_layer": LayerStruct,
    "bd_decoder_config": ConfigStruct,
}


class Place(NamedTuple):
    """Where a field lies in its structure; without a field, the structure as a whole."""

    structure: str
    field: str
    offset: int
    bytes: int

    def __str__(self) -> str:
        if not self.field:
            return f"{self.structure} has {self.bytes} bytes"
        return f"{self.structure}.{self.field} has {self.bytes} bytes at offset {self.offset}"


def expected_layout() -> Iterator[Place]:
    """The places in the structures above, those of a structure in a row."""
    for name, structure in STRUCTURES.items():
        yield Place(name, "", 0, ctypes.sizeof(structure))
        for field, *_ in structure._fields_:
            place = getattr(structure, field)
            yield Place(name, field, place.offset, place.size)


def read_layout(library: ctypes.CDLL) -> list[Place]:
    """The places in the structures of a library, of which [`ABI_VERSION`] is the version: what its rows are is not asked again."""
    rows, count = POINTER(LayoutRow)(), c_size_t()
    library.bd_layout(ctypes.byref(rows), ctypes.byref(count))
    return [Place(row.structure.decode(), row.field.decode(), row.offset, row.bytes) for row in rows[: count.value]]


def check_layout(found: list[Place]) -> None:
    """Compare what [`read_layout`] found with the structures above.

    Raises:
        ValueError: they differ; names the first structure and field, and how.
    """
    expected = list(expected_layout())
    if found == expected:
        return
    for there, here in zip(found, expected, strict=False):
        if there != here:
            raise ValueError(f"{there} in the library, but {here} in this package")
    longer, where = (found, "the library") if len(found) > len(expected) else (expected, "this package")
    raise ValueError(f"{longer[min(len(found), len(expected))]} in {where} alone")


# ---- Functions ------------------------------------------------------------------------------------------------------
# Pointers are passed as plain addresses: building typed pointers costs more than small layers do. Typed ones are those that a value comes
# back through.

_BYTES, _SIZE = [c_void_p, c_size_t], POINTER(c_size_t)  # a buffer and how much it holds

SIGNATURES: dict[str, tuple[type | None, list]] = {
    "bd_abi_version": (c_int, []),
    "bd_version": (c_char_p, []),
    "bd_strerror": (c_char_p, [c_int]),
    "bd_layout": (c_int, [POINTER(POINTER(LayoutRow)), _SIZE]),
    "bd_get_isa": (c_int, [POINTER(c_char_p)]),
    "bd_set_isa": (c_int, [c_char_p]),
    "bd_supported_isas": (POINTER(c_char_p), []),
    "bd_set_num_threads": (c_int, [c_int]),
    "bd_get_num_threads": (c_int, []),
    "bd_set_team": (c_int, [c_void_p]),
    "bd_ternary_packed_size": (c_int, [c_int64, c_int64, c_int64, c_size_t, _SIZE]),
    "bd_ternary_pack": (c_int, [*_BYTES, c_int64, c_int64, *_BYTES, c_int64, *_BYTES]),
    "bd_ternary_check": (c_int, [*_BYTES]),
    "bd_ternary_from_dense": (c_int, [*_BYTES, c_int64, c_int64, *_BYTES]),
    "bd_ternary_to_dense": (c_int, [*_BYTES, c_int64, c_int64, *_BYTES]),
    "bd_ternary_dense_is_fast": (c_int, [POINTER(c_int)]),
    "bd_ternary_dense_size": (c_int, [*_BYTES, _SIZE]),
    "bd_ternary_dense_pack": (c_int, [*_BYTES, *_BYTES]),
    "bd_int8_packed_size": (c_int, [c_int64, c_int64, _SIZE]),
    "bd_int8_pack": (c_int, [*_BYTES, c_int64, c_int64, *_BYTES, *_BYTES]),
    "bd_int4_packed_size": (c_int, [c_int64, c_int64, _SIZE]),
    "bd_int4_pack": (c_int, [*_BYTES, c_int64, c_int64, *_BYTES, *_BYTES]),
    "bd_table_pack_rows": (c_int, [c_int, *_BYTES, c_int, c_int64, c_int64, c_int64, c_int64, *_BYTES]),
    "bd_split_size": (c_int, [c_int64, c_int64, _SIZE]),
    "bd_split_begin": (c_int, [c_int64, *_BYTES, *_BYTES, *_BYTES]),
    "bd_split_pack_rows": (c_int, [*_BYTES, c_int64, *_BYTES]),
    "bd_weight_describe": (c_int, [*_BYTES, POINTER(WeightInfo)]),
    "bd_linear": (c_int, [*_BYTES, *_BYTES, c_int, c_int64, *_BYTES, c_float, *_BYTES, *_BYTES]),
    "bd_split_linear": (c_int, [*_BYTES, *_BYTES, c_int64, c_int, *_BYTES]),
    "bd_embedding": (c_int, [*_BYTES, *_BYTES, *_BYTES]),
    "bd_quantize_activations": (c_int, [*_BYTES, c_int, c_int64, c_int64, *_BYTES, c_float, *_BYTES, *_BYTES]),
    "bd_matmul_int32": (c_int, [*_BYTES, *_BYTES, c_int64, *_BYTES]),
    "bd_train_quantize": (c_int, [*_BYTES, c_int, c_int64, c_int64, *_BYTES, c_int, *_BYTES]),
    "bd_train_ternarize": (c_int, [*_BYTES, c_int, c_int64, c_int64, *_BYTES, *_BYTES, c_int]),
    "bd_train_scale": (c_int, [*_BYTES, c_int, c_int64, c_int64, *_BYTES, *_BYTES, *_BYTES, c_int]),
    "bd_train_norm": (c_int, [*_BYTES, c_int, c_int64, c_int64, *_BYTES, c_float, *_BYTES, *_BYTES]),
    "bd_train_norm_backward": (
        c_int,
        [*_BYTES, *_BYTES, c_int, c_int64, c_int64, *_BYTES, *_BYTES, *_BYTES, *_BYTES],
    ),
    "bd_decoder_create": (c_int, [POINTER(ConfigStruct), POINTER(c_void_p)]),
    "bd_decoder_destroy": (None, [c_void_p]),
    "bd_cache_create": (c_int, [c_void_p, c_int64, POINTER(c_void_p)]),
    "bd_cache_destroy": (None, [c_void_p]),
    "bd_cache_sequences": (c_int, [c_void_p, POINTER(c_int64)]),
    "bd_cache_lengths": (c_int, [c_void_p, POINTER(c_int64), c_size_t]),
    "bd_cache_truncate": (c_int, [c_void_p, c_int64, c_int64]),
    "bd_cache_reorder": (c_int, [c_void_p, POINTER(c_int64), c_size_t]),
    "bd_cache_bytes": (c_int, [c_void_p, _SIZE]),
    "bd_decoder_forward": (c_int, [c_void_p, c_void_p, c_void_p, c_void_p, c_size_t, *_BYTES, c_int, *_BYTES]),
    "bd_measure_read_bandwidth": (c_int, [*_BYTES, c_int, POINTER(c_double)]),
    "bd_measure_multiply_add": (c_int, [c_int, POINTER(c_double)]),
}
