"""Projections that write massive activations: `find_massive_projections`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..config import BitNetConfig
from ..modeling.surgery import OUTPUT, find_projections, is_student
from .observation import Observer, observe, token_rows


@torch.no_grad()
def find_massive_projections(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Any]],
    ratio: float = 20.0,
    config: BitNetConfig | None = None,
) -> list[str]:
    """Output projections that write massive activations, for `BitNetConfig(modules_to_not_convert=...)`.

    In many models a few tokens, above all the first, have hidden states hundreds of times larger than the others', on which
    attention rests (*Massive Activations in Large Language Models*, arXiv 2402.17762). A few large weights of one or two projections write
    them; a SubLN bounds what it lets through and absmean rounds such weights down, so a ternary projection cannot.

    A projection is named if its largest output (Euclidean norm of a token's) is at least `ratio` times the median one: in
    SmolLM2-135M the `down_proj` of layers 2, 11 and 28. Fused experts are not looked at.

    Args:
        model: a full-precision model.
        batches: a few batches of model inputs: mappings with `input_ids` `[B, T]` int64 and optionally `attention_mask`
            `[B, T]` (padding is left out); `labels` are ignored.
        ratio: how much larger than the median.
        config: where the projections are, if the model does not say.

    Returns:
        Module names, in the order of the model.

    Raises:
        SurgeryError: the projections cannot be placed.
        ValueError: `batches` is empty, `ratio` is not above 1, or the model is a student.
    """
    if not ratio > 1:
        raise ValueError(f"ratio must be above 1, got {ratio}")
    if is_student(model):
        raise ValueError("find_massive_projections looks at the full-precision model, not at its student.")
    placed = find_projections(model, config or BitNetConfig())
    names = [p.name for p in placed if p.role == OUTPUT and not p.fused_in]
    norms: dict[str, list[Tensor]] = {name: [] for name in names}

    def collect(norms: list[Tensor]) -> Observer:
        def append(_, output: Tensor, mask: Tensor | None) -> None:
            norms.append(token_rows(output, mask).float().norm(dim=-1).cpu())

        return append

    observers = {model.get_submodule(name): collect(norms[name]) for name in names}
    observe(model, observers, batches, "find_massive_projections")

    def is_massive(values: Tensor) -> bool:
        return bool(values.max() >= ratio * values.median())

    return [name for name in names if norms[name] and is_massive(torch.cat(norms[name]))]
