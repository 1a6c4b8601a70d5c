"""What a student is made ready for before accelerate spreads it over processes."""

from __future__ import annotations

from functools import wraps
from types import MethodType
from typing import Any

from accelerate import Accelerator
from accelerate.utils import convert_outputs_to_fp32
from torch import nn

from ..._compat import set_original_forward
from ...nn import enable_ternary_all_gather


def prepare_for_shards(model: nn.Module, accelerator: Accelerator) -> None:
    """Under FSDP2, let `model` compute in shards what it computes in one process; elsewhere, do nothing.

    Its ternary weights are gathered as codes. With mixed precision, the forward pass runs under autocast, on parameters in float32, as
    accelerate has it without shards: its own FSDP2 rounds all parameters and what goes from layer to layer to 16 bits instead, which moves
    losses by 1e-4 to 1e-3. Codes are what is sent all the same, so little more is.

    To be called before `accelerator.prepare`.
    """
    if not accelerator.is_fsdp2:
        return
    enable_ternary_all_gather(model)
    plugin = accelerator.state.fsdp_plugin
    if accelerator.native_amp and plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = type(plugin.mixed_precision_policy)()
        _compute_under_autocast(model, accelerator)


def _compute_under_autocast(model: nn.Module, accelerator: Accelerator) -> None:
    """As accelerate's `prepare_model` does it, which is not for models in shards."""
    bound = model.forward
    function = getattr(bound, "__func__", None)

    @wraps(function or bound)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with accelerator.autocast():
            return bound(*args, **kwargs) if function is None else function(self, *args, **kwargs)

    set_original_forward(model, bound)
    model.forward = MethodType(convert_outputs_to_fp32(forward), model)
