"""What an imported student answers: kept beside it for `verify`, and compared with what it answers without rounded activations."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from ..evaluation.batching import evaluating
from ..nn import TernaryLinear
from ..verify.reference import answers_beside, answers_of, deviation, logits_of_model, prompts, write_reference


@dataclass(frozen=True)
class ActivationCost:
    """What rounding activations to 8 bits changes, on the prompts of `verify`.

    Attributes:
        distance: of the largest logits, root mean square in units of the spread of the logits, the median over positions.
        same: share of positions with the same first choice.
    """

    distance: float
    same: float

    def __str__(self) -> str:
        return f"moves the logits by {self.distance:.2g} of their spread and leaves {100 * self.same:.0f} % of the first choices"


def keep_answers(folder: Path, tokenizer: PreTrainedTokenizerBase | None, compare: bool) -> ActivationCost | None:
    """Load a packed student from the folder it was written to, and keep what it answers there.

    Args:
        compare: whether to compute the answers with activations in floats too; of a student whose activations are rounded.
    """
    with tempfile.TemporaryDirectory() as scratch:
        # Under a name of its own: that of a folder of which nobody knows yet whether it will be complete means an interrupted save.
        link = Path(scratch) / "model"
        link.symlink_to(Path(folder).resolve(), target_is_directory=True)
        model = AutoModelForCausalLM.from_pretrained(link, dtype=torch.float32).eval()
        write_reference(folder, model, tokenizer)
        return activation_cost(model, tokenizer) if compare else None


def activation_cost(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> ActivationCost:
    """Compare a packed student in float32 with itself when its activations stay in floats."""
    given = prompts(model.config.get_text_config().vocab_size, tokenizer)
    with _float_activations(model):
        expected = answers_of(model, given)
    with evaluating(model):
        found = answers_beside(logits_of_model(model), expected)
    return ActivationCost(*deviation(expected, found))


@contextmanager
def _float_activations(model: PreTrainedModel) -> Iterator[None]:
    layers = [module for module in model.modules() if isinstance(module, TernaryLinear)]
    bits = [layer.activation_bits for layer in layers]
    for layer in layers:
        layer.activation_bits = None
    try:
        yield
    finally:
        for layer, before in zip(layers, bits, strict=True):
            layer.activation_bits = before
