"""Watching what the layers of a model compute on a few batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from .batch_layout import BatchReader
from .teacher.teacher_model import model_inputs


Observer = Callable[[Tensor, Tensor, Tensor | None], Tensor | None]
"""Called with a layer's first argument, its output, and the batch's attention mask `[B, T]`; what it returns, if not `None`,
takes the place of the output."""


def observe(
    model: nn.Module, observers: Mapping[nn.Module, Observer], batches: Iterable[Mapping[str, Any]], purpose: str
) -> None:
    """Run a model, in evaluation mode, on batches while observers watch some of its layers. Nothing stays on the model.

    Its head is left out if nothing in it is watched: logits of a whole batch would be the largest tensor by far.

    Args:
        model: on any device; the batches are moved there.
        observers: by layer.
        batches: model inputs: mappings with `input_ids` `[B, T]` int64 and optionally `attention_mask` `[B, T]`, padded on either side
            or packed; `labels` are ignored.
        purpose: what is done, for the error.

    Raises:
        ValueError: `batches` is empty, or one does not fit the model.
    """
    device = next(model.parameters()).device
    body = model.base_model if isinstance(model, PreTrainedModel) else model
    forward = body if set(observers) <= set(body.modules()) else model
    mask: Tensor | None = None
    reader = BatchReader({"model": model})
    # The reader tries the model on batches of an unusual layout: nobody watches then.
    watching = False
    training = model.training
    model.eval()
    seen = 0
    with ExitStack() as stack:
        stack.callback(model.train, training)
        for layer, observer in observers.items():

            def hook(_, args, output, observer=observer):
                return observer(args[0], output, mask) if watching else None

            stack.callback(layer.register_forward_hook(hook).remove)
        for batch in batches:
            batch = reader(batch, device)
            mask, watching = batch.get("attention_mask"), True
            forward(**model_inputs(forward, batch, None))
            watching = False
            seen += 1
    if not seen:
        raise ValueError(f"{purpose} needs at least one batch.")


def token_rows(values: Tensor, mask: Tensor | None) -> Tensor:
    """What a layer reads or writes, `[..., C]`, as one row a token, `[N, C]`; padding is left out where the mask fits."""
    rows = values.reshape(-1, values.shape[-1])
    if mask is not None and mask.numel() == rows.shape[0]:
        rows = rows[mask.reshape(-1).bool().to(rows.device)]
    return rows
