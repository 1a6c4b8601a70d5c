"""The two ways in which a packed student is loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoConfig

from ..modeling.model_heads import auto_class, head_of, is_classifier


def _transformers(folder: str) -> tuple[Any, str]:
    import hf_bitdistill  # noqa: F401 (registers the quantizer)

    kind = auto_class(head_of(AutoConfig.from_pretrained(folder)))
    return kind.from_pretrained(folder, dtype=torch.float32).eval(), "transformers"


def _native(folder: str) -> tuple[Any, str]:
    from optimum.bitnet import BitNetModelForCausalLM, BitNetModelForSequenceClassification

    classifies = is_classifier(AutoConfig.from_pretrained(folder))
    kind = BitNetModelForSequenceClassification if classifies else BitNetModelForCausalLM
    # What is looked at is the checkpoint.
    model = kind.from_pretrained(folder, native_file=False)
    return model, "native" if model.model is None else "transformers"


#: Name -> function of a folder; returns the model, with the head that it was saved with, and what computes it.
LOADERS: dict[str, Callable[[str], tuple[Any, str]]] = {"transformers": _transformers, "native": _native}
