"""`PublishingTrainer`: transformers' `Trainer`, which pushes packed students and nothing that is nobody's business."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import Future
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from huggingface_hub import CommitInfo, HfApi
from transformers import Trainer
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import logging
from transformers.utils.hub import PushInProgress

from ..files.atomic import name_aside, remove_leftovers
from ..hub import push_checks
from ..hub.cards import CARD, CardFacts, write_card
from ..hub.cards.base_model_id import base_model_id, license_of
from ..hub.published_card import published_card
from ..hub.push import forms, hub_api, push_to_hub
from ..hub.scrubbing import known_secrets
from ..hub.source import (
    Files,
    Source,
    check_files,
    documents,
    find_source,
    is_student_folder,
    link_files,
    other_files,
)
from ..hub.upload import open_repository, upload
from ..machine import processes
from ..machine.whole_models import whole_models
from .published_checkpoint import checkpoint_files


if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .config import DistillationConfig

logger = logging.get_logger(__name__)

_UPLOAD = "upload"
_LAST = "last-checkpoint"


class PublishingTrainer(Trainer):
    """`Trainer` whose uploads are what [`~hf_bitdistill.push_to_hub`] publishes of its output folder.

    - The student is packed (`args.push_format`), and tokenizer, card, results, report and the log of the training come with it.
    - Of a checkpoint (`hub_strategy`) it is packed as it is uploaded. `"checkpoint"` and `"all_checkpoints"` publish the checkpoint too, to
      resume from, but for its training arguments, in the same commit.
    - What is being uploaded stays what it is, whatever becomes of the checkpoint's folder meanwhile.
    - An upload in the background that fails is told by a warning; [`push_to_hub`] raises.
    """

    args: DistillationConfig
    model: PreTrainedModel
    push_in_progress: Any

    @cached_property
    def _queue(self) -> HfApi:
        """The client whose thread uploads one after the other: an older checkpoint must not come after a newer one."""
        return hub_api(self.args.hub_token)

    @property
    def _repository(self) -> str:
        """Its name, once [`init_hf_repo`] has opened it."""
        return cast(str, self.hub_model_id)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None, revision: str | None = None) -> None:
        """As in `Trainer`; a branch that is not there is made too. All processes call it.

        Raises:
            OSError, ValueError: the Hub refuses; one line says why. (In the first process; a ProcessesError in the others.)
        """
        self.hub_model_id = processes.from_first(  # type: ignore[assignment]  # declared by its first value, None
            lambda: self._open_repository(token, private, revision), "opening the repository on the Hub"
        )
        self.push_in_progress = getattr(self, "push_in_progress", None)

    def _open_repository(self, token: str | None, private: bool | None, revision: str | None) -> str:
        args = self.args
        name = self.hub_model_id or args.hub_model_id or Path(args.output_dir).absolute().name
        api = hub_api(token if token is not None else args.hub_token)
        private = private if private is not None else args.hub_private_repo
        return open_repository(api, name, private, revision if revision is not None else args.hub_revision)

    def push_to_hub(  # type: ignore[override]  # `Trainer` returns the others too, and does not say so
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        check_download: bool = True,
        **kwargs: Any,
    ) -> CommitInfo | Future | None:
        """As in `Trainer`.

        Args:
            check_download: download the weights that were published, and verify them.

        Raises:
            OSError: the Hub refuses or cannot be reached; the repository is as it was.
            CheckpointError: what can be downloaded is not what was uploaded. (With `blocking=False`: of the future's `result()`.)
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = token if token is not None else self.args.hub_token
        revision = revision if revision is not None else self.args.hub_revision
        model_name = kwargs.pop("model_name", None)
        self.init_hf_repo(token, private, revision)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        tags = kwargs.pop("tags", None) or []
        tags = [tags] if isinstance(tags, str) else list(tags)
        tags += [tag for tag in getattr(self.model, "model_tags", None) or [] if tag not in tags]
        self.create_model_card(model_name=model_name or self._repository.split("/")[-1], tags=tags or None, **kwargs)
        self._finish_current_push()
        self.save_state()  # (of which the log is published)
        scratch = self._new_scratch()
        try:
            files = self._files(Path(self.args.output_dir), scratch, token)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        check = check_download and is_student_folder(Path(self.args.output_dir))
        options = (files, scratch, commit_message, token, revision, check)
        if blocking:
            return self._upload_and_check(*options)
        return self._queue.run_as_future(self._upload_and_check, *options)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        args = self.args
        if not self.is_world_process_zero() or args.hub_strategy == HubStrategy.END:
            return
        busy = self.push_in_progress
        if not args.hub_always_push and busy is not None and not busy.is_done():
            return
        self.callback_handler.on_push_begin(args, self.state, self.control)
        folder, scratch = Path(checkpoint_folder), self._new_scratch()
        unit = f"step {self.state.global_step}"
        if args.save_strategy != SaveStrategy.STEPS and self.state.epoch is not None:
            unit = f"epoch {int(self.state.epoch)}"
        message, whole = f"Training in progress, {unit}", tuple[str, ...]()
        try:
            files = self._files(folder, scratch, args.hub_token)
            if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
                place = _LAST if args.hub_strategy == HubStrategy.CHECKPOINT else folder.name
                secrets = known_secrets(args.hub_token)
                files.update(link_files(checkpoint_files(folder, place, secrets), scratch))
                whole = (place,)
                check_files(files, secrets)
        except (OSError, ValueError) as error:
            # A training is worth more than an upload of one of its checkpoints.
            shutil.rmtree(scratch, ignore_errors=True)
            logger.warning(f"{checkpoint_folder} is not uploaded: {' '.join(str(error).split())}")
            return
        job = self._queue.run_as_future(
            self._upload_checkpoint, files, scratch, message, args.hub_token, args.hub_revision, whole
        )
        if busy is None or busy.is_done():
            self.push_in_progress = PushInProgress([job])  # type: ignore[arg-type]  # its `jobs` is a list
        else:
            busy.jobs.append(job)

    def _upload_checkpoint(self, files: Files, scratch: Path, message: str, *options: Any) -> None:
        try:
            self._upload(files, scratch, message, *options)
        except Exception as error:  # of any kind: in a thread of its own nobody would see it
            logger.warning(f"{message}: the upload failed ({' '.join(str(error).split())}); the training goes on.")

    def _upload_and_check(
        self, files: Files, scratch: Path, message: str | None, token: str | None, revision: str | None, check: bool
    ) -> CommitInfo:
        commit = self._upload(files, scratch, message, token, revision)
        if check:
            push_checks.check_download(str(self.hub_model_id), commit, token, self.args.push_format)
        return commit

    def _upload(
        self,
        files: Files,
        scratch: Path,
        message: str | None,
        token: str | None,
        revision: str | None,
        whole: tuple = (),
    ) -> CommitInfo:
        try:
            return upload(
                hub_api(token), self._repository, files, message or "End of training", revision=revision, whole=whole
            )
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _new_scratch(self) -> Path:
        """A folder for what is uploaded, beside the checkpoints: a hard link needs the same file system."""
        place = Path(self.args.output_dir) / _UPLOAD
        busy = getattr(self, "push_in_progress", None)
        if busy is None or busy.is_done():
            remove_leftovers(place)
        scratch = name_aside(place)
        scratch.mkdir(parents=True)
        return scratch

    def _files(self, folder: Path, scratch: Path, token: str | None) -> Files:
        """What is uploaded of the output folder or of a checkpoint. Nothing of it can change any more."""
        run = Path(self.args.output_dir)
        is_student = is_student_folder(folder)
        found = find_source(folder) if is_student else Source(folder, None, (), "")
        source = Source(found.packed, found.online, (folder, run), run.absolute().name)
        secrets = known_secrets(token)
        with whole_models(self.args):
            if is_student:
                # (Of a checkpoint both loaders are not tried: the training waits meanwhile.)
                files = forms(source, self.args.push_format, scratch, answers=folder == run)
            else:
                files = other_files(folder, secrets)
        if not (run / CARD).is_file():
            self.create_model_card(model_name=self._repository.split("/")[-1])
        files.update(documents(source, self._repository, secrets))
        if is_student:
            own = cast(bytes, files[CARD]).decode()
            card = published_card(own, None, source, scratch, self._repository, self.args.push_format, files)
            files[CARD] = cast(str, card).encode()  # (one that is there is never left out)
        files = link_files(files, scratch)
        check_files(files, secrets)
        return files

    def create_model_card(self, *args: Any, tags: list[str] | str | None = None, **kwargs: Any) -> None:
        """Writes `README.md` into the output folder: what the model is and how it is loaded. Other arguments are not used: this trainer
        knows no more."""
        if self.is_world_process_zero():
            tags = [tags] if isinstance(tags, str) else list(tags or [])
            os.makedirs(self.args.output_dir, exist_ok=True)
            config = self.accelerator.unwrap_model(self.model).config
            name = self.hub_model_id or Path(self.args.output_dir).absolute().name
            named = getattr(config, "name_or_path", None)
            facts = CardFacts(
                name.split("/")[-1],
                name,
                config,
                base=base_model_id(named),
                push_format=self.args.push_format,
                tags=tags,
                metadata={"license": license_of(named)},
            )
            write_card(Path(self.args.output_dir), facts)


def push_output(args: DistillationConfig, message: str) -> CommitInfo | None:
    """Publish what became of the output folder after the training: results of an evaluation, a report.

    Raises:
        OSError: the Hub refuses or cannot be reached.
    """
    return push_to_hub(
        args.output_dir,
        args.hub_model_id or Path(args.output_dir).absolute().name,
        push_format=args.push_format,
        commit_message=message,
        private=args.hub_private_repo,
        token=args.hub_token,
        revision=args.hub_revision,
    )
