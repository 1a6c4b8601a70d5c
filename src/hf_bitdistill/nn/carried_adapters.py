"""Whether a model carries adapters, told without importing PEFT."""

from __future__ import annotations

from typing import Any

from torch import nn


# What PEFT's layers, and its copies of modules that are trained as a whole (`modules_to_save`), call what they stand for.
_WRAPPED = ("base_layer", "original_module")


def adapted_modules(model: nn.Module) -> list[str]:
    """Names of the modules of `model` that PEFT has put a layer around, by whatever way it was injected."""
    return [
        name
        for name, module in model.named_modules()
        if any(child in _WRAPPED for child, _ in module.named_children())
    ]


def without_adapters(model: nn.Module) -> Any:
    """The model of transformers that a `PeftModel` is around; any other model itself."""
    outer: Any = model
    return outer.get_base_model() if hasattr(outer, "get_base_model") else outer
