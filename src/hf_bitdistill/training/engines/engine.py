"""What runs the processes of a training: nothing, DDP, FSDP2 or DeepSpeed, each as Trainer and accelerate configure it. What one of them
cannot do is refused here, before the first step."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from accelerate import Accelerator
from accelerate.utils import DistributedType, parse_flag_from_env
from transformers import TrainingArguments
from transformers.utils import logging

from ...files.tensor_headers import CheckpointError
from ...files.training_checkpoints import holds_optimizer
from ..optimizers import knows_no_shards


logger = logging.get_logger(__name__)

_DEEPSPEED_STATES, _FSDP_SHARDS, _FSDP_FILE = "global_step*", "pytorch_model_fsdp_0", "pytorch_model_fsdp.bin"


@dataclass(frozen=True)
class Engine:
    """What an accelerator trains with.

    Attributes:
        kind: its family. `"plain"` is one process, or several with one model each (DDP).
        level: version of FSDP, stage of ZeRO; 0 otherwise.
        has_sharded_checkpoints: each process writes its part of a checkpoint's weights (`SHARDED_STATE_DICT`).
    """

    kind: Literal["plain", "fsdp", "deepspeed", "other"] = "plain"
    level: int = 0
    has_sharded_checkpoints: bool = False

    @classmethod
    def of(cls, accelerator: Accelerator) -> Engine:
        """The one that an accelerator was configured for."""
        state = accelerator.state
        if getattr(state, "deepspeed_plugin", None) is not None:
            config = state.deepspeed_plugin.deepspeed_config
            return cls("deepspeed", int(config.get("zero_optimization", {}).get("stage", 0)))
        if accelerator.distributed_type == DistributedType.FSDP:
            plugin = state.fsdp_plugin
            return cls("fsdp", plugin.fsdp_version, "SHARDED" in str(plugin.state_dict_type))
        known = accelerator.distributed_type in (DistributedType.NO, DistributedType.XLA) or str(
            accelerator.distributed_type
        ).rpartition(".")[-1].startswith("MULTI_")
        return cls("plain" if known else "other")

    @property
    def name(self) -> str:
        """For messages."""
        if self.kind == "fsdp":
            return f"FSDP{self.level}"
        if self.kind == "deepspeed":
            return f"DeepSpeed ZeRO-{self.level}" if self.level else "DeepSpeed without ZeRO"
        return "no engine (one process, or DDP)"

    @property
    def writes(self) -> str:
        """Whose checkpoints its are, for messages: another one cannot go on from them."""
        if self.kind == "fsdp":
            return f"{self.name}, {'SHARDED' if self.has_sharded_checkpoints else 'FULL'}_STATE_DICT"
        return "DeepSpeed" if self.kind == "deepspeed" else self.name

    @property
    def shards_weights(self) -> bool:
        """Whether a process holds but a part of the weights, and a forward pass needs all processes."""
        return self.kind == "fsdp" or (self.kind == "deepspeed" and self.level == 3)


def check_engine(accelerator: Accelerator, args: TrainingArguments) -> None:
    """Refuse what an engine cannot do with a student. Called before anything is trained.

    Raises:
        ValueError: names the engine, and what to do.
    """
    engine = Engine.of(accelerator)
    if engine.kind == "other":
        raise ValueError(f"{accelerator.distributed_type} is not supported: train with DDP, FSDP2 or DeepSpeed (ZeRO)")
    if engine.kind == "fsdp":
        _check_fsdp(engine, args)
    elif engine.kind == "deepspeed":
        _check_deepspeed(accelerator.state.deepspeed_plugin.deepspeed_config)
    elif args.world_size > 1 and (args.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP")):
        logger.warning(
            f"FSDP is asked for, and accelerate leaves it off on {accelerator.device.type}: every process holds whole models (DDP)."
        )


def _check_fsdp(engine: Engine, args: TrainingArguments) -> None:
    if engine.level != 2:
        raise ValueError(
            'FSDP1 is not supported, which flattens the weights of a layer into one: set fsdp_version: 2 (fsdp_config={"version": 2})'
        )
    if knows_no_shards(args.optim):
        raise ValueError(
            f"optim={_value(args.optim)} is an optimizer of bitsandbytes, which knows no sharded parameters (FSDP2): use "
            "optim='adamw_torch_8bit' (torchao), or DeepSpeed"
        )


def _check_deepspeed(config: dict) -> None:
    zero = config.get("zero_optimization", {})
    if int(config.get("tensor_parallel", {}).get("autotp_size", 0) or 0) > 1:
        raise ValueError(
            "DeepSpeed's tensor parallelism (autotp_size) puts linear layers of its own in the place of ternary ones: remove tensor_parallel "
            "from the DeepSpeed config"
        )
    if zero.get("zero_quantized_weights"):
        raise ValueError(
            "zero_quantized_weights rounds the weights that a ternary layer rounds to -1, 0 and 1, which changes the student: remove it from "
            "the DeepSpeed config"
        )


def _value(option: object) -> str:
    return str(getattr(option, "value", option))


def check_resumable(checkpoint: str | os.PathLike, engine: Engine, processes: int) -> None:
    """Refuse a checkpoint that another engine wrote: what is missing would be a fresh optimizer without a word, or a raw error.

    Args:
        checkpoint: a whole one.
        engine: that goes on from it.
        processes: how many there are.

    Raises:
        CheckpointError: names both, and what to do.
    """
    folder = Path(checkpoint)
    advice = "go on with what wrote it, or start a new training from a student that was saved"
    if not holds_optimizer(folder):
        if engine.kind in ("fsdp", "deepspeed"):
            raise CheckpointError(
                f"{folder} holds weights alone (save_only_model), and {engine.name} resumes from its own states alone: start a new training from "
                "it (as the model)"
            )
        return
    written = _written_by(folder).writes
    if written != engine.writes:
        here = engine.name if engine.kind == "deepspeed" else engine.writes
        raise CheckpointError(f"{folder} was written by {written}, and this training runs with {here}: {advice}")
    if engine.kind == "deepspeed":
        _check_deepspeed_states(folder, engine, processes, advice)


def _written_by(folder: Path) -> Engine:
    """As far as its files tell."""
    if any(folder.glob(_DEEPSPEED_STATES)):
        return Engine("deepspeed")
    if (folder / _FSDP_SHARDS).is_dir():
        return Engine("fsdp", 2, has_sharded_checkpoints=True)
    return Engine("fsdp", 2) if (folder / _FSDP_FILE).is_file() else Engine()


def _check_deepspeed_states(folder: Path, engine: Engine, processes: int, advice: str) -> None:
    """DeepSpeed names its files by the process; ZeRO-3 has a part of the weights for each."""
    is_stage_3 = any(folder.glob(f"{_DEEPSPEED_STATES}/zero_pp_rank_*_model_states.pt"))
    if is_stage_3 != engine.shards_weights:
        written = "ZeRO-3" if is_stage_3 else "another stage than ZeRO-3"
        raise CheckpointError(
            f"{folder} was written by {written}, and this training runs with {engine.name}: {advice}"
        )
    count = len(list(folder.glob(f"{_DEEPSPEED_STATES}/*zero_pp_rank_*_optim_states.pt")))
    if count and count != processes:
        raise CheckpointError(
            f"{folder} was written by {count} process(es), and there are {processes}: DeepSpeed cannot divide its states anew. Start {count}"
        )
