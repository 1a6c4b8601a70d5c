"""What the evaluations share: padding, the model's evaluation mode, and its forward pass."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import nn

from ..nn import kernels_while_evaluating
from ..nn.carried_adapters import without_adapters


Result = TypeVar("Result")


def pad_batch(
    sequences: Sequence[Sequence[int]], pad_id: int, side: str, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pads token id lists to one length.

    Args:
        sequences: ``B`` non-empty lists of token ids.
        pad_id: Token id of padding; the mask, not this id, marks padding.
        side: ``"right"`` or ``"left"``.
        device: Where the tensors go.

    Returns:
        ``input_ids`` and ``attention_mask``, int64 ``[B, T]`` with ``T`` the longest length.
    """
    longest = max(len(ids) for ids in sequences)
    input_ids = torch.full((len(sequences), longest), pad_id, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(sequences):
        where = slice(0, len(ids)) if side == "right" else slice(longest - len(ids), longest)
        input_ids[row, where] = torch.tensor(ids, dtype=torch.long)
        mask[row, where] = 1
    return input_ids.to(device), mask.to(device)


def longest_first(sequences: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Batches of rows of like length, the longest first: what does not fit the memory fails at once.

    Args:
        sequences: token ids, by row.
        size: rows a batch, at most.

    Returns:
        The rows' numbers.
    """
    order = sorted(range(len(sequences)), key=lambda row: -len(sequences[row]))
    return [order[start : start + size] for start in range(0, len(order), size)]


def in_order(batches: Sequence[Sequence[int]], parts: Sequence[Sequence[Result]]) -> list[Result]:
    """The results of batches of row numbers, which have each row once, by row."""
    found = dict(zip(chain.from_iterable(batches), chain.from_iterable(parts), strict=True))
    return [found[row] for row in range(len(found))]


def padding_id(tokenizer) -> int:
    """The id to pad with: the padding token, else end-of-text, else 0."""
    if tokenizer.pad_token_id is not None:
        return tokenizer.pad_token_id
    return tokenizer.eos_token_id if tokenizer.eos_token_id is not None else 0


def model_device(model: Any) -> torch.device:
    """The device a model takes its inputs on."""
    device = getattr(model, "device", None)
    if device is not None:
        return torch.device(device)
    first = next(iter(model.parameters()), None)
    return torch.device("cpu") if first is None else first.device


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards the model is as it was before."""
    was_training = bool(getattr(model, "training", False))
    if was_training:
        model.eval()
    try:
        # no_grad and not inference_mode: what a model caches meanwhile (rotary tables, quantized weights) must remain
        # usable when training goes on.
        with torch.no_grad(), kernels_while_evaluating(model) if isinstance(model, nn.Module) else nullcontext():
            yield
    finally:
        if was_training:
            model.train()


def forward_logits(
    model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, keep: int | None = None
) -> torch.Tensor:
    """Logits of a causal LM at the last ``keep`` positions.

    Args:
        model: Any causal LM.
        input_ids: int64 ``[B, T]``.
        attention_mask: int64 ``[B, T]``.
        keep: How many positions from the end are needed. Models that can (``logits_to_keep``) then compute no
            others, which saves most of the memory when the vocabulary is large. None: all.

    Returns:
        ``[B, keep, V]`` in the model's dtype.
    """
    keep = input_ids.shape[1] if keep is None else keep
    # A PEFT model's own signature is (*args, **kwargs): what it accepts is what the model inside accepts.
    inner = without_adapters(model)
    parameters = inspect.signature(inner.forward).parameters
    options = {name: value for name, value in (("logits_to_keep", keep), ("use_cache", False)) if name in parameters}
    logits = model(input_ids=input_ids, attention_mask=attention_mask, **options).logits
    return logits[:, -keep:]


@contextmanager
def dataset_progress(enabled: bool) -> Iterator[None]:
    """Hides the progress bars of ``datasets`` unless ``enabled``; its setting is restored afterwards."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hide = not enabled and not are_progress_bars_disabled()
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            enable_progress_bars()


def check_finite(values: torch.Tensor, what: str) -> None:
    """Refuses results that would silently turn into a score.

    Raises:
        FloatingPointError: If a value is NaN or infinite.
    """
    if not torch.isfinite(values).all():
        raise FloatingPointError(f"the model's {what} are not finite (NaN or infinity)")
