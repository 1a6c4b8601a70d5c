"""Divergences of next-token distributions that the logits loss can be: one file each, by the name of the option."""

from __future__ import annotations

from typing import Any

from .base import Divergence
from .forward_kl import ForwardKL
from .jsd import GeneralizedJSD
from .reverse_kl import ReverseKL


DIVERGENCES: dict[str, type[Divergence]] = {kind.name: kind for kind in (ForwardKL, ReverseKL, GeneralizedJSD)}
"""`DistillationConfig.logits_divergence` -> its class."""


def make_divergence(name: str, jsd_beta: float = 0.5) -> Divergence:
    """The divergence of an option.

    Args:
        name: a key of `DIVERGENCES`.
        jsd_beta: of `"jsd"`, in [0, 1]; at its ends it is the KL that it is named after.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in DIVERGENCES:
        raise ValueError(f"logits_divergence must be one of {', '.join(DIVERGENCES)}, got {name!r}")
    if name != GeneralizedJSD.name:
        return DIVERGENCES[name]()
    return ForwardKL() if jsd_beta == 0 else ReverseKL() if jsd_beta == 1 else GeneralizedJSD(jsd_beta)


def divergence_of(args: Any) -> Divergence:
    """The divergence that a `DistillationConfig` asks for."""
    return make_divergence(args.logits_divergence, args.jsd_beta)


__all__ = ["DIVERGENCES", "Divergence", "ForwardKL", "GeneralizedJSD", "ReverseKL", "divergence_of", "make_divergence"]
