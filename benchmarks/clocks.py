"""Clocks that generation and training call while they run."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback
from transformers.generation.streamers import BaseStreamer


class TokenClock(BaseStreamer):
    """When `generate` handed over the prompt and the new tokens, and how many at a time.

    Attributes:
        times: of each call. The first is that of the prompt, the second that of the token which its forward pass gave.
        counts: tokens of each call.
    """

    def __init__(self) -> None:
        self.times: list[float] = []
        self.counts: list[int] = []

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())
        self.counts.append(value.numel())

    def end(self) -> None:
        pass

    @property
    def seconds(self) -> float:
        """After the first new token."""
        return self.times[-1] - self.times[1]

    @property
    def tokens(self) -> int:
        """That came in these seconds."""
        return sum(self.counts[2:])

    @property
    def seconds_a_token(self) -> float:
        return self.seconds / self.tokens


class StepClock(TrainerCallback):
    """When each step of a training ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())

    def seconds_a_step(self, left_out: int) -> list[float]:
        """Of all steps behind the first so many, of which there must be one at least: it begins with their end."""
        return [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)][left_out - 1 :]
