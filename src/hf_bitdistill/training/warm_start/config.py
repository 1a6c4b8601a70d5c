"""`WarmStartConfig`: what a block-wise warm start does."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


_CHOICES = {
    "start": ("absmean", "least_squares"),
    "window_inputs": ("student", "teacher"),
    "loss_unit": ("median", "token"),
}


@dataclass
class WarmStartConfig:
    """Options of [`warm_start`]. The window, the rank and the hardening are CAT-Q's (arXiv 2606.26650); the defaults are the recipe's, see
    `hf_bitdistill.recipe.efforts`.

    Args:
        window_layers (`int`): decoder layers trained together.
        window_stride (`int`, *optional*): layers by which the window moves on; those it leaves are final. Default: `window_layers`, no overlap.
        steps_per_window (`int`): optimiser steps, each on one of the given batches.
        rank (`int`): of the update of each latent weight. 0, or a rank that a full update would not exceed in size,
            trains the whole matrix.
        factor_group_size (`int`): columns of a row that share a threshold factor and a mean factor. They decide only
            which code a weight gets, so they may be finer than the student's scale.
        start (`"absmean"` | `"least_squares"`): codes and scales before the first step: the student's own, or the nearest
            ones to the weights ([`least_squares_start`]). On stories260K the first ended lower, 2.29 against 2.38 nats a token; the rows of
            SmolLM2 that the recipe comes from have the second.
        window_inputs (`"student"` | `"teacher"`): what a window reads: the output of the student's earlier, already final
            layers, so that it also learns to undo their errors, or the teacher's.
        train_norms (`bool`): also train the vectors of a window: norm weights, SubLNs and biases.
        learning_rate (`float`): of the updates, which are in units of the weight scale (Adam). Few steps want more: with 75
            steps a window on stories260K 0.03 was better than 0.01, and that than 0.002.
        factor_learning_rate (`float`): of the scale, threshold and mean factors.
        norm_learning_rate (`float`): of the vectors.
        sharpness (`float`), final_sharpness (`float`): of the softened ternary function at the first step and when it
            becomes hard; in between it grows geometrically.
        hardening_share (`float`): share of the steps over which it hardens. After it the function is the hard one, with the
            gradient of the sharpest soft one.
        huber_delta (`float`): where the Huber loss turns linear, in units of the teacher's hidden values, see `loss_unit`.
        loss_unit (`"median"` | `"token"`): what an error is measured in: the root mean square of the teacher's hidden values of the
            median token, or of each token, where that is larger. The next layer's norm sees a token relative to its size,
            and the first of a text may be hundreds of times larger than the others.
        max_grad_norm (`float`): of all trained values together.
        bf16 (`bool`): autocast to bfloat16, in the student and in the teacher, for hardware that multiplies it fast.
        seed (`int`): of the low-rank start and of the order of the batches.

    Raises:
        ValueError: an option is out of range; names it.
    """

    window_layers: int = field(default=4, metadata={"help": "Decoder layers trained together."})
    window_stride: int | None = field(
        default=None, metadata={"help": "Layers by which the window moves on. Default: window_layers."}
    )
    steps_per_window: int = field(default=400, metadata={"help": "Optimiser steps a window."})
    rank: int = field(default=64, metadata={"help": "Rank of the updates; 0 trains whole matrices."})
    factor_group_size: int = field(default=128, metadata={"help": "Columns that share threshold and mean factors."})
    start: str = field(
        default="least_squares",
        metadata={"help": "Codes and scales to begin with.", "choices": list(_CHOICES["start"])},
    )
    window_inputs: str = field(
        default="student",
        metadata={"help": "Whose activations a window reads.", "choices": list(_CHOICES["window_inputs"])},
    )
    train_norms: bool = field(default=True, metadata={"help": "Also train norm weights, SubLNs and biases."})
    learning_rate: float = field(default=2e-2, metadata={"help": "Of the updates, in units of the weight scale."})
    factor_learning_rate: float = field(default=1e-2, metadata={"help": "Of scale, threshold and mean factors."})
    norm_learning_rate: float = field(default=1e-3, metadata={"help": "Of norm weights, SubLNs and biases."})
    sharpness: float = field(default=2.0, metadata={"help": "Of the softened ternary function at first."})
    final_sharpness: float = field(default=20.0, metadata={"help": "Of the softened ternary function at last."})
    hardening_share: float = field(default=0.8, metadata={"help": "Share of the steps until it is hard."})
    huber_delta: float = field(default=1.0, metadata={"help": "Where the Huber loss turns linear."})
    loss_unit: str = field(
        default="token",
        metadata={
            "help": "What an error is measured in: the size of the median or of each token.",
            "choices": list(_CHOICES["loss_unit"]),
        },
    )
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradient clipping."})
    bf16: bool = field(default=False, metadata={"help": "Compute in bfloat16 (autocast)."})
    seed: int = field(default=0, metadata={"help": "Of the low-rank start and of the order of the batches."})

    def __post_init__(self) -> None:
        for name in ("window_layers", "window_stride", "steps_per_window", "factor_group_size"):
            value = getattr(self, name)
            if name == "window_stride" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if self.rank < 0:
            raise ValueError(f"rank must not be negative, got {self.rank}")
        if self.stride > self.window_layers:
            raise ValueError(
                f"window_stride={self.window_stride} is larger than window_layers={self.window_layers}: the layers in "
                "between would not be trained"
            )
        for name in ("learning_rate", "factor_learning_rate", "norm_learning_rate"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be finite and not negative, got {value}")
        for name in ("sharpness", "final_sharpness", "huber_delta", "max_grad_norm"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be positive, got {value}")
        if not 0 <= self.hardening_share <= 1:
            raise ValueError(f"hardening_share must be between 0 and 1, got {self.hardening_share}")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not supported; choose one of {allowed}")

    @property
    def stride(self) -> int:
        """`window_stride`, or its default."""
        return self.window_layers if self.window_stride is None else self.window_stride

    def windows(self, depth: int) -> list[tuple[int, int]]:
        """The windows of a model of `depth` layers, in order, as `(first layer, last layer + 1)`."""
        windows = [(0, min(self.window_layers, depth))]
        while windows[-1][1] < depth:
            first = windows[-1][0] + self.stride
            windows.append((first, min(first + self.window_layers, depth)))
        return windows

    def sharpness_at(self, step: int) -> float | None:
        """Sharpness during the step after `step` finished ones; `None`: hard."""
        hardening = self.hardening_share * self.steps_per_window
        if step >= hardening:
            return None
        return self.sharpness * (self.final_sharpness / self.sharpness) ** (step / hardening)

    def rate_share_at(self, step: int) -> float:
        """Share of the learning rates at a step: a cosine from 1 to 0.05."""
        return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / self.steps_per_window))
