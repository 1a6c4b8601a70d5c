"""How PEFT comes to use our LoRA layer, with no call of the user's.

PEFT decides by class what goes around a layer, and knows its own list and what each `LoraConfig` was told, which is neither saved nor read
back. A ternary layer is an `nn.Linear`, so PEFT makes an ordinary `lora.Linear`: one that reads its input before the SubLN, and whose
`merge` adds to a tensor that is no matrix of floats, or that is rounded afterwards. torch tells, by its hook for the registration of modules,
when such a layer takes a ternary one as its base; there it becomes a [`TernaryLora`], as torch's own parametrisations and FSDP2 turn a
module into one of a subclass.
"""

from __future__ import annotations

import sys

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from ..nn import BitLinear, TernaryLinear


def watch() -> None:
    """From now on, adapters of ternary layers are ours."""
    register_module_module_registration_hook(_on_registration)


def _on_registration(module: nn.Module, name: str, submodule: nn.Module | None) -> None:
    # Called for every module that any model registers: the names first.
    if name == "base_layer":
        if isinstance(submodule, (BitLinear, TernaryLinear)):
            from .lora import adapt

            adapt(module)
    elif name == "base_model" and "peft" in sys.modules:
        from peft import PeftModel

        if isinstance(module, PeftModel) and submodule is not None:
            from .peft_model import complete

            complete(module, submodule)
