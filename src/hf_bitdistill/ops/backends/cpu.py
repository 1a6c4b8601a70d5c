"""The operators on CPUs: the native library, or plain torch where there is none."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .. import binding as n
from .. import c_header as c
from .. import torch_reference as reference
from ..layout_source import Source
from ..operators import MAX_COLUMNS, implement, num_threads
from . import default


def _native() -> n.NativeLibrary | None:
    library = n.library()
    if library is not None:
        library.set_threads(num_threads())
    return library


def _floats(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.to(torch.float32).contiguous()


def _pointer(t: Tensor | None) -> tuple[int | None, int]:
    return (None, 0) if t is None else (t.data_ptr(), t.numel())


def _describe(packed: Tensor, rows: int, cols: int, library: n.NativeLibrary) -> c.WeightInfo:
    info = library.describe(packed.data_ptr(), packed.numel())
    if (info.rows, info.cols) != (rows, cols):
        raise ValueError(f"the packed weight is {info.rows} x {info.cols}, the call asks for {rows} x {cols}")
    return info


def _contiguous_bytes(packed: Tensor) -> Tensor:
    if packed.dtype != torch.uint8 or packed.ndim != 1 or not packed.is_contiguous():
        raise ValueError("a packed weight is a contiguous 1-dimensional uint8 tensor")
    return packed if packed.data_ptr() % c.ALIGNMENT == 0 else packed.clone()


@implement("ternary_pack", "CPU")
def ternary_pack(weight, weight_scale, out_features, group_size=0):
    weight, scale = weight.contiguous(), weight_scale.float().contiguous()
    if weight.dtype != torch.uint8 or weight.ndim != 2:
        raise ValueError("packed ternary storage is a uint8 matrix")
    library = _native()
    if library is None:
        return reference.ternary_pack(weight, scale, out_features, group_size)
    shape = (out_features, weight.shape[1])
    size = library.size("ternary_packed_size", *shape, group_size, scale.numel())
    out = torch.empty(size, dtype=torch.uint8)
    library.call("ternary_pack", *_pointer(weight), *shape, *_pointer(scale), group_size, *_pointer(out))
    return _dense(out, library) if library.packs_densely(*shape) else out


def _dense(packed: Tensor, library: n.NativeLibrary) -> Tensor:
    """A packed ternary weight with five weights in a byte, if that makes it smaller."""
    size = library.size("ternary_dense_size", *_pointer(packed))
    if size == 0:
        return packed
    out = torch.empty(size, dtype=torch.uint8)
    library.call("ternary_dense_pack", *_pointer(packed), *_pointer(out))
    return out


@implement("int8_pack", "CPU")
def int8_pack(weight, weight_scale):
    weight, scale = weight.contiguous(), weight_scale.float().contiguous()
    if weight.dtype != torch.int8 or weight.ndim != 2:
        raise ValueError("int8 weights are an int8 matrix")
    library = _native()
    if library is None:
        return reference.int8_pack(weight, scale)
    out = torch.empty(library.size("int8_packed_size", *weight.shape), dtype=torch.uint8)
    library.call("int8_pack", *_pointer(weight), *weight.shape, *_pointer(scale), *_pointer(out))
    return out


@implement("int4_pack", "CPU")
def int4_pack(weight, weight_scale, in_features):
    weight, scale = weight.contiguous(), weight_scale.contiguous()
    if weight.dtype != torch.uint8 or weight.ndim != 2:
        raise ValueError("int4 storage is a uint8 matrix")
    if scale.dtype != torch.float16:
        raise ValueError(f"int4 scales are float16, not {scale.dtype}: convert them first (weight_scale.half())")
    library = _native()
    if library is None:
        return reference.int4_pack(weight, scale, in_features)
    shape = (weight.shape[0], in_features)
    out = torch.empty(library.size("int4_packed_size", *shape), dtype=torch.uint8)
    library.call("int4_pack", *_pointer(weight), *shape, *_pointer(scale), *_pointer(out))
    return out


@implement("packed_linear", "CPU")
def packed_linear(x, weight, out_features, bias=None, norm_weight=None, norm_eps=1e-6):
    return _linear(x, weight, out_features, bias, norm_weight, norm_eps, x.dtype)


def _linear(x, weight, out_features, bias, norm_weight, norm_eps, dtype):
    weight = _contiguous_bytes(weight)
    bias, norm_weight = _floats(bias), _floats(norm_weight)
    values = x.contiguous()
    if values.dtype not in (torch.float32, torch.bfloat16):
        values = values.float()
    if values.numel() == 0:
        return x.new_empty((*x.shape[:-1], out_features), dtype=dtype)
    library = _native()
    if library is None:
        return reference.linear(values, weight, out_features, bias, norm_weight, norm_eps).to(dtype)
    out = torch.empty((*x.shape[:-1], out_features), dtype=torch.float32)
    kind = c.FLOAT32 if values.dtype == torch.float32 else c.BFLOAT16
    tokens = values.numel() // values.shape[-1]
    status = library.linear(
        *_pointer(weight),
        *_pointer(values),
        kind,
        tokens,
        *_pointer(norm_weight),
        norm_eps,
        *_pointer(bias),
        *_pointer(out),
    )
    if status != 0:
        _describe(weight, out_features, x.shape[-1], library)  # the error that says more, if it is this one
        library.check(status, "packed_linear")
    return out if dtype == torch.float32 else out.to(dtype)


@implement("packed_embedding", "CPU")
def packed_embedding(index, weight, embedding_dim):
    weight, index = _contiguous_bytes(weight), index.to(torch.int64).contiguous()
    library = _native()
    if library is None:
        return reference.embedding(index, weight, embedding_dim)
    out = torch.empty((*index.shape, embedding_dim), dtype=torch.float32)
    if index.numel():
        status = library.status("embedding", *_pointer(weight), *_pointer(index), *_pointer(out))
        if status != 0:
            # The error that says more, if it is this one.
            reference.check_tokens(index, library.describe(weight.data_ptr(), weight.numel()).rows)
            library.check(status, "embedding")
    return out


@implement("quantize_activations", "CPU")
def quantize_activations(x, norm_weight=None, norm_eps=1e-6):
    values = x.contiguous()
    if values.dtype not in (torch.float32, torch.bfloat16):
        values = values.float()
    norm_weight = _floats(norm_weight)
    library = _native()
    if library is None:
        return reference.quantize_activations(values, norm_weight, norm_eps)
    x_q = torch.empty(x.shape, dtype=torch.int8)
    s = torch.empty(x.shape[:-1], dtype=torch.float32)
    if x.numel():
        dtype = c.FLOAT32 if values.dtype == torch.float32 else c.BFLOAT16
        shape = (s.numel(), x.shape[-1])
        library.call(
            "quantize_activations",
            *_pointer(values),
            dtype,
            *shape,
            *_pointer(norm_weight),
            norm_eps,
            *_pointer(x_q),
            *_pointer(s),
        )
    return x_q, s


@implement("packed_matmul_int32", "CPU")
def packed_matmul_int32(x_q, weight, out_features, groups):
    weight, x_q = _contiguous_bytes(weight), x_q.contiguous()
    if x_q.dtype != torch.int8:
        raise ValueError("x_q must be int8")
    library = _native()
    if library is None:
        return reference.matmul_int32(x_q, weight, out_features, groups)
    if _describe(weight, out_features, x_q.shape[-1], library).groups != groups:
        raise ValueError(f"the packed weight has another number of groups than {groups}")
    acc = torch.empty((*x_q.shape[:-1], out_features, groups), dtype=torch.int32)
    if x_q.numel():
        library.call("matmul_int32", *_pointer(weight), *_pointer(x_q), x_q.numel() // x_q.shape[-1], *_pointer(acc))
    return acc


# ---- What a checkpoint stores ---------------------------------------------------------------------------------------

# Layouts by the tensor they were made of, as long as that exists.
_layouts = WeakTensorKeyDictionary()


def _layout(weight: Tensor, weight_scale: Tensor, make: Callable[[], Tensor]) -> Tensor:
    source, packed = _layouts.get(weight, (None, None))
    if source is None or not source.is_still(weight, weight_scale):
        packed = make()
        _layouts[weight] = Source(weight, weight_scale), packed
    return packed


@implement("ternary_linear", "CPU")
def ternary_linear(x, weight, weight_scale, out_features, bias=None, group_size=None, activation_bits=8, dtype=None):
    if activation_bits is None or x.shape[-1] > MAX_COLUMNS:
        arguments = (out_features, bias, group_size, activation_bits, dtype)
        return default.ternary_linear(x, weight, weight_scale, *arguments)
    packed = _layout(
        weight, weight_scale, lambda: ternary_pack(weight, weight_scale.reshape(-1), out_features, group_size or 0)
    )
    return _linear(x, packed, out_features, bias, None, 1e-6, dtype or x.dtype)


def _table(weight: Tensor, weight_scale: Tensor, columns: int) -> Tensor:
    if weight.dtype == torch.int8:
        return _layout(weight, weight_scale, lambda: int8_pack(weight, weight_scale))
    return _layout(weight, weight_scale, lambda: int4_pack(weight, weight_scale, columns))


@implement("table_linear", "CPU")
def table_linear(x, weight, weight_scale, bias=None):
    return packed_linear(x, _table(weight, weight_scale, x.shape[-1]), weight.shape[0], bias)


@implement("table_embedding", "CPU")
def table_embedding(index, weight, weight_scale, embedding_dim):
    return packed_embedding(index, _table(weight, weight_scale, embedding_dim), embedding_dim)
