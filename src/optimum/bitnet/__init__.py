"""Ternary (BitNet b1.58) models on the native CPU decoder of hf-bitdistill, behind the classes of Optimum."""

from typing import TYPE_CHECKING

from hf_bitdistill.modules.lazy import attach as _attach


__getattr__, __dir__ = _attach(
    __name__,
    {
        "BitNetCache": "cache",
        "BitNetModelForCausalLM": "modeling_decoder",
        "BitNetModelForSequenceClassification": "modeling_classification",
        "pipeline": "pipelines",
    },
)

if TYPE_CHECKING:
    from .cache import BitNetCache
    from .modeling_classification import BitNetModelForSequenceClassification
    from .modeling_decoder import BitNetModelForCausalLM
    from .pipelines import pipeline

__all__ = ["BitNetCache", "BitNetModelForCausalLM", "BitNetModelForSequenceClassification", "pipeline"]
