"""The router's own loss of a mixture of experts: what transformers' models add to theirs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...nn.carried_adapters import without_adapters


# Attributes of models and of their configs, the model's own first: it is what its forward multiplies with.
_COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef")


def router_loss(outputs: Any, model: nn.Module) -> tuple[Tensor, float] | None:
    """A mixture's load-balancing loss and its coefficient, where the config asks for it (`output_router_logits`).

    transformers adds their product to the loss of every micro-batch, whatever its number of labels and of micro-batches.

    Args:
        outputs: of the model's forward without labels.
        model: unwrapped.

    Returns:
        `None` where the model has no such loss or its config does not ask for it.

    Raises:
        ValueError: there is a loss but no coefficient of it.
    """
    loss = getattr(outputs, "aux_loss", None)
    if not isinstance(loss, Tensor):
        return None
    inner = without_adapters(model)
    for owner in (inner, inner.config, inner.config.get_text_config()):
        for name in _COEFFICIENTS:
            coefficient = getattr(owner, name, None)
            if coefficient is not None:
                return loss, float(coefficient)
    raise ValueError(
        f"{type(inner).__name__} returns an aux_loss and has no {_COEFFICIENTS[0]}: set config.output_router_logits=False"
    )
