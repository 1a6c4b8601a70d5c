"""One forward pass of a model: no more positions, states and logits than the terms of the loss read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..data.preprocessing import IGNORE_INDEX
from ..modeling.model_heads import Head
from .losses.head_tap import HeadTap, Take
from .losses.terms import LossTerm, Progress
from .teacher.teacher_model import forward_parameters, model_inputs
from .teacher.teacher_scores import TopLogits


class TeacherOutputs(NamedTuple):
    """Of a teacher; what no term wants is empty, and so are logits that were tapped."""

    logits: Tensor | TopLogits | None = None
    hidden: tuple[Tensor, ...] = ()
    width: int | None = None
    """Columns of its logits."""


def without(outputs: Any, *names: str) -> Any:
    """A model's outputs without some of them, of which an evaluation would collect everything."""
    if not isinstance(outputs, Mapping) or not any(name in outputs for name in names):
        return outputs
    return type(outputs)(**{key: value for key, value in outputs.items() if key not in names})


def labelled_positions(targets: Tensor, head: Head) -> Tensor | None:
    """The positions at which any sequence has a label, or `None` for all: the output layer is computed for no
    other ones, which saves most of it where only an answer is labelled."""
    if head != "causal_lm":
        return None
    positions = (targets != IGNORE_INDEX).any(0).nonzero().squeeze(-1)
    if len(positions) == targets.shape[1]:
        return None
    # Models are not made for an empty selection.
    return positions if len(positions) else torch.zeros(1, dtype=torch.long, device=targets.device)


def run_model(
    model: nn.Module,
    unwrapped: nn.Module,
    inputs: Mapping[str, Any],
    positions: Tensor | None,
    wants_hidden: bool,
    tap: tuple[HeadTap, Take] | None = None,
) -> tuple[Any, Tensor, tuple[Tensor, ...]]:
    """Outputs, the logits of `positions` (`None`: all), and hidden states after every layer, `[B, T, H]` each, if they are wanted.
    These are taken out of the outputs, of which an evaluation collects everything.

    Args:
        tap: takes the place of the output layer; the logits are those of one token then.

    Raises:
        ValueError: they are wanted, and the model returns none.
    """
    kwargs = model_inputs(unwrapped, inputs, positions)
    if wants_hidden:
        kwargs.update(output_hidden_states=True, return_dict=True)
    with nullcontext() if tap is None else tap[0].taking(tap[1]):
        outputs = model(**kwargs)
    hidden: tuple[Tensor, ...] = ()
    if wants_hidden:
        states = outputs.get("hidden_states")
        # The first are the embeddings.
        if states is None or len(states) < 2:
            raise ValueError(f"{type(unwrapped).__name__} returns no hidden states: set hidden_loss_weight=0")
        outputs, hidden = without(outputs, "hidden_states"), states[1:]
    logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
    if tap is not None:
        tap[0].check(logits)
    if positions is not None and "logits_to_keep" not in forward_parameters(unwrapped):
        logits = logits[:, positions]
    return outputs, logits, hidden


def run_teacher(
    model: nn.Module | None,
    unwrapped: nn.Module | None,
    inputs: Mapping[str, Any],
    positions: Tensor | None,
    terms: Sequence[LossTerm],
    progress: Progress,
    head: Head,
    tap: tuple[HeadTap, Take] | None = None,
) -> TeacherOutputs:
    """What the terms want of a teacher; it is not called where they want nothing.

    Args:
        model: prepared for the device.
        unwrapped: the same.
        inputs: the batch, prepared.
        positions: at which logits are wanted.
        terms: of the next step.
        progress: of the training.
        head: of both models.
        tap: takes the place of its output layer, where its logits are wanted.
    """
    terms = [term for term in terms if term.needs_teacher]
    wants_logits = any(term.reads_teacher_logits for term in terms)
    wants_hidden = any(term.wants_hidden(progress) for term in terms)
    watches = [watch for watch in (term.watch_teacher() for term in terms) if watch is not None]
    if not (wants_logits or wants_hidden or watches):
        return TeacherOutputs()
    assert model is not None and unwrapped is not None  # (without a teacher no term reads one)
    if not wants_logits:
        tap = None
        if head == "causal_lm":
            device = next(value for value in inputs.values() if isinstance(value, Tensor)).device
            positions = torch.zeros(1, dtype=torch.long, device=device)
    with torch.no_grad(), ExitStack() as stack:
        for watch in watches:
            stack.enter_context(watch)
        _, logits, hidden = run_model(model, unwrapped, inputs, positions, wants_hidden, tap)
    if wants_logits and tap is None:
        return TeacherOutputs(logits, hidden, logits.shape[-1])
    return TeacherOutputs(None, hidden)
