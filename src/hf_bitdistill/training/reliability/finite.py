"""Whether losses, gradients and weights are finite, without waiting for the device more than once a step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn


_SHOWN_TOKENS = 12


@dataclass
class StepReport:
    """What of one optimizer step was not finite. Both are empty if everything was, in this process."""

    terms: list[str] = field(default_factory=list)
    batches: list[tuple[int, Mapping[str, Any]]] = field(default_factory=list)
    """Micro-batches with a term that was not finite, and their places in the step."""
    count: int = 0
    """Micro-batches of the step."""
    is_bad: bool = False
    """Whether anything was not finite in any process."""
    has_bad_terms: bool = False
    """Whether a term of the loss was not finite in any process, and not the gradient alone."""
    loss: float = 0.0
    """The sum of the losses that were finite."""


class FiniteWatch:
    """Collects the terms of the micro-batches of an optimizer step, and looks at all of them at its end.

    Args:
        accelerator: several processes are told of each other's terms.
    """

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        self._terms: list[tuple[int, str, Tensor]] = []
        self._batches: list[Mapping[str, Any]] = []
        self.in_a_row = 0
        """Steps in a row that were not finite."""
        self.bad_steps = self.steps = 0
        """Steps since the last log, and those among them that were not finite."""
        self.bad_loss = 0.0
        """What the finite micro-batches of those steps added to the loss."""

    def begin(self, batch: Mapping[str, Any]) -> None:
        self._batches.append(batch)

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Terms of the micro-batch that began last: detached scalars."""
        place = len(self._batches) - 1
        self._terms.extend((place, name, value.detach().reshape(())) for name, value in terms.items())

    def end_step(self, grad_norm: Tensor | float | None) -> StepReport:
        """Look at the step, and forget it."""
        terms, batches = self._terms, self._batches
        self._terms, self._batches = [], []
        names: list[tuple[int | None, str]] = [(place, name) for place, name, _ in terms]
        scalars = [value for _, _, value in terms]
        if grad_norm is not None:
            names.append((None, "gradient"))
            scalars.append(_scalar(grad_norm, scalars))
        report = StepReport(count=len(batches))
        if not scalars:
            return report
        values = torch.stack([value.float().to(scalars[0].device) for value in scalars])
        finite = torch.isfinite(values).tolist()
        bad = [entry for entry, is_finite in zip(names, finite, strict=True) if not is_finite]
        report.terms = list(dict.fromkeys(name for _, name in bad))
        places = dict.fromkeys(place for place, _ in bad if place is not None)
        report.batches = [(place, batches[place]) for place in places]
        report.is_bad, report.has_bad_terms = bool(bad), bool(places)
        if self._accelerator.num_processes > 1:
            flags = torch.tensor([float(report.is_bad), float(report.has_bad_terms)], device=values.device)
            flags = (self._accelerator.reduce(flags, reduction="sum") > 0).tolist()
            report.is_bad, report.has_bad_terms = flags
        self.steps += 1
        if report.is_bad:
            losses = zip(names, values.tolist(), finite, strict=True)
            report.loss = sum(value for (_, name), value, is_finite in losses if is_finite and name == "loss")
        else:
            self.in_a_row = 0
        return report

    def leave_out(self, report: StepReport) -> None:
        """Count a step that does not reach the student."""
        self.in_a_row += 1
        self.bad_steps += 1
        self.bad_loss += report.loss

    def correct(self, logs: dict[str, float]) -> float:
        """Make the mean loss of a log that of the finite steps, and say how many others there were.

        Returns:
            What the loss of all steps since the last log lacks, if the others count as the mean.
        """
        steps, bad, surplus = self.steps, self.bad_steps, self.bad_loss
        self.steps = self.bad_steps = 0
        self.bad_loss = 0.0
        if not bad:
            return 0.0
        total = logs["loss"] * steps
        logs["loss"] = (total - surplus) / (steps - bad) if steps > bad else float("nan")
        logs["nan_steps"] = bad
        return logs["loss"] * steps - total if steps > bad else -surplus


def _scalar(value: Tensor | float, like: list[Tensor]) -> Tensor:
    if not isinstance(value, Tensor):
        return torch.tensor(float(value), device=like[0].device if like else None)
    value = value.full_tensor() if hasattr(value, "full_tensor") else value
    return value.detach().reshape(())


def describe_batch(batch: Mapping[str, Any]) -> str:
    """A batch by what it can be found again by: its shape and its first tokens."""
    ids = batch.get("input_ids")
    if not isinstance(ids, Tensor) or ids.ndim != 2 or not ids.numel():
        return ", ".join(f"{name} {list(value.shape)}" for name, value in batch.items() if isinstance(value, Tensor))
    mask = batch.get("attention_mask")
    first = ids[0] if mask is None or mask.shape != ids.shape else ids[0][mask[0].bool()]
    return f"input_ids {list(ids.shape)} that begin with {first[:_SHOWN_TOKENS].tolist()}"


def not_finite(named: Iterable[tuple[str, Tensor]]) -> list[str]:
    """The names of the tensors that hold a NaN or an infinity; of a sharded one this process's shard counts."""
    names, extremes = [], []
    for name, tensor in named:
        tensor = getattr(tensor, "ds_tensor", tensor)
        tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        if tensor.is_floating_point() and tensor.numel() and tensor.device.type != "meta":
            names.append(name)
            # Smallest and largest entry: a NaN is either, and nothing as large as the tensor is made.
            extremes.append(torch.stack(torch.aminmax(tensor.detach())).float())
    if not names:
        return []
    finite = torch.isfinite(torch.stack([pair.to(extremes[0].device) for pair in extremes])).all(-1).tolist()
    return [name for name, is_finite in zip(names, finite, strict=True) if not is_finite]


def check_finite_student(model: nn.Module, accelerator: Accelerator) -> None:
    """Refuse a student with a parameter or buffer that is not finite. Every process must call it.

    Raises:
        FloatingPointError: naming the first one, in every process.
    """
    bad = not_finite([*model.named_parameters(), *model.named_buffers()])
    anywhere = bool(bad)
    if accelerator.num_processes > 1:
        flag = torch.tensor(float(anywhere), device=accelerator.device)
        anywhere = bool(accelerator.reduce(flag, reduction="sum") > 0)
    if anywhere:
        what = f"{bad[0]} of the student" if bad else "the student's shard in another process"
        raise FloatingPointError(f"{what} is not finite (NaN or infinity)")
