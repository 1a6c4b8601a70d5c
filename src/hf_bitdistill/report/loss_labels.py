"""How figures call the terms of a training's loss."""

from __future__ import annotations


def loss_names() -> dict[str, str]:
    """Terms of a training loss as they are logged -> how figures call them."""
    from ..training.losses.terms import TERMS

    return {"loss": "total", **{f"loss_{term.name}": term.label for term in TERMS}}


def loss_units() -> dict[str, str]:
    """Terms of a training loss as they are logged -> what their axis says."""
    from ..training.losses.terms import TERMS

    return {"loss": "weighted sum of the terms", **{f"loss_{term.name}": term.unit for term in TERMS}}
