"""What a warm start measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from .config import WarmStartConfig


@dataclass
class WindowReport:
    """One window.

    Attributes:
        first_layer, last_layer: both inclusive.
        error_before: Huber loss of the student as it was, on the first calibration batches.
        error_after: the same, of the student with the folded weights.
        losses: mean training loss of each tenth of the steps (the softened student until it is hard).
        seconds: wall time.
    """

    first_layer: int
    last_layer: int
    error_before: float
    error_after: float
    losses: list[float]
    seconds: float


@dataclass
class WarmStartReport:
    """A whole warm start.

    Attributes:
        config: its options.
        windows: in order.
        calibration_tokens: tokens in the given batches (without padding).
        trained_tokens: tokens that all optimiser steps of all windows read.
        seconds: wall time of the windows.
        batch_seconds: wall time of all passes over the batches outside the steps: how they call the layers (before the first window),
            the targets of each window, the inputs of the next.
    """

    config: WarmStartConfig
    calibration_tokens: int
    windows: list[WindowReport] = field(default_factory=list)
    trained_tokens: int = 0
    seconds: float = 0.0
    batch_seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)
