"""What architectures do with the result of their output layer before they call it logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


# Keys of configs, by what they do to the product.
_FACTORS = ("logit_scale", "output_multiplier", "lm_head_multiplier")
_DIVISORS = ("logits_scaling",)
_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


def _number(config: Any, names: tuple[str, ...]) -> float | None:
    values = (getattr(config, name, None) for name in names)
    return next((float(value) for value in values if isinstance(value, (int, float)) and value), None)


@dataclass(frozen=True)
class LogitsTail:
    """`cap * tanh(factor * z / cap)` of the products z. What a config says is a claim: see [`is_of`].

    Attributes:
        factor: of all products.
        cap: `None`: there is none.
    """

    factor: float = 1.0
    cap: float | None = None

    @classmethod
    def claimed(cls, config: Any) -> LogitsTail:
        """By the keys of a model's (text) config."""
        factor = _number(config, _FACTORS) or 1.0
        return cls(factor / (_number(config, _DIVISORS) or 1.0), _number(config, _CAPS))

    def __call__(self, products: Tensor) -> Tensor:
        """Logits of products."""
        if self.factor != 1.0:
            products = products * self.factor
        return products if self.cap is None else (products / self.cap).tanh_().mul_(self.cap)

    def pull_back(self, gradient: Tensor, logits: Tensor | None) -> Tensor:
        """A gradient with respect to logits as one with respect to the products; it is overwritten.

        Args:
            logits: where there is a cap.
        """
        if self.cap is not None:
            assert logits is not None
            gradient = gradient.mul_(1 - (logits / self.cap).square_())
        return gradient if self.factor == 1.0 else gradient.mul_(self.factor)

    def is_of(self, products: Tensor, logits: Tensor) -> bool:
        """Whether a model made these logits of these products, within their rounding."""
        if products.shape != logits.shape:
            return False
        step = 8 * torch.finfo(products.dtype).eps
        wanted = self(products.float() if products.dtype.itemsize < 4 else products).to(logits.dtype)
        return torch.allclose(logits, wanted, rtol=step, atol=step * float(wanted.abs().amax()), equal_nan=True)
