"""`bitdistill warm-start`: make a ternary student of a model and train its blocks, a few layers at a time, to compute what
the model's own compute.

Either some hundred thousand tokens of any text (--corpus), for a student that is trained further; or, of a model that is
fine-tuned already, the examples of its task (--task), for a student of it that `bitdistill distill` finishes with the same
model as teacher. The result is an online student; the errors before and after are in warm_start.json beside it. Takes all
options of `WarmStartConfig` besides its own. The same command goes on behind the last finished window of one that was killed. Under torchrun or
accelerate launch the processes share the rows of every batch, and the first one writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..data import (
    Task,
    batch_by_length,
    batch_for_tokens,
    build_dataset,
    get_task,
    load_corpus,
    load_task_dataset,
    pack_corpus,
    take_tokens,
)
from ..data.tokenizers import load_tokenizer
from ..files.disk_room import check_room, check_writable, parameter_bytes
from ..files.model_folder import replace_model
from ..files.output_folder import check_output_dir
from ..machine import processes
from ..machine.environment import default_device, to
from ..machine.whole_models import whole_models
from ..modeling.surgery import is_student
from ..options.options_parser import OptionsParser
from ..options.parsing import read, require
from ..recipe.efforts import EFFORTS
from .arguments import CorpusArguments, ModelArguments, StudentArguments, TrainingTaskArguments
from .models import calibrate, load_model, load_student
from .runs import check_no_training, set_card_aside


_RECIPE = EFFORTS["standard"]

# In the output folder, from the first window to the end.
CHECKPOINT = "warm_start_checkpoint.pt"


@dataclass
class WarmStartArguments:
    """What the warm start reads, and where the student goes."""

    output_dir: str | None = field(default=None, metadata={"help": "Folder for the student."})
    warm_start_tokens: int = field(
        default=_RECIPE.warm_start_tokens,
        metadata={"help": "Tokens of the text that are used; no more than the steps can read."},
    )
    batch_size: int | None = field(
        default=None,
        metadata={
            "help": f"Blocks, or examples of a task, a step. Default: those of about {_RECIPE.window_tokens} tokens, at most 32, and at least one a process."
        },
    )
    shuffle_buffer: int = field(default=10_000, metadata={"help": "Documents among which the text is shuffled."})
    keep_massive_ratio: float = field(
        default=_RECIPE.keep_massive_ratio,
        metadata={
            "help": "Keep projections in full precision whose largest output is so many times the median one. 0: none."
        },
    )
    hidden_states: str = field(
        default="auto",
        metadata={
            "help": "Where the hidden states of the text wait between windows: memory, disk (a file in the output folder that "
            "is gone with the process), or auto: memory, unless they would take more than half of what is free.",
            "choices": ["auto", "memory", "disk"],
        },
    )


def make_parser(prog: str) -> OptionsParser:
    from ..training.warm_start import WarmStartConfig

    kinds = (
        ModelArguments,
        StudentArguments,
        CorpusArguments,
        TrainingTaskArguments,
        WarmStartArguments,
        WarmStartConfig,
    )
    return OptionsParser(kinds, prog, __doc__, required=("output_dir", "model_name_or_path", "corpus or task"))


def run(argv: list[str], prog: str) -> None:
    from ..training.massive_activations import find_massive_projections
    from ..training.warm_start import fit_whole, warm_start

    model_arguments, student_arguments, corpus, task_arguments, arguments, config = read(make_parser(prog), argv)
    output = Path(require(arguments.output_dir, "output_dir"))
    if not processes.is_first():
        logging.disable_progress_bar()  # of the loading: it is shown once
    processes.on_first(lambda: _check_output(output, model_arguments, corpus), "checking the output folder")
    if (corpus.corpus is None) == (task_arguments.task is None):
        raise ValueError("a warm start reads plain text or a task's examples: give either --corpus or --task")
    task = None if task_arguments.task is None else get_task(task_arguments.task)
    for name in ("batch_size", "warm_start_tokens"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")
    with whole_models():
        teacher = load_model(model_arguments, task_arguments.head)
    if is_student(teacher):
        raise ValueError(
            f"{model_arguments.model_name_or_path} is a student already: start from its full-precision model"
        )
    # The student is as large as its teacher, and once more in the checkpoint.
    needed = dict.fromkeys(("the student", "its checkpoint"), parameter_bytes(teacher))
    processes.on_first(lambda: check_room(output, needed), "checking the output folder")
    tokenizer = load_tokenizer(model_arguments.model_name_or_path)

    def read_rows() -> list[Sequence[int]]:
        if task is None:
            sequences = _blocks(corpus, arguments, tokenizer, config.seed)
        else:
            sequences = _examples(task, task_arguments, tokenizer, config.seed)
        return take_tokens(sequences, arguments.warm_start_tokens)

    # Read once; and whatever a source gives, all have the same.
    rows = processes.from_first(read_rows, "reading the text")
    if not rows:
        raise ValueError(
            f"{corpus.corpus} has fewer tokens than one block of {corpus.block_size}"
            if task is None
            else f"every example of {task.name} is longer than its max_length"
        )
    size = arguments.batch_size or max(batch_for_tokens(rows, _RECIPE.window_tokens), processes.world_size())
    # No more than the steps can read: every batch costs a pass through both models.
    readable = size * max(config.steps_per_window, student_arguments.calibration_batches)
    batches = batch_by_length(rows[:readable], size, tokenizer)
    sample = batches[: student_arguments.calibration_batches]
    device = default_device()  # (of this process: the exchange above told it which)
    whole = fit_whole(teacher, config.window_layers, device)
    if whole:
        teacher = to(teacher, device)
    if arguments.keep_massive_ratio:
        with _computing(teacher, device, config.bf16):
            found = find_massive_projections(
                teacher, sample, arguments.keep_massive_ratio, student_arguments.to_config()
            )
        student_arguments.modules_to_not_convert = [*(student_arguments.modules_to_not_convert or []), *found]
        _say(f"kept in full precision: {', '.join(found) or 'none'}")
    with whole_models():
        student, _ = load_student(model_arguments, student_arguments, task_arguments.head, task)
    if whole:
        student = to(student, device)
    with _computing(student, device, config.bf16):
        calibrate(student, student_arguments, sample)
    report = warm_start(
        student,
        teacher,
        batches,
        config,
        progress=True,
        checkpoint=output / CHECKPOINT,
        device=device,
        hidden_states=arguments.hidden_states,
        scratch=output,
        say=_say,
    )

    def save() -> None:
        set_card_aside(output)
        with replace_model(output) as folder:
            student.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            (folder / "warm_start.json").write_text(json.dumps(report.to_dict(), indent=2) + "\n")
        (output / CHECKPOINT).unlink(missing_ok=True)

    processes.on_first(save, "saving the student")
    for window in report.windows:
        layers = f"layers {window.first_layer} to {window.last_layer}"
        _say(f"{layers}: error {window.error_before:.4g} -> {window.error_after:.4g}")


def _say(text: str) -> None:
    """One line, whatever the number of processes."""
    if processes.is_first():
        print(text, flush=True)


def _check_output(output: Path, model_arguments: ModelArguments, corpus: CorpusArguments) -> None:
    check_output_dir(output, {"model_name_or_path": model_arguments.model_name_or_path, "corpus": corpus.corpus})
    check_no_training(output)
    check_writable(output)


@contextmanager
def _computing(model: PreTrainedModel, device: torch.device, bf16: bool) -> Iterator[None]:
    """While it lasts, a model computes on the device, as in the warm start itself."""
    from ..training.warm_start import layers_on

    with layers_on(model, device), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        yield


def _blocks(
    corpus: CorpusArguments, arguments: WarmStartArguments, tokenizer: PreTrainedTokenizerBase, seed: int
) -> Iterable[Sequence[int]]:
    # Streaming: only what is used is tokenised.
    dataset = load_corpus(
        require(corpus.corpus, "corpus"),
        corpus.corpus_split,
        streaming=True,
        config_name=corpus.corpus_config,
        sample_by=corpus.sample_by,
    ).shuffle(seed=seed, buffer_size=arguments.shuffle_buffer)
    blocks = pack_corpus(
        dataset, tokenizer, corpus.block_size, corpus.text_column, parse_special_tokens=corpus.parse_special_tokens
    )
    return (row["input_ids"] for row in blocks)


def _examples(
    task: Task, arguments: TrainingTaskArguments, tokenizer: PreTrainedTokenizerBase, seed: int
) -> Iterable[Sequence[int]]:
    """Prompts with their answers (prompts alone for a classification head), as `bitdistill distill` reads them."""
    examples = load_task_dataset(
        task,
        arguments.train_split,
        data_dir=arguments.data_dir,
        max_samples=arguments.max_train_samples,
        seed=seed,
    )
    examples = build_dataset(task, examples, tokenizer=tokenizer, skip_overlong=True, **arguments.prompt_options())
    return (row["input_ids"] for row in examples.shuffle(seed=seed))
