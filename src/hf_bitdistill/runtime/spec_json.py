"""A [`DecoderSpec`] as JSON, and back: the same description without the model that it was read from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from .families import DecoderSpec, Layer, Mixture, Mlp, Norm, Projection, Rope


def encode_spec(spec: DecoderSpec) -> list[Any]:
    """Lists, numbers, strings and `None`; a description is the list of its fields."""
    return _encode(spec)


def decode_spec(content: Any) -> DecoderSpec:
    """The inverse of [`encode_spec`].

    Raises:
        TypeError, ValueError: it is not what `encode_spec` gives.
    """
    values = _values(DecoderSpec, content)
    values["layers"] = tuple(_layer(each) for each in values["layers"])
    values["ropes"] = tuple(_rope(each) for each in values["ropes"])
    values["final_norm"] = _norm(values["final_norm"])
    return DecoderSpec(**values)


def _encode(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()  # (float32 -> double and back is exact)
    if isinstance(value, tuple):
        return [_encode(each) for each in value]
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    return [_encode(getattr(value, field.name)) for field in fields(value)]


def _values(kind: type, content: Any) -> dict[str, Any]:
    names = [field.name for field in fields(kind)]
    return dict(zip(names, content, strict=True))


def _or_none(make: Callable[[Any], Any], content: Any) -> Any:
    return None if content is None else make(content)


def _norm(content: Any) -> Norm:
    tensor, eps, offset = content
    return Norm(tensor, eps, offset)


def _projection(content: Any) -> Projection:
    # (Of a mixture there are thousands: no detour over names.)
    module, norm, ternary = content
    return Projection(module, None if norm is None else _norm(norm), ternary)


def _mlp(content: Any) -> Mlp:
    gate_up, down = content
    return Mlp(tuple(map(_projection, gate_up)), _projection(down))


def _mixture(content: Any) -> Mixture:
    values = _values(Mixture, content)
    return Mixture(**{**values, "router": _projection(values["router"])})


def _rope(content: Any) -> Rope:
    frequencies, scaling = content
    return Rope(torch.tensor(frequencies, dtype=torch.float32), scaling)


def _layer(content: Any) -> Layer:
    values = _values(Layer, content)
    for name in values:
        if name.endswith("_norm"):
            values[name] = _or_none(_norm, values[name])
    values["qkv"] = tuple(map(_projection, values["qkv"]))
    values["o"] = _projection(values["o"])
    values["mlps"] = tuple(map(_mlp, values["mlps"]))
    values["mixture"] = _or_none(_mixture, values["mixture"])
    return Layer(**values)
