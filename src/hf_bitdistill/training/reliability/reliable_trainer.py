"""`ReliableTrainer`: transformers' `Trainer`, whose checkpoints are whole or not there, and which stops where numbers are not finite."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers.trainer import SCALER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy
from transformers.utils import logging

from ...files.atomic import file_aside, name_aside, put_in_place, remove_leftovers
from ...files.disk_room import size_text
from ...files.model_folder import replace_model
from ...files.tensor_headers import CheckpointError
from ...files.training_checkpoints import (
    Choice,
    choose,
    contents,
    damage,
    difference,
    holds_optimizer,
    list_checkpoints,
    processes_of,
    refusal,
    rotate,
    signature,
    write_manifest,
)
from ...machine import agreement, processes
from ...machine.freed_memory import freed_memory_kept
from ..engines.engine_trainer import EngineTrainer
from ..evaluated_rows import EvaluatedRowsTrainer
from ..one_bar import with_one_bar
from ..streamed_rows import StreamedRowsTrainer
from .best_checkpoint import BestCheckpointCallback
from .finite import FiniteWatch, StepReport, check_finite_student, describe_batch
from .footprint import check_training_room, free_bytes


if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..config import DistillationConfig


logger = logging.get_logger(__name__)

# All processes write into the same folder.
_TAG = "run"
# Options that say what one process does, or where it logs; and of all others those that are no matter of the training.
_APART = (
    "local_rank", "logging_dir", "run_name", "output_dir", "resume_from_checkpoint", "hub_token", "disable_tqdm", "log_level",
    "log_level_replica", "report_to", "dataloader_num_workers",
)  # fmt: skip
_ONE_FOLDER = "Give an output_dir that all machines share; or, to keep whole checkpoints on the disk of each machine, set save_on_each_node=True."


def check_one_folder(args: DistillationConfig) -> None:
    """Refuse to train where the machines do not share the output folder, unless each writes for itself.

    Raises:
        ProcessesError, OSError: as `agreement.check_shared`.
    """
    if args.world_size > 1 and not args.save_on_each_node:
        agreement.check_shared(args.output_dir, _ONE_FOLDER)


class ReliableTrainer(StreamedRowsTrainer, EvaluatedRowsTrainer, EngineTrainer):
    """`Trainer` with these promises:

    - A checkpoint is written beside its place and renamed when it is complete; the model in the output folder likewise.
    - `train(resume_from_checkpoint=True)` goes on from the newest whole checkpoint and says which ones it passed over, and
      why. A damaged one that is named is refused. Nothing of a checkpoint is replaced by a fresh state without a word.
    - A step whose loss or gradient is not finite does not reach the student; after `args.nan_patience` in a row the run stops.
      A student that is not finite is never saved.
    - An output folder that cannot be written, or has too little room, is refused before the training.
    - Of several processes the first chooses the checkpoint. Where another does not have it, or has other versions, options or data, all end.

    Args: as in `Trainer`; `args` is a [`DistillationConfig`].
    """

    args: DistillationConfig
    model: PreTrainedModel

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._staging: Path | None = None
        self._pushed: str | None = None
        self._known_whole: dict[Path, tuple] = {}
        self._watch = FiniteWatch(self.accelerator)
        with_one_bar(self.callback_handler.callbacks)
        self.add_callback(BestCheckpointCallback())

    # ---- Resuming ----

    def find_checkpoint(self, asked: str | os.PathLike | bool | None = True) -> str | None:
        """The checkpoint to go on from.

        Args:
            asked: a path, or `True` for the newest whole checkpoint of the output folder.

        Returns:
            `None` if none was asked for, or there is none that is whole; a warning names the damaged ones.

        Raises:
            CheckpointError: the checkpoint that was asked for by its path is damaged or not there.
            ProcessesError: it is not the same in every process. (All of them call this.)
        """
        if not asked:
            return None

        def find() -> tuple[str | None, str | None]:
            try:
                return self._find(asked), None
            except CheckpointError as error:
                return None, str(error)

        # (Not raised there, so that it is the same error in all of them.)
        folder, refused = processes.from_first(find, "choosing the checkpoint to go on from")
        if refused:
            raise CheckpointError(refused)
        if processes.world_size() > 1:
            self._check_choice(None if folder is None else Path(folder))
        return folder

    def _check_choice(self, folder: Path | None) -> None:
        """Whether what the first process chose is what all of them have.

        Raises:
            ProcessesError: it is not; in all processes.
        """

        def look() -> tuple[Any, Any]:
            if folder is None:
                return [each.name for each in list_checkpoints(self.args.output_dir)], None
            return contents(folder), signature(folder)

        expected, files = processes.from_first(look, "reading the checkpoint to go on from")

        def compare() -> str | None:
            if folder is None:
                here = [each.name for each in list_checkpoints(self.args.output_dir) if each.name not in expected]
                return f"there is {', '.join(here)}" if here else None
            problem = difference(folder, expected)
            if problem is None and processes.is_first_here() and signature(folder) != files:
                problem = self._problem(folder)  # a copy on another machine's disk
            return problem

        found = processes.together(compare, "reading the checkpoint to go on from")
        for problem, where in processes.gather((found, processes.place())):
            if problem:
                chosen = (
                    f"the checkpoint to go on from is {folder}" if folder else "there is no checkpoint to go on from"
                )
                raise processes.ProcessesError(
                    f"in process 0 {chosen}; in {where} {problem}: they do not share the folder, or have copies that are not alike. "
                    f"{_ONE_FOLDER}"
                )

    def _check_alike(self) -> None:
        """Whether all processes have the same versions, options, data and teacher.

        Raises:
            ProcessesError: they have not; in all processes.
        """
        teacher = getattr(self, "teacher", None)

        def parts() -> list[agreement.Alike]:
            found = [agreement.versions(), agreement.options(self.args.to_dict(), _APART)]
            found.append(
                agreement.rows({"the training data": self.train_dataset, "the data to evaluate on": self.eval_dataset})
            )
            if teacher is not None and not agreement.is_in_shards(teacher):
                found.append(agreement.model("the teachers", teacher))
            return found

        agreement.check_alike(processes.together(parts, "looking at what is trained on"))
        if self.args.save_strategy != SaveStrategy.NO:
            check_one_folder(self.args)

    def _find(self, asked: str | os.PathLike | bool) -> str | None:
        if asked is True:
            choice = choose(self.args.output_dir, self._problem)
            if choice.skipped:
                then = f"going on from {choice.checkpoint}" if choice.checkpoint else "starting from the beginning"
                logger.warning(f"Not used: {choice.reasons()}. {then[0].upper()}{then[1:]}.")
            folder = choice.checkpoint
        else:
            folder = Path(cast(str, asked))
            problem = self._problem(folder) if folder.is_dir() else "there is no such folder"
            if problem:
                raise refusal(folder, problem, self._others(folder))
        if folder is None:
            return None
        if not holds_optimizer(folder):
            logger.warning(
                f"{folder} holds weights alone (save_only_model): optimizer, learning rate schedule and random numbers "
                "start anew, so the steps from here on are not those of a run without interruption."
            )
        elif processes_of(folder) != self.args.world_size:
            logger.warning(
                f"{folder} was written by {processes_of(folder)} process(es) and is resumed by {self.args.world_size}: random "
                "numbers start anew, so the steps from here on are not those of a run without interruption."
            )
        return str(folder)

    def _damage(self, folder: Path) -> str | None:
        """See [`damage`]; checksums are computed once, as long as the files stay what they are."""
        seen = signature(folder)
        if self._known_whole.get(folder.resolve()) != seen:
            reason = damage(folder)
            if reason:
                return reason
            self._known_whole[folder.resolve()] = seen
        return None

    def _may_stay(self, folder: Path) -> bool:
        """Whether a checkpoint is good for something, if not for this run: as far as it can be read now."""
        try:
            (folder / TRAINER_STATE_NAME).read_bytes()
        except FileNotFoundError:
            return False
        except OSError:  # of the disk, perhaps for a moment
            return True
        return self._damage(folder) is None

    def _problem(self, folder: Path) -> str | None:
        """Why this run cannot go on from a checkpoint."""
        reason = self._damage(folder)
        if reason:
            return reason
        if not holds_optimizer(folder) and not self.args.save_only_model:
            return "it holds weights alone, without optimizer.pt (as save_only_model=True writes it)"
        return None

    def _others(self, folder: Path) -> Choice:
        beside = Path(os.path.abspath(folder)).parent
        choice = choose(beside, self._problem)
        return choice if choice.checkpoint else choose(self.args.output_dir, self._problem)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As in `Trainer`.

        Raises:
            CheckpointError: the checkpoint to resume from is damaged, or with `True` none is whole.
            ProcessesError: the processes do not have alike what they must; in all of them.
            OSError: the output folder cannot be written, or has too little room.
            FloatingPointError: losses or gradients stay not finite.
        """
        if processes.world_size() > 1:
            self._check_alike()
        checkpoint = self.find_checkpoint(resume_from_checkpoint)
        if resume_from_checkpoint is True and checkpoint is None:
            raise CheckpointError(f"there is no whole checkpoint in {self.args.output_dir} to resume from")
        if checkpoint is not None:
            logger.info(f"Going on from {checkpoint}.")
        optim = None if self.optimizer is None else "given"  # by its object: of unknown size
        check_training_room(self.accelerator.unwrap_model(self.model), self.args, optim)
        if self.args.should_save:
            remove_leftovers(Path(self.args.output_dir) / PREFIX_CHECKPOINT_DIR, any_ending=True)
        self._watch = FiniteWatch(self.accelerator)
        with freed_memory_kept(self.args.device.type == "cpu"):
            return super().train(checkpoint, *args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        self._load("the optimizer or its schedule", super()._load_optimizer_and_scheduler, checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        self._load("the random states", super()._load_rng_state, checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        scaler = getattr(self.accelerator, "scaler", None)
        if checkpoint and scaler is not None and not os.path.isfile(os.path.join(checkpoint, SCALER_NAME)):
            logger.warning(f"{checkpoint} has no {SCALER_NAME}: the scale of the float16 gradients starts anew.")
        self._load("the gradient scaler", super()._load_scaler, checkpoint)

    @staticmethod
    def _load(what: str, load: Any, checkpoint: str | None) -> None:
        try:
            load(checkpoint)
        except (ValueError, RuntimeError, KeyError, TypeError, EOFError, OSError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise CheckpointError(f"{checkpoint}: {what} cannot be restored in this run ({reason})") from error

    # ---- Saving ----

    def _get_output_dir(self, trial: Any) -> str:
        # While a checkpoint is written, its place is in the folder that is renamed.
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run = Path(super()._get_output_dir(trial))
        place = run / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        staging = name_aside(place, _TAG)
        if self.args.should_save:
            remove_leftovers(run / PREFIX_CHECKPOINT_DIR, any_ending=True)
        self.accelerator.wait_for_everyone()
        self._staging, self._pushed = staging, None
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            self._finish_checkpoint(staging / place.name, place)
        except (OSError, SafetensorError, RuntimeError) as error:
            if not _is_of_writing(error):
                raise
            reason = " ".join(str(error).split())
            shutil.rmtree(staging, ignore_errors=True)
            raise CheckpointError(
                f"{place} could not be written ({reason}); {size_text(free_bytes(run))} are free. {self._last_good(run)}"
            ) from error
        finally:
            self._staging = None
            if self.is_local_process_zero():
                shutil.rmtree(staging, ignore_errors=True)
        self._known_whole[place.resolve()] = signature(place)
        if self._pushed:
            super()._push_from_checkpoint(str(place))
        if self.args.should_save:
            rotate(
                run,
                self.args.save_total_limit,
                place,
                self.state.best_model_checkpoint,
                self._may_stay,
            )

    def _finish_checkpoint(self, written: Path, place: Path) -> None:
        """Give a complete checkpoint its name."""
        best = self.state.best_model_checkpoint
        if best is not None and Path(best) == written:
            self.state.best_model_checkpoint = str(place)
        # First the process that writes, then those of machines with a disk of their own.
        for turn in (self.args.should_save, self.is_local_process_zero()):
            if turn and written.is_dir():
                state = written / TRAINER_STATE_NAME
                if state.exists():
                    self.state.save_to_json(str(state))
                write_manifest(written)
                put_in_place(written, place)
            self.accelerator.wait_for_everyone()

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # An upload runs on in the background: it needs the folder under its last name.
        if self._staging is None:
            super()._push_from_checkpoint(checkpoint_folder)
        else:
            self._pushed = checkpoint_folder

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in `Trainer`; the files are written aside and moved when all are there.

        Raises:
            FloatingPointError: the student is not finite.
        """
        folder = Path(output_dir if output_dir is not None else self.args.output_dir)
        try:
            check_finite_student(self.accelerator.unwrap_model(self.model), self.accelerator)
        except FloatingPointError as error:
            raise FloatingPointError(
                f"step {self.state.global_step}: {error}; it is not saved. {self._last_good(self.args.output_dir)}"
            ) from None
        if self._staging is not None:
            super().save_model(str(folder), _internal_call)
            return
        if self.args.should_save:
            # Also of a run that was killed after its last checkpoint, and does not train again.
            remove_leftovers(folder / PREFIX_CHECKPOINT_DIR, any_ending=True)
        with ExitStack() as stack:
            # All processes write into the folder that the one makes.
            aside = str(stack.enter_context(replace_model(folder))) if self.args.should_save else None
            common = processes.from_first(lambda: aside, "making a folder to save into")
            super().save_model(aside or common, _internal_call=True)
            self.accelerator.wait_for_everyone()
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def save_state(self) -> None:
        """As in `Trainer`; an old file is replaced in one step."""
        if self.is_world_process_zero():
            with file_aside(Path(self.args.output_dir) / TRAINER_STATE_NAME) as aside:
                self.state.save_to_json(str(aside))

    def _last_good(self, run: str | os.PathLike) -> str:
        whole = next((folder for folder in reversed(list_checkpoints(run)) if not self._problem(folder)), None)
        return f"The last good checkpoint is {whole}" if whole else "There is no checkpoint yet"

    # ---- Numbers that are not finite ----

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """As in `Trainer`. A loss that is not finite is returned as 0, so that the sum of the losses stays a number; the step is
        dealt with at its end."""
        self._watch.begin(inputs)
        loss = super().training_step(model, inputs, *args, **kwargs)
        self._watch.add({"loss": loss})
        return torch.nan_to_num(loss, nan=0.0, posinf=0.0, neginf=0.0)

    def _get_grad_norm(self, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor | float | None:
        # Called once an optimizer step, between the last backward and the update.
        grad_norm = super()._get_grad_norm(model, *args, **kwargs)
        report = self._watch.end_step(grad_norm)
        if report.is_bad:
            self._not_finite(model, report)
        return grad_norm

    def _not_finite(self, model: nn.Module, report: StepReport) -> None:
        """Keep a step that is not finite from the student, and stop after too many.

        Raises:
            FloatingPointError: with the step, the terms and the batch.
        """
        scaler = getattr(self.accelerator, "scaler", None)
        if scaler is not None and not report.has_bad_terms and scaler.get_scale() > 1:
            # Gradients of float16 overflow now and then: the scaler leaves the step out and takes a smaller scale.
            return
        was_skipped = self.is_deepspeed_enabled and self.accelerator.optimizer_step_was_skipped
        if was_skipped and not report.has_bad_terms:
            return  # (likewise, with a scale of its own)
        self._watch.leave_out(report)
        causes = [cause for _, batch in report.batches[:1] for cause in self._causes(batch)]
        terms = ", ".join([*causes, *report.terms]) or "a term of another process"
        batches = "; ".join(
            f"batch {place + 1} of {report.count} of the step: {describe_batch(batch)}"
            for place, batch in report.batches
        )
        process = f" (process {self.args.process_index})" if self.args.world_size > 1 else ""
        message = f"step {self.state.global_step + 1}{process}: not finite (NaN or infinity): {terms}"
        message += f"; {batches}" if batches else f"; {report.count} batch(es), none with a loss that is not finite"
        if self.is_deepspeed_enabled and not was_skipped:
            # It takes the step together with the backward pass.
            raise FloatingPointError(
                f"{message}, and {self.engine.name} has taken the step. {self._last_good(self.args.output_dir)}"
            )
        patience = self.args.nan_patience
        if self._watch.in_a_row >= patience:
            times = f"for {patience} steps in a row" if patience > 1 else "(nan_patience=1)"
            raise FloatingPointError(
                f"{message}. Stopped {times}: a lower learning_rate or max_grad_norm may help, or other data. "
                f"{self._last_good(self.args.output_dir)}"
            )
        logger.warning(f"{message}. The step is left out ({self._watch.in_a_row} of nan_patience={patience}).")
        if scaler is None and not self.is_deepspeed_enabled:
            # Without gradients the optimizer changes nothing, momentum included.
            model.zero_grad(set_to_none=True)

    def _causes(self, batch: Mapping[str, Any]) -> list[str]:
        """What made the terms of a batch not finite, as far as can be told."""
        return []

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in `Trainer`. The loss is the mean of the finite steps; `nan_steps` says how many others there were."""
        if "loss" in logs:
            self._total_loss_scalar += self._watch.correct(logs)
        super().log(logs, start_time)


def _is_of_writing(error: Exception) -> bool:
    """Whether an exception comes of files that could not be written (torch says so in a RuntimeError)."""
    return (
        isinstance(error, (OSError, SafetensorError))
        or "PytorchStreamWriter" in str(error)
        or "inline_container" in str(error)
    )
