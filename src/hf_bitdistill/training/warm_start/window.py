"""A window of a warm start: some consecutive layers, trained to compute what the teacher's compute."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...machine import processes
from .config import WarmStartConfig
from .float32_copies import Float32Copies
from .propagation import Propagation
from .relaxation import RelaxedBitLinear
from .shared_rows import add_up
from .stand_ins import StandIns
from .window_batches import WindowBatch, bar
from .window_report import WindowReport


# Batches on which a window's error is measured before and after.
_MEASURED_BATCHES = 4


def _token_sizes(hidden: Tensor) -> Tensor:
    """Root mean square of each token, `[..., d]` -> `[..., 1]`."""
    return hidden.square().mean(dim=-1, keepdim=True).sqrt()


class Window:
    """Layers `first` to `last - 1`. They are on the device while [`fit`] needs them: the teacher's for the targets, then the student's.

    Args:
        first, last: which layers.
        propagation: has the batches, with their inputs before layer `first`, and the layers of both models.
        stand_ins: of the student's layers.
        config: the options.
        generator: of the order of the batches.
    """

    def __init__(
        self,
        first: int,
        last: int,
        propagation: Propagation,
        stand_ins: StandIns,
        config: WarmStartConfig,
        generator: torch.Generator,
    ):
        self.first, self.last, self.config = first, last, config
        self._propagation, self._stand_ins, self._generator = propagation, stand_ins, generator
        self._batches, self._device = propagation.batches, propagation.device
        self._layers = propagation.student.layers

    def fit(self, on_step: Callable[[int, float], None]) -> WindowReport:
        """Train the window. Afterwards the student's layers have the folded weights, and lie where they did.

        Args:
            on_step: called after each step with the places for tokens in its batch, and with its loss.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        started = time.perf_counter()
        self._propagation.set_targets(self.first, self.last)
        with self._propagation.student.holding(self.first, self.last):
            unit = self._unit()
            before = self._error(unit)
            with self._stand_ins.put_in(self.first, self.last) as stand_ins:
                losses = self._train(stand_ins, unit, on_step)
            # Layers that the next window trains on are folded only to be measured, and go on from their stand-ins.
            for stand_in in stand_ins:
                stand_in.fold()
            after = self._error(unit)
        return WindowReport(self.first, self.last - 1, before, after, losses, time.perf_counter() - started)

    # ---- Losses ----

    @torch.no_grad()
    def _unit(self) -> float:
        """The median over tokens of the root mean square of the target. A median, because a few tokens (the first of a
        text, above all) carry values hundreds of times larger."""
        values = [torch.zeros(0)]
        for batch in self._batches.first(8 * _MEASURED_BATCHES):
            sizes = _token_sizes(batch.target.read().float()).squeeze(-1)
            values.append(sizes[batch.mask] if batch.mask is not None else sizes.flatten())
        return max(torch.cat(processes.gather(torch.cat(values))).median().item(), 1e-6)

    def _loss(self, batch: WindowBatch, unit: float) -> Tensor:
        """This process's part of the loss of a whole batch."""
        hidden = self._propagation.forward(self._layers, batch.student.read(), batch, self.first, self.last)
        target = batch.target.read().to(self._device)
        if batch.mask is not None:
            mask = batch.mask.to(self._device)
            hidden, target = hidden[mask], target[mask]
        hidden, target = hidden.float(), target.float()
        units = _token_sizes(target).clamp(min=unit) if self.config.loss_unit == "token" else unit
        loss = F.huber_loss(hidden / units, target / units, delta=self.config.huber_delta)
        # (A mean over no token is not a number.)
        return loss if batch.share == 1 else loss * batch.share if batch.share else 0.0 * hidden.sum()

    @torch.no_grad()
    def _error(self, unit: float) -> float:
        own = sum(self._loss(batch, unit).item() for batch in self._batches.first(_MEASURED_BATCHES))
        return sum(processes.gather(own)) / min(_MEASURED_BATCHES, len(self._batches))

    # ---- Training ----

    def _train(
        self, stand_ins: list[RelaxedBitLinear], unit: float, on_step: Callable[[int, float], None]
    ) -> list[float]:
        """Mean loss of each tenth of the steps."""
        config = self.config
        vectors = Float32Copies(self._vectors(stand_ins) if config.train_norms else [])
        groups: list[dict[str, Any]] = [
            {"params": [p for s in stand_ins for p in s.updates()], "lr": config.learning_rate},
            {"params": [p for s in stand_ins for p in s.factors()], "lr": config.factor_learning_rate},
            {"params": vectors.copies, "lr": config.norm_learning_rate},
        ]
        trained = [p for group in groups for p in group["params"]]
        for stand_in in stand_ins:
            stand_in.final_sharpness = config.final_sharpness
        losses: list[float] = []
        order: list[int] = []
        with ExitStack() as stack:
            for parameter in (*trained, *vectors.parameters):
                stack.callback(parameter.requires_grad_, False)
                parameter.requires_grad_(True)
            optimizer = torch.optim.Adam([group for group in groups if group["params"]], betas=(0.9, 0.95))
            rates = [group["lr"] for group in optimizer.param_groups]
            title = f"warm start of layers {self.first} to {self.last - 1}"
            for step in bar(range(config.steps_per_window), title, self._batches.progress, unit="step"):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * config.rate_share_at(step)
                for stand_in in stand_ins:
                    stand_in.sharpness = config.sharpness_at(step)
                if not order:
                    order = torch.randperm(len(self._batches), generator=self._generator).tolist()
                number = order.pop()
                losses.append(self._gradients(self._batches.own[number], unit, vectors, trained))
                if losses[-1] != losses[-1] or losses[-1] == float("inf"):
                    raise FloatingPointError(
                        f"the loss of layers {self.first} to {self.last - 1} is not finite at step {step}: lower learning_rate"
                    )
                torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
                optimizer.step()
                vectors.write_back()
                optimizer.zero_grad(set_to_none=True)
                on_step(self._batches.sizes[number], losses[-1])
        parts = min(10, len(losses))
        edges = [len(losses) * part // parts for part in range(parts + 1)]
        return [sum(losses[i:j]) / (j - i) for i, j in pairwise(edges)]

    def _gradients(
        self, batch: WindowBatch | None, unit: float, vectors: Float32Copies, trained: list[nn.Parameter]
    ) -> float:
        """Leave the gradients of a whole batch, of all processes, in `trained`; returns its loss."""
        loss = torch.zeros((), device=self._device)
        if batch is not None:
            with torch.enable_grad():
                loss = self._loss(batch, unit)
                loss.backward()
        vectors.take_gradients()
        return add_up(loss, trained).item()

    def _vectors(self, stand_ins: list[RelaxedBitLinear]) -> list[nn.Parameter]:
        """Norm weights, SubLNs and biases of the window, each once."""
        own = {id(p) for stand_in in stand_ins for p in (*stand_in.updates(), *stand_in.factors())}
        vectors = {
            id(parameter): parameter
            for layer in self._layers[self.first : self.last]
            for parameter in layer.parameters()
            if parameter.ndim == 1 and parameter.is_floating_point() and id(parameter) not in own
        }
        return list(vectors.values())
