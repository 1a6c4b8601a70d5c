"""`TernaryLora`: LoRA beside a ternary layer."""

from __future__ import annotations

import functools
from typing import Any, cast

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from ..nn import BitLinear, TernaryLinear
from .requantize import LayerError, requantize


# Ways to start that draw A and B and leave the base as it is. All others take a part of the base weight out of it, which a ternary one
# cannot give.
STARTS = (True, False, "gaussian", "orthogonal", "eva")


class TernaryLora(LoraLinear):
    """`y = base(x) + scaling * B A norm(x)`: the ternary product of the base, and a product of low rank in floats.

    Both read the same input: `x` behind the base's SubLN, where it has one; the base rounds it to int8, the adapter does not. That is what
    the adapter sees in every other form of a student too: in the native decoder, and where a SubLN is a module of its own in front of the
    projection (transformers' own BitNet, llama.cpp). So its product stands for a change of the weight, if of one that is not ternary.

    Attributes:
        merge_errors: `None`: merging is refused. A list, which [`~hf_bitdistill.merge_adapter`] gives it: merging rounds the sum to a
            ternary weight again, and appends what that lost.
    """

    merge_errors: list[LayerError] | None = None

    def update_layer(self, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Adds an adapter.

        Raises:
            ValueError: the adapter is more than a product of low rank, or starts from a part of the base weight; names the option.
        """
        config = kwargs["config"]
        if config.init_lora_weights not in STARTS:
            raise ValueError(
                f"init_lora_weights={config.init_lora_weights!r} takes a part of the base weight into the adapter, which a ternary weight "
                f"cannot give; choose one of {STARTS}."
            )
        super().update_layer(adapter_name, *args, **kwargs)

    def resolve_lora_variant(self, *, config: Any, **kwargs: Any) -> None:
        variant = super().resolve_lora_variant(config=config, **kwargs)
        if variant is not None:
            raise ValueError(
                f"{type(variant).__name__} is not supported on ternary layers: use plain LoRA (also with use_rslora, rank_pattern, "
                "alpha_pattern)."
            )

    def _ternary_base(self) -> BitLinear | TernaryLinear:
        return cast("BitLinear | TernaryLinear", self.get_base_layer())

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`[..., C]` -> `[..., R]`."""
        base = self._ternary_base()
        if self.disable_adapters or base.rms_norm is None:
            return super().forward(x, *args, **kwargs)
        values = base.normed(x)
        y = super().forward(values, *args, normed=True, **kwargs)
        return y if values.dtype == x.dtype else y.to(x.dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refused unless [`~hf_bitdistill.merge_adapter`] asks for it.

        Raises:
            ValueError: it was not asked for; or the sum is not finite, or its codes are all equal.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.lora_A]
        if not names:
            return
        if self.merge_errors is None:
            raise ValueError(
                "An adapter cannot be merged into ternary weights without rounding their sum again, which changes what the model computes "
                "and may lose the adapter: keep it beside the model (it can be saved, loaded and switched), or call "
                "hf_bitdistill.merge_adapter(model, requantize=True), which says how much is lost."
            )
        base, biases = self._ternary_base(), [name for name in names if self.lora_bias[name]]
        if biases and base.bias is None:
            raise ValueError(f"the bias of the adapter {biases[0]!r} cannot be merged into a layer that has none.")
        with torch.no_grad():
            delta = functools.reduce(torch.add, (self.get_delta_weight(name).float() for name in names))
            self.merge_errors.append(requantize(base, delta))
            for name in biases:
                cast(Tensor, base.bias).add_(self.lora_B[name].bias * self.scaling[name])
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """There is nothing to return to.

        Raises:
            NotImplementedError: an adapter is merged.
        """
        if self.merged:
            raise NotImplementedError(
                "what was rounded cannot be taken apart again: load the base model and the adapter."
            )


def adapt(module: nn.Module) -> None:
    """Make PEFT's layer, which is taking a ternary one as its base, one that is right for it.

    Raises:
        NotImplementedError: it is of another kind of adapter than LoRA.
    """
    if type(module) is LoraLinear:
        module.__class__ = TernaryLora
    elif isinstance(module, BaseTunerLayer) and not isinstance(module, TernaryLora):
        raise NotImplementedError(
            f"{type(module).__module__}.{type(module).__name__} would compute with, or merge into, a weight that is ternary: of PEFT's "
            "adapters, ternary layers take LoRA, by target_modules."
        )
