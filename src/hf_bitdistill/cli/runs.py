"""Output folders of the training commands: none is an input, and none is continued with other settings than it was begun with."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import CONFIG_NAME

from ..atomic import write_text
from ..model_folder import check_output


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
    "streaming",
    "push_format",
)


# What is read besides models: a folder of data may hold the outputs of its runs.
_DATA = ("data_dir", "corpus", "dataset")


def check_output_dir(output: str | Path, inputs: Mapping[str, str | Path | None]) -> None:
    """Refuse an output folder that is an input, that lies inside or around a model that is read, or that holds a model in full precision.

    Args:
        inputs: option -> the folder or file that it names; Hub ids and `None` pass.

    Raises:
        ValueError: names the folder and the option.
    """
    output = Path(output).expanduser()
    if output.is_file():
        raise ValueError(f"output_dir {output} is a file")
    for name, given in inputs.items():
        if given is None:
            continue
        if name not in _DATA:
            check_output(output, **{name: given})
        if output.resolve() == Path(given).expanduser().resolve():
            raise ValueError(
                f"the output folder {output} is the {name.replace('_', ' ')} that is read: give another folder"
            )
    config = output / CONFIG_NAME
    if config.is_file():
        try:
            is_student = "quantization_config" in json.loads(config.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError):
            is_student = True  # no model that could be lost: a save that was killed, which the run mends
        if not is_student:
            raise ValueError(
                f"the output folder {output} holds a model in full precision, which would be lost: give another folder"
            )


def check_options(output: str | Path, arguments: Sequence[Any]) -> None:
    """Refuse to go on in a folder with other options than it was begun with.

    Args:
        arguments: the command's dataclasses.

    Raises:
        ValueError: the folder holds a checkpoint or a model of a run with other options; names them.
    """
    output = Path(output)
    file = output / OPTIONS_FILE
    if not file.is_file() or not ((output / CONFIG_NAME).is_file() or get_last_checkpoint(str(output))):
        return
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        print(
            f"{file} is damaged: whether these are the options that the run was begun with cannot be told", flush=True
        )
        return
    options = _deciding(arguments)
    different = [name for name in options if name in before and before[name] != options[name]]
    if different:
        shown = ", ".join(f"{name} ({before[name]!r}, not {options[name]!r})" for name in different)
        raise ValueError(f"{output} was trained with another {shown}: give another output_dir, or the same options")


def keep_options(output: str | Path, arguments: Sequence[Any]) -> None:
    """Keep what decides a run's result in its folder; arguments as of [`check_options`]."""
    Path(output).mkdir(parents=True, exist_ok=True)
    write_text(Path(output) / OPTIONS_FILE, json.dumps(_deciding(arguments), indent=2) + "\n")


def _deciding(arguments: Sequence[Any]) -> dict[str, Any]:
    stock = {field.name for field in dataclasses.fields(TrainingArguments)}
    options = {}
    for each in arguments:
        for field in dataclasses.fields(each):
            deciding = field.name in _DECIDING if field.name in stock else field.name not in _NOT_DECIDING
            if deciding and field.init:
                options[field.name] = getattr(each, field.name)
    return json.loads(json.dumps(options, default=str))  # as the file gives it back
