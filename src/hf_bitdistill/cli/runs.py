"""Output folders of the training commands: none is an input, and none is continued with other settings than it was begun with."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import CONFIG_NAME

from ..files.atomic import write_text
from ..hub.cards import CARD, is_ours, set_aside
from ..machine import processes


OPTIONS_FILE = "run_options.json"

# Of transformers' own arguments those that decide what is learned; how long is not among them, because a run may go on.
_DECIDING = (
    "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon",
    "max_grad_norm", "optim", "optim_args", "per_device_train_batch_size", "gradient_accumulation_steps", "seed", "data_seed",
    "label_smoothing_factor", "bf16", "fp16", "train_sampling_strategy", "average_tokens_across_devices",
)  # fmt: skip
# Of the commands' options those that decide nothing, or only what is measured afterwards.
_NOT_DECIDING = (
    "attn_implementation",
    "pack_to",
    "eval_split",
    "max_eval_samples",
    "eval_batch_size",
    "kl_chunk_size",
    "push_format",
)


@contextlib.contextmanager
def says_how_to_go_on(prog: str, argv: Sequence[str]) -> Iterator[None]:
    """Of a run that goes on where it stopped: what to type after Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        if processes.is_first():
            launcher = "" if processes.world_size() == 1 else "(with its launcher) "
            print(
                f"\ninterrupted. The same command goes on from here:\n  {launcher}{prog} {shlex.join(argv)}",
                file=sys.stderr,
            )
        raise


def check_no_training(output: str | Path) -> None:
    """Refuse to put a model into the folder of a training, whose card and losses would be taken for its own.

    Raises:
        ValueError: names the folder.
    """
    output = Path(output)
    found = next((name for name in (OPTIONS_FILE, TRAINER_STATE_NAME) if (output / name).is_file()), None)
    if found is not None:
        raise ValueError(
            f"the output folder {output} is that of a training ({found}), which would be lost: give another folder"
        )


def set_card_aside(output: str | Path) -> None:
    """Take a card of ours from the model that is about to be replaced: it is of no other one."""
    card = Path(output) / CARD
    if is_ours(card):
        print(f"{card} is of the model that was there: it is {set_aside(card).name} now", flush=True)


def check_options(output: str | Path, arguments: Sequence[Any]) -> None:
    """Refuse to go on in a folder, or from a checkpoint, with other options than it was begun with, or where these are not known.

    Args:
        arguments: the command's dataclasses.

    Raises:
        ValueError: the folder holds a checkpoint or a model of a run with other options (names them), or of one that kept none.
    """
    output = Path(output)
    options = _deciding(arguments)
    if get_last_checkpoint(str(output)) if output.is_dir() else None:
        _compare(output, "checkpoints", options)
    elif (output / CONFIG_NAME).is_file():
        _compare(output, "a model", options)
    elif (resumed := _resumed(arguments)) is not None and (resumed.parent / OPTIONS_FILE).is_file():
        _compare(resumed.parent, "checkpoints", options)


def _resumed(arguments: Sequence[Any]) -> Path | None:
    """The checkpoint that is asked for."""
    asked = next((each.resume_from_checkpoint for each in arguments if isinstance(each, TrainingArguments)), None)
    return Path(asked) if isinstance(asked, str) and Path(asked).is_dir() else None


def _compare(folder: Path, what: str, options: Mapping[str, Any]) -> None:
    before, trouble = _kept(folder)
    if before is None:
        checkpoint = get_last_checkpoint(str(folder))
        then = f" (to go on from there: --resume_from_checkpoint {checkpoint})" if checkpoint else ""
        raise ValueError(
            f"{folder} holds {what}, and with which options it was trained is not known ({OPTIONS_FILE} {trouble}): give another "
            f"output_dir{then}"
        )
    different = [name for name in options if name in before and before[name] != options[name]]
    if different:
        shown = ", ".join(f"{name} ({before[name]!r}, not {options[name]!r})" for name in different)
        raise ValueError(f"{folder} was trained with another {shown}: give another output_dir, or the same options")


def _kept(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """The options in a folder, or why there are none."""
    try:
        kept = json.loads((folder / OPTIONS_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None, "is missing: it is of an earlier version, or of another command"
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None, "is damaged"
    return (kept, "") if isinstance(kept, dict) else (None, "is damaged")


def keep_options(output: str | Path, arguments: Sequence[Any]) -> None:
    """Keep what decides a run's result in its folder; arguments as of [`check_options`]."""
    Path(output).mkdir(parents=True, exist_ok=True)
    write_text(Path(output) / OPTIONS_FILE, json.dumps(_deciding(arguments), indent=2) + "\n")


def kept_options(folder: str | Path) -> dict[str, Any] | None:
    """The options that a folder's training was begun with; `None` where they are not known."""
    return _kept(Path(folder))[0]


def _deciding(arguments: Sequence[Any]) -> dict[str, Any]:
    stock = {field.name for field in dataclasses.fields(TrainingArguments)}
    options: dict[str, Any] = {}
    for each in arguments:
        if isinstance(each, TrainingArguments):
            options["kind_of_training"] = type(each).__name__
        for field in dataclasses.fields(each):
            deciding = field.name in _DECIDING if field.name in stock else field.name not in _NOT_DECIDING
            if deciding and field.init:
                options[field.name] = getattr(each, field.name)
    return json.loads(json.dumps(options, default=str))  # as the file gives it back
