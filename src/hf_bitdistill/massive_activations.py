"""Projections that write massive activations: `find_massive_projections`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .config import BitNetConfig
from .surgery import OUTPUT, find_projections, is_student


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

    A projection is named if its largest output (Euclidean norm of a token's) is at least `ratio` times the median one. In
    SmolLM2-135M these are three `down_proj` (817, 74 and 43 times; the next has 15); small models have none.

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
    names = [p.name for p in find_projections(model, config or BitNetConfig()) if p.role == OUTPUT]
    norms: dict[str, list[Tensor]] = {name: [] for name in names}
    mask: Tensor | None = None
    training = model.training
    model.eval()
    seen = 0
    with ExitStack() as stack:
        stack.callback(model.train, training)
        for name in names:

            def observe(_, __, output, norms=norms[name]):
                values = output.float().norm(dim=-1).flatten()
                if mask is not None and mask.numel() == values.numel():
                    values = values[mask.flatten().bool()]
                norms.append(values.cpu())

            stack.callback(model.get_submodule(name).register_forward_hook(observe).remove)
        for batch in batches:
            inputs = {key: value.to(model.device) for key, value in batch.items() if isinstance(value, Tensor)}
            inputs.pop("labels", None)
            mask = inputs.get("attention_mask")
            model(**inputs)
            seen += 1
    if not seen:
        raise ValueError("find_massive_projections needs at least one batch.")

    def is_massive(values: Tensor) -> bool:
        return bool(values.max() >= ratio * values.median())

    return [name for name in names if norms[name] and is_massive(torch.cat(norms[name]))]
