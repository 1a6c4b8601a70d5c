"""Loading models whole, in a process whose engine would load a part of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.utils import patch_environment
from transformers import TrainingArguments
from transformers.integrations.deepspeed import (
    is_deepspeed_zero3_enabled,
    set_hf_deepspeed_config,
    unset_hf_deepspeed_config,
)


_RAM_EFFICIENT = "FSDP_CPU_RAM_EFFICIENT_LOADING"


@contextmanager
def whole_models(zero_3_of: TrainingArguments | None = None) -> Iterator[None]:
    """Models that are loaded within are whole in this process, where no `Trainer` is to distribute them.

    FSDP's loading to save memory leaves all but the first process without weights, and DeepSpeed's ZeRO-3 partitions what is loaded, for which all
    processes would have to load it.

    Args:
        zero_3_of: arguments of a training, whose ZeRO-3 is left out too and set again afterwards.
    """
    with patch_environment(**({_RAM_EFFICIENT: "false"} if _RAM_EFFICIENT in os.environ else {})):
        if zero_3_of is None or not is_deepspeed_zero3_enabled():
            yield
            return
        unset_hf_deepspeed_config()
        try:
            yield
        finally:
            plugin: Any = getattr(zero_3_of, "deepspeed_plugin", None)
            set_hf_deepspeed_config(getattr(zero_3_of, "hf_deepspeed_config", None) or plugin.hf_ds_config)
