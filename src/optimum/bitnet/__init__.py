"""Ternary (BitNet b1.58) models on the native CPU decoder of hf-bitdistill, behind the classes of Optimum."""

from importlib import import_module
from typing import TYPE_CHECKING


_LAZY = {
    "BitNetCache": "cache",
    "BitNetModelForCausalLM": "modeling_decoder",
    "BitNetModelForSequenceClassification": "modeling_classification",
    "pipeline": "pipelines",
}

if TYPE_CHECKING:
    from .cache import BitNetCache
    from .modeling_classification import BitNetModelForSequenceClassification
    from .modeling_decoder import BitNetModelForCausalLM
    from .pipelines import pipeline

__all__ = ["BitNetCache", "BitNetModelForCausalLM", "BitNetModelForSequenceClassification", "pipeline"]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_LAZY])
