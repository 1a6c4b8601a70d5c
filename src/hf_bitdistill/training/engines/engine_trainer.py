"""`EngineTrainer`: transformers' `Trainer`, with which every engine ends in a model folder, and none fails half-way or without a word."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

from torch.nn.parallel import DistributedDataParallel
from transformers.trainer_utils import HubStrategy

from ..._compat import forget_prepared, uncompiled
from ...machine import processes
from ..publishing import PublishingTrainer
from .engine import Engine, check_engine, check_resumable
from .gathering import whole_state


_INSTEAD = "set eval_on_start=True, which evaluates as soon as the training has begun"


class EngineTrainer(PublishingTrainer):
    """`Trainer` under FSDP2 and DeepSpeed (and DDP):

    - What an engine cannot do is refused when the trainer is made, and a checkpoint of another engine before the training.
    - `save_model` writes a model folder under every one, `SHARDED_STATE_DICT` included: gathered a parameter at a time by the process
      that writes. Checkpoints in shards stay in shards, but for the last one and for those that are published.
    - `evaluate` and `predict` before `train` are right, or refused.

    Raises:
        ValueError: see [`check_engine`].
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._in_checkpoint = self._has_evaluating_engine = False
        check_engine(self.accelerator, self.args)

    @property
    def engine(self) -> Engine:
        """What this trainer trains with."""
        return Engine.of(self.accelerator)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As in `Trainer`.

        Raises:
            CheckpointError: another engine wrote the checkpoint.
            ValueError: an evaluation has made DeepSpeed's engine, which has no optimizer.
        """
        if self._has_evaluating_engine:
            raise ValueError(
                f"train() after evaluate() is not possible with {self.engine.name}, whose engine was made without an optimizer: {_INSTEAD}, or "
                "make a new trainer"
            )
        if isinstance(resume_from_checkpoint, (str, os.PathLike)):
            processes.from_first(
                lambda: check_resumable(resume_from_checkpoint, self.engine, self.args.world_size),
                "reading a checkpoint",
            )
        self._forget_evaluation()
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _forget_evaluation(self) -> None:
        """An evaluation prepares the model for itself, and accelerate would take it for one that is wrapped already: without DDP's
        gradients the processes would train apart."""
        if self.engine.kind != "plain" or self.args.world_size == 1:
            return
        if isinstance(self.model_wrapped, DistributedDataParallel):
            return
        self.model_wrapped = self.model  # (the evaluation's may be compiled)
        forget_prepared(self.accelerator, self.model)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As in `Trainer`.

        Raises:
            ValueError: it comes before the training, and the engine makes models with their optimizers alone.
        """
        engine = self.engine
        if engine.kind == "fsdp" and not _is_sharded(self.model):
            raise ValueError(
                f"evaluate() before train() is not possible with {engine.name}, which shards a model together with its optimizer: {_INSTEAD}"
            )
        if engine.kind == "deepspeed" and self.deepspeed is None:
            if engine.level != 3:
                raise ValueError(
                    f"evaluate() before train() is not possible with {engine.name}, which has no engine without an optimizer: {_INSTEAD}"
                )
            self._has_evaluating_engine = True
        return super().evaluation_loop(*args, **kwargs)

    # ---- Saving ----

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self._in_checkpoint = True
        try:
            super()._save_checkpoint(*args, **kwargs)
        finally:
            self._in_checkpoint = False

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in `Trainer`. Every process calls it; one has the whole weights on its CPU for a while."""
        engine = self.engine
        if engine.kind not in ("fsdp", "deepspeed"):
            super().save_model(output_dir, _internal_call)
            return
        folder = Path(output_dir if output_dir is not None else self.args.output_dir)
        if self._in_checkpoint and engine.has_sharded_checkpoints and not self._is_read_as_model():
            self._save_without_weights(folder)
        else:
            self._save(str(folder), state_dict=whole_state(self.model, keep=self.args.should_save))
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _is_read_as_model(self) -> bool:
        """Whether a checkpoint has to be a model folder: it is published, or what a run that was killed right after it has to show."""
        is_published = self.args.push_to_hub and self.args.hub_strategy != HubStrategy.END
        return is_published or self.state.global_step >= self.state.max_steps

    def _save_without_weights(self, folder: Path) -> None:
        """What the shards of a checkpoint lack of a model."""
        if not self.args.should_save:
            return
        os.makedirs(folder, exist_ok=True)
        config = copy.deepcopy(self.model.config)
        config.architectures = [type(self.model).__name__.removeprefix("FSDP")]
        config.save_pretrained(folder)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)


def _is_sharded(model: Any) -> bool:
    from torch.distributed.fsdp import FSDPModule

    return isinstance(uncompiled(model), FSDPModule)
