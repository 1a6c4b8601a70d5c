"""The two ways in which a packed student is loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def _transformers(folder: str) -> tuple[Any, str]:
    from transformers import AutoModelForCausalLM

    import hf_bitdistill  # noqa: F401 (registers the quantizer)

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), "transformers"


def _native(folder: str) -> tuple[Any, str]:
    from optimum.bitnet import BitNetModelForCausalLM

    # What is looked at is the checkpoint.
    model = BitNetModelForCausalLM.from_pretrained(folder, native_file=False)
    return model, "native" if model.model is None else "transformers"


#: Name -> function of a folder; returns the model, and what computes it.
LOADERS: dict[str, Callable[[str], tuple[Any, str]]] = {"transformers": _transformers, "native": _native}


def logits_of(model: Any) -> Callable[[list[int]], torch.Tensor]:
    """A function of token ids that returns a loaded model's logits, `[T, V]`."""

    def run(ids: list[int]) -> torch.Tensor:
        tokens = torch.tensor([ids])
        with torch.no_grad():
            return model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits[0]

    return run
