"""What the launcher's configuration asks of `Trainer` (FSDP, DeepSpeed), beside what the recipe does without a `Trainer`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from .. import processes


_RAM_EFFICIENT = "FSDP_CPU_RAM_EFFICIENT_LOADING"


def engine() -> str:
    """Which engine trains: `one` process, `ddp`, `fsdp` or `deepspeed`."""
    if processes.world_size() == 1:
        return "one"
    for name in ("fsdp", "deepspeed"):
        if os.environ.get(f"ACCELERATE_USE_{name.upper()}", "false").lower() in ("true", "1"):
            return name
    return "ddp"


def shards() -> bool:
    """Whether the engine places a model's shards on the devices itself, so that the whole need not be there before."""
    return engine() in ("fsdp", "deepspeed")


@contextlib.contextmanager
def whole_models() -> Iterator[None]:
    """Models that are loaded within are whole in every process: FSDP's loading to save memory leaves all but the first process without weights,
    which the recipe needs where no `Trainer` distributes them (measuring, the warm start, a teacher)."""
    before = os.environ.get(_RAM_EFFICIENT)
    if before is not None:
        os.environ[_RAM_EFFICIENT] = "false"
    try:
        yield
    finally:
        if before is not None:
            os.environ[_RAM_EFFICIENT] = before


def forget_engine() -> None:
    """After a training: under ZeRO-3 transformers would go on to load every model in shards as long as the training's arguments live."""
    if engine() == "deepspeed":
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()
