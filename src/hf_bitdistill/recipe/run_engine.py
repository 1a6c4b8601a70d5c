"""What the launcher's configuration asks of `Trainer` (FSDP, DeepSpeed), beside what the recipe does without a `Trainer`."""

from __future__ import annotations

from accelerate.utils import parse_flag_from_env

from ..machine import processes


def engine() -> str:
    """Which engine trains: `one` process, `ddp`, `fsdp` or `deepspeed`."""
    if processes.world_size() == 1:
        return "one"
    for name in ("fsdp", "deepspeed"):
        if parse_flag_from_env(f"ACCELERATE_USE_{name.upper()}"):
            return name
    return "ddp"


def shards() -> bool:
    """Whether the engine places a model's shards on the devices itself, so that the whole need not be there before."""
    return engine() in ("fsdp", "deepspeed")


def forget_engine() -> None:
    """After a training: under ZeRO-3 transformers would go on to load every model in shards as long as the training's arguments live."""
    if engine() == "deepspeed":
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()
