"""`merge_adapter`: an adapter made a part of a student's weights, which are rounded again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from transformers import PreTrainedModel
from transformers.utils import logging

from .requantize import LayerError


if TYPE_CHECKING:
    from peft import PeftModel


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class MergeReport:
    """What [`merge_adapter`] lost.

    Attributes:
        relative_error: size of the difference between base + adapter and what it was rounded to, over that of base + adapter; over all
            ternary layers with an adapter (Frobenius norms).
        adapter_size: size of the adapter's change, over that of base + adapter.
        lost: size of that difference, over that of the adapter's change: at 1 as much is lost as if the adapter had been left out.
        changed_codes: share of the ternary codes that are others now.
    """

    relative_error: float
    adapter_size: float
    lost: float
    changed_codes: float

    @classmethod
    def of(cls, layers: list[LayerError]) -> MergeReport:
        wanted, change, lost = (
            sum(getattr(layer, name) for layer in layers) ** 0.5 for name in ("wanted", "change", "lost")
        )
        codes = sum(layer.codes for layer in layers)
        return cls(
            relative_error=lost / wanted if wanted else 0.0,
            adapter_size=change / wanted if wanted else 0.0,
            lost=lost / change if change else 0.0,
            changed_codes=sum(layer.changed for layer in layers) / codes if codes else 0.0,
        )

    def __str__(self) -> str:
        return (
            f"rounded again, the ternary weights are {self.relative_error:.1%} away from base + adapter, of which the adapter is "
            f"{self.adapter_size:.1%}: {self.lost:.0%} of its size is lost; {self.changed_codes:.2%} of the codes changed"
        )


def merge_adapter(
    model: PeftModel, *, requantize: bool = False, adapter_names: list[str] | None = None
) -> tuple[PreTrainedModel, MergeReport]:
    """Make the active adapters a part of a student's weights, which have to be rounded to ternary ones again.

    Codes and scales are those nearest to the sum of base and adapter. An adapter is small beside the steps between ternary weights, so most of
    it is usually lost: measure the result, or keep the adapter beside the model. Layers in full precision (an output head) merge exactly.

    Args:
        model: with LoRA on a student, online or packed. Its layers are replaced, and it must not be used afterwards.
        requantize: must be true: that the weights may be rounded again.
        adapter_names: which adapters; default: the active ones.

    Returns:
        The student without adapters, and how much was lost, which is logged too. Like after PEFT's `merge_and_unload`, an online one is
        frozen.

    Raises:
        TypeError: `model` is no `PeftModel`.
        ValueError: `requantize` is not true; or an adapter cannot be merged.
    """
    from peft import PeftModel

    from .lora import TernaryLora

    if not isinstance(model, PeftModel):
        raise TypeError(f"merge_adapter takes a PeftModel, not {type(model).__name__}.")
    if not requantize:
        raise ValueError(
            "merge_adapter rounds the ternary weights again, which changes what the model computes: pass requantize=True to have that, or "
            "keep the adapter beside the model."
        )
    errors: list[LayerError] = []
    layers = [module for module in model.modules() if isinstance(module, TernaryLora)]
    for layer in layers:
        layer.merge_errors = errors
    try:
        merged = model.merge_and_unload(adapter_names=adapter_names)
    finally:
        for layer in layers:
            layer.merge_errors = None
    report = MergeReport.of(errors)
    logger.warning(f"merge_adapter: {report}.")
    return merged, report
