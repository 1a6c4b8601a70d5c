"""The torch operators `hf_bitdistill::*`: schema, fake kernel, gradient and CPU kernel of each, in one place.

Packed weights are opaque uint8 tensors made by the `*_pack` operators; they are for computing, not for storing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..quantization import INT4_GROUP
from . import native as n
from . import packed as form
from . import torch_reference as reference


_library = torch.library.Library("hf_bitdistill", "DEF")
_ops = torch.ops.hf_bitdistill
_threads: int | None = None


def set_num_threads(threads: int | None) -> None:
    """Threads of the native library; `None` (the default): as many as torch has."""
    global _threads
    if threads is not None and threads < 1:
        raise ValueError("threads must be at least 1")
    _threads = threads


def num_threads() -> int:
    return _threads or torch.get_num_threads()


def _native() -> n.NativeLibrary | None:
    library = n.library()
    if library is not None:
        library.set_threads(num_threads())
    return library


def _define(schema: str, kernel, fake) -> None:
    name = schema.split("(")[0]
    _library.define(schema)
    _library.impl(name, kernel, "CPU")
    torch.library.register_fake(f"hf_bitdistill::{name}", fake, lib=_library)


def _floats(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.to(torch.float32).contiguous()


def _pointer(t: Tensor | None) -> tuple[int | None, int]:
    return (None, 0) if t is None else (t.data_ptr(), t.numel())


def _describe(packed: Tensor, rows: int, cols: int, library: n.NativeLibrary) -> n.WeightInfo:
    info = library.describe(packed.data_ptr(), packed.numel())
    if (info.rows, info.cols) != (rows, cols):
        raise ValueError(f"the packed weight is {info.rows} x {info.cols}, the call asks for {rows} x {cols}")
    return info


def _contiguous_bytes(packed: Tensor) -> Tensor:
    if packed.dtype != torch.uint8 or packed.ndim != 1 or not packed.is_contiguous():
        raise ValueError("a packed weight is a contiguous 1-dimensional uint8 tensor")
    return packed if packed.data_ptr() % n.ALIGNMENT == 0 else packed.clone()


# ---- Packing --------------------------------------------------------------------------------------------------------


def _ternary_header(weight: Tensor, scale: Tensor, out_features: int, group_size: int, offset: Tensor | None):
    header = form.PackedWeight(
        form.TERNARY, out_features, weight.shape[1], group_size, has_row_offset=offset is not None
    )
    header.tensor_scale = scale.numel() == 1 and group_size == 0
    return header


def _ternary_pack(weight, weight_scale, out_features, group_size=0, row_offset=None):
    weight, scale, offset = weight.contiguous(), _floats(weight_scale), _floats(row_offset)
    if weight.dtype != torch.uint8 or weight.ndim != 2:
        raise ValueError("packed ternary storage is a uint8 matrix")
    library = _native()
    if library is None:
        return reference.ternary_pack(weight, scale, out_features, group_size, offset)
    shape = (out_features, weight.shape[1])
    size = library.size("ternary_packed_size", *shape, group_size, scale.numel(), offset is not None)
    out = torch.empty(size, dtype=torch.uint8)
    library.call(
        "ternary_pack", *_pointer(weight), *shape, *_pointer(scale), group_size, *_pointer(offset), *_pointer(out)
    )
    return out


def _int8_pack(weight, weight_scale):
    weight, scale = weight.contiguous(), _floats(weight_scale)
    if weight.dtype != torch.int8 or weight.ndim != 2:
        raise ValueError("int8 weights are an int8 matrix")
    library = _native()
    if library is None:
        return reference.int8_pack(weight, scale)
    out = torch.empty(library.size("int8_packed_size", *weight.shape), dtype=torch.uint8)
    library.call("int8_pack", *_pointer(weight), *weight.shape, *_pointer(scale), *_pointer(out))
    return out


def _int4_pack(weight, weight_scale, in_features):
    f16 = weight_scale.dtype == torch.float16
    weight, scale = weight.contiguous(), weight_scale.contiguous() if f16 else _floats(weight_scale)
    if weight.dtype != torch.uint8 or weight.ndim != 2:
        raise ValueError("int4 storage is a uint8 matrix")
    library = _native()
    if library is None:
        return reference.int4_pack(weight, scale, in_features)
    shape = (weight.shape[0], in_features)
    out = torch.empty(library.size("int4_packed_size", *shape, f16), dtype=torch.uint8)
    library.call("int4_pack", *_pointer(weight), *shape, *_pointer(scale), f16, *_pointer(out))
    return out


def _fake_int4_pack(weight, weight_scale, in_features):
    f16 = weight_scale.dtype == torch.float16
    header = form.PackedWeight(form.INT4, weight.shape[0], in_features, INT4_GROUP, scale_is_f16=f16)
    return weight.new_empty(header.layout.total, dtype=torch.uint8)


_define(
    "ternary_pack(Tensor weight, Tensor weight_scale, int out_features, int group_size=0, Tensor? row_offset=None) -> Tensor",
    _ternary_pack,
    lambda weight, weight_scale, out_features, group_size=0, row_offset=None: weight.new_empty(
        _ternary_header(weight, weight_scale, out_features, group_size, row_offset).layout.total
    ),
)
_define(
    "int8_pack(Tensor weight, Tensor weight_scale) -> Tensor",
    _int8_pack,
    lambda weight, weight_scale: weight.new_empty(
        form.PackedWeight(form.INT8, *weight.shape).layout.total, dtype=torch.uint8
    ),
)
_define("int4_pack(Tensor weight, Tensor weight_scale, int in_features) -> Tensor", _int4_pack, _fake_int4_pack)


# ---- Products -------------------------------------------------------------------------------------------------------


def _packed_linear(x, weight, out_features, bias=None, norm_weight=None, norm_eps=1e-6):
    weight = _contiguous_bytes(weight)
    bias, norm_weight = _floats(bias), _floats(norm_weight)
    values = x.contiguous()
    if values.dtype not in (torch.float32, torch.bfloat16):
        values = values.float()
    if values.numel() == 0:
        return x.new_empty((*x.shape[:-1], out_features))
    library = _native()
    if library is None:
        return reference.linear(values, weight, out_features, bias, norm_weight, norm_eps).to(x.dtype)
    out = torch.empty((*x.shape[:-1], out_features), dtype=torch.float32)
    dtype = n.FLOAT32 if values.dtype == torch.float32 else n.BFLOAT16
    tokens = values.numel() // values.shape[-1]
    status = library.linear(
        *_pointer(weight),
        *_pointer(values),
        dtype,
        tokens,
        *_pointer(norm_weight),
        norm_eps,
        *_pointer(bias),
        *_pointer(out),
    )
    if status != 0:
        _describe(weight, out_features, x.shape[-1], library)  # the error that says more, if it is this one
        library.check(status, "packed_linear")
    return out if x.dtype == torch.float32 else out.to(x.dtype)


def _fake_linear(x, weight, out_features, bias=None, norm_weight=None, norm_eps=1e-6):
    return x.new_empty((*x.shape[:-1], out_features))


def _save_for_backward(ctx, inputs, output):
    x, weight, ctx.out_features, bias, norm_weight, ctx.norm_eps = inputs
    ctx.save_for_backward(x, weight, bias, norm_weight)


def _linear_backward(ctx, grad):
    """As if nothing had been rounded (straight through), for adapters trained beside packed weights."""
    x, weight, bias, norm_weight = ctx.saved_tensors
    rows = torch.arange(ctx.out_features)
    dense = _ops.packed_embedding(rows, weight, x.shape[-1])
    inputs = [t.detach().requires_grad_() if t is not None else None for t in (x, bias, norm_weight)]
    with torch.enable_grad():
        h = inputs[0].float()
        if norm_weight is not None:
            h = F.rms_norm(h, h.shape[-1:], inputs[2].float(), ctx.norm_eps)
        y = F.linear(h, dense, None if bias is None else inputs[1].float())
    # Arguments at the end that have their defaults are left out of the call.
    needs = (*ctx.needs_input_grad, False, False, False)
    wanted = [t for t, needed in zip(inputs, (needs[i] for i in (0, 3, 4)), strict=True) if needed]
    grads = iter(torch.autograd.grad(y, wanted, grad.float()))
    return (
        next(grads) if needs[0] else None,
        None,
        None,
        next(grads) if needs[3] else None,
        next(grads) if needs[4] else None,
        None,
    )


_define(
    "packed_linear(Tensor x, Tensor weight, int out_features, Tensor? bias=None, Tensor? norm_weight=None, "
    "float norm_eps=1e-6) -> Tensor",
    _packed_linear,
    _fake_linear,
)
torch.library.register_autograd(
    "hf_bitdistill::packed_linear", _linear_backward, setup_context=_save_for_backward, lib=_library
)


def _packed_embedding(index, weight, embedding_dim):
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


def _quantize_activations(x, norm_weight=None, norm_eps=1e-6):
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
        dtype = n.FLOAT32 if values.dtype == torch.float32 else n.BFLOAT16
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


def _packed_matmul_int32(x_q, weight, out_features, groups):
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


_define(
    "packed_embedding(Tensor index, Tensor weight, int embedding_dim) -> Tensor",
    _packed_embedding,
    lambda index, weight, embedding_dim: index.new_empty((*index.shape, embedding_dim), dtype=torch.float32),
)
_define(
    "quantize_activations(Tensor x, Tensor? norm_weight=None, float norm_eps=1e-6) -> (Tensor, Tensor)",
    _quantize_activations,
    lambda x, norm_weight=None, norm_eps=1e-6: (
        x.new_empty(x.shape, dtype=torch.int8),
        x.new_empty(x.shape[:-1], dtype=torch.float32),
    ),
)
_define(
    "packed_matmul_int32(Tensor x_q, Tensor weight, int out_features, int groups) -> Tensor",
    _packed_matmul_int32,
    lambda x_q, weight, out_features, groups: x_q.new_empty(
        (*x_q.shape[:-1], out_features, groups), dtype=torch.int32
    ),
)
