"""Running means of the loss terms, kept on the device: nothing waits for it between two logs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import TrainerCallback


class ComponentMeans:
    """Sums of named scalars and one common weight (optimizer steps, or sequences).

    Terms of several micro-batches of one optimizer step add up, as their losses do: each is a share of the step's
    mean already.
    """

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weight = 0

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Adds detached scalars."""
        for name, value in terms.items():
            value = value.detach()
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def add_weight(self, weight: int) -> None:
        self._weight += weight

    def pop(self, accelerator: Accelerator) -> dict[str, float]:
        """The means since the last reset, averaged over all processes, and a reset. Every process must call it, with the same names (a
        process may have added them with a weight of 0)."""
        names, weight = sorted(self._sums), self._weight
        if not names:
            self.reset()
            return {}
        # Numerators and weights separately: processes may have seen different numbers of sequences.
        totals = torch.stack(
            [
                *(self._sums[name].float() for name in names),
                torch.tensor(float(weight)).to(self._sums[names[0]].device),
            ]
        )
        self.reset()
        *sums, weight = accelerator.reduce(totals, reduction="sum").tolist()
        return {name: value / weight for name, value in zip(names, sums, strict=True)} if weight else {}


class FreshMeansCallback(TrainerCallback):
    """Begins the means anew with a training: one that failed half way (`auto_find_batch_size` tries again), or ended between two logs, leaves
    terms behind."""

    def __init__(self, means: ComponentMeans):
        self._means = means

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._means.reset()
