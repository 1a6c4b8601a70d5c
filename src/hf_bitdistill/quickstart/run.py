"""`run_quickstart`: the recipe on a small model and text that is there already, in minutes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from ..recipe.progress import Progress, quiet
from ..recipe.result import PACKED_ROW, RecipeResult, Written
from ..recipe.run import run_recipe
from ..recipe.store import work_of_first
from .data import DataFiles, prepare
from .settings import TEACHER_FOLDER, QuickstartError, QuickstartSettings
from .task import TASK


def run_quickstart(
    output_dir: str | Path = "quickstart",
    settings: QuickstartSettings | None = None,
    *,
    progress: Progress | None = None,
    **overrides: Any,
) -> RecipeResult:
    """The recipe on the package's small model: fine-tuned in full precision; made ternary, pre-trained and distilled from that; and for
    comparison made ternary and fine-tuned without the recipe. Needs no network.

    Args:
        output_dir: gets `data/` and what `run_recipe` writes. The same call goes on where it stopped.
        settings: default `QuickstartSettings()`.
        progress: where its lines go. Default: standard output.
        overrides: fields of [`QuickstartSettings`], e.g. `seed=1`.

    Returns:
        The recipe's result, with a few answers that teacher and packed student wrote.

    Raises:
        QuickstartError: the run cannot be done here; the message is one line for the user.
        RecipeError, ValueError, OSError: as of `run_recipe`.
    """
    try:
        settings = replace(settings or QuickstartSettings(), **overrides)
    except TypeError as error:
        raise QuickstartError(f"Unknown setting: {error}.") from None
    if not (Path(settings.base_model) / "config.json").is_file():
        hint = "reinstall the package" if settings.base_model == TEACHER_FOLDER else "give a saved model's folder"
        raise QuickstartError(f"There is no base model in {settings.base_model}: {hint}.")
    progress = progress or Progress()
    files = DataFiles(Path(output_dir) / "data")
    recipe = settings.recipe(Path(output_dir), files.dataset, files.corpus)
    with _threads(settings.torch_threads):
        progress.say("reading docstrings of installed packages")
        made = work_of_first(lambda: prepare(files, settings), "reading docstrings")
        progress.say(f"  {'written to' if made else 'they were in'} {files.folder}")
        result = run_recipe(recipe, progress=progress)
        with quiet():
            result.written = work_of_first(
                lambda: _written(result, files, settings.shown_examples), "writing the examples"
            )
    work_of_first(lambda: result.write(draw=False), "writing the results")
    if result.written:
        progress.say("\nwritten by the packed student in the native decoder, for held-out signatures:")
    for each in result.written:
        progress.say(f"  {each.prompt.splitlines()[0]}\n    {each.student}")
    for line in _ending(result):
        progress.say(line)
    return result


def _ending(result: RecipeResult) -> Iterator[str]:
    """What the last lines say: the speeds, and what there is to look at."""
    rates = {row.name: row.tokens_per_second for row in result.table if row.tokens_per_second is not None}
    if {"teacher", PACKED_ROW} <= set(rates):
        yield (
            f"\n{rates[PACKED_ROW]:,.0f} tokens/s the student in the native decoder, {rates['teacher']:,.0f} tokens/s its teacher in transformers"
        )
    yield f"\nquality against size and speed: {result.picture}\nreport page: {result.paths['report']}"


def _written(result: RecipeResult, files: DataFiles, count: int) -> list[Written]:
    """Answers for the first rows of the evaluation split: the teacher's in transformers, the packed student's in the native decoder."""
    from optimum.bitnet import BitNetModelForCausalLM

    with files.test.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in islice(lines, count)]
    prompts = [row["prompt"] for row in rows]
    teacher = write_answers(AutoModelForCausalLM, result.paths["teacher"], prompts, dtype=torch.float32)
    student = write_answers(BitNetModelForCausalLM, result.paths["packed"], prompts)
    return [
        Written(row["prompt"], row["completion"].strip(), *both)
        for row, *both in zip(rows, teacher, student, strict=True)
    ]


@torch.inference_mode()
def write_answers(kind: Any, folder: str | Path, prompts: Sequence[str], **options: Any) -> list[str]:
    """What a saved model writes after each prompt, greedily, up to its end-of-text token.

    Args:
        kind: the class that loads it, with `options`.
    """
    model = kind.from_pretrained(folder, **options)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    limits = GenerationConfig(
        do_sample=False,
        max_new_tokens=TASK.max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    answers = []
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        output = model.generate(**inputs, generation_config=limits)
        answer: Any = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        answers.append(answer.strip())
    return answers


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
