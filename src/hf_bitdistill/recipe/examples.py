"""The examples of a run: rows to train on, rows held out of them for choices, and the evaluation split.

Whatever a dataset holds (a task with labels or written answers, conversations, prompts with completions, plain text), the recipe sees
[`Examples`] and never asks which.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast

from datasets import Dataset

from ..data import Task, build_dataset, get_task
from ..data.batch_checks import context_length
from ..data.cleaning import check_left_out, describe, usable_rows, usable_texts
from ..data.encoding import DEFAULT_BLOCK, DEFAULT_LENGTH, encode_task_rows
from ..data.recognition import Recognized, check_read, recognize
from ..data.sources import Examples as LoadedExamples
from ..data.sources import load_examples
from ..data.task_loading import load_task_dataset
from ..data.tasks import WRITTEN_METRICS
from ..evaluation import evaluate_task
from ..evaluation.answers import score_answers
from ..evaluation.rows import ROWS_SEED, encode_answers, few, not_measured, rows_to_measure, text_blocks
from ..evaluation.score_record import Measurement
from .measure import Measured, Score, majority_share, measure_answers, measure_classes, unigram_accuracy
from .settings import RecipeError, RecipeSettings


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_EVAL_BATCH = 16
_LARGEST_HELD_OUT_SHARE = 0.1
# Answers that are written token by token take long.
_WRITTEN_EVAL_ROWS = 200


class Examples(Protocol):
    """The examples of a run.

    Attributes:
        kind: `"classes"`, `"answers"` (written) or `"text"`.
        description: one line for the plan and the report.
        metric: name of the score.
        train: `input_ids`, `attention_mask`, `labels`, without the held-out rows.
        held_out: the same of training rows that are taken away for choices.
        rows: training rows before tokenisation and what became of them, by kind.
        task: with prompt and labels, where there is one.
        evaluation: the evaluation split.
        how: the evaluation split was read, and a model is asked.
    """

    description: str
    train: Dataset
    held_out: Dataset
    rows: dict[str, int]
    evaluation: Dataset
    how: Measurement

    @property
    def kind(self) -> str: ...

    @property
    def metric(self) -> str: ...

    @property
    def task(self) -> Task | None: ...

    @property
    def chance(self) -> float:
        """The share of the most frequent answer among the training rows: what `measure` gives as accuracy for always giving it. (Of the few
        held-out rows themselves it would be known less well.)"""
        ...

    def measure(self, model: PreTrainedModel) -> Measured:
        """The model on the held-out training rows, row by row."""
        ...

    def score(self, model: PreTrainedModel) -> Score:
        """The model on the evaluation split."""
        ...


@dataclass
class _Answers:
    """Rows with a loss on some of their tokens: token accuracy and perplexity of the answers."""

    kind: str
    description: str
    train: Dataset
    held_out: Dataset
    evaluation: Dataset
    tokenizer: PreTrainedTokenizerBase
    rows: dict[str, int]
    how: Measurement
    metric: str = "token_accuracy"
    task: Task | None = None

    @property
    def chance(self) -> float:
        return unigram_accuracy(self.train["labels"], self.train["labels"])

    def measure(self, model: PreTrainedModel) -> Measured:
        return measure_answers(model, self.tokenizer, self.held_out)

    def score(self, model: PreTrainedModel) -> Score:
        measured = measure_answers(model, self.tokenizer, self.evaluation)
        labels = self.evaluation["labels"]
        found = score_answers(
            list(zip(measured.tokens, measured.correct, measured.nll, measured.choices, strict=True)), labels
        )
        chance = unigram_accuracy(self.train["labels"], labels)
        more = {name: found[name] for name in ("perplexity", "perplexity_stderr")}
        return Score(self.metric, found[self.metric], found[f"{self.metric}_stderr"], len(labels), chance, more)


@dataclass
class _TaskRows:
    """A task with labels, or with answers that the model writes."""

    task: Task
    description: str
    train: Dataset
    held_out: Dataset
    held_out_rows: Dataset
    evaluation: Dataset
    train_answers: Sequence[Any]
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    how: Measurement
    rows: dict[str, int] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return "classes" if self.task.kind == "classification" else "answers"

    @property
    def metric(self) -> str:
        return "rougeLsum" if self.task.metric == "rouge" else self.task.metric

    @property
    def chance(self) -> float:
        if self.kind == "classes":
            return majority_share(self.train_answers, self.train_answers)
        return unigram_accuracy(self.train["labels"], self.train["labels"])

    def measure(self, model: PreTrainedModel) -> Measured:
        if self.kind == "classes":
            return measure_classes(model, self.tokenizer, self.task, self.held_out_rows, self.max_length)
        return measure_answers(model, self.tokenizer, self.held_out)

    def score(self, model: PreTrainedModel) -> Score:
        result = evaluate_task(
            model,
            self.tokenizer,
            self.task,
            self.evaluation,
            batch_size=_EVAL_BATCH,
            max_length=self.max_length,
            progress=False,
        )
        # (A perplexity is compared with that of token frequencies, which no answer alone has: it is among the other values.)
        chance = None if self.metric == "perplexity" else result["chance_level"]
        if self.metric == "accuracy":
            # What always naming the class that training has most of would score.
            chance = majority_share(self.train_answers, self.evaluation[self.task.target_field])
        more = {name: value for name, value in result.items() if isinstance(value, float) and "second" not in name}
        more.pop(self.metric)
        error = more.pop(f"{self.metric}_stderr")
        return Score(self.metric, result[self.metric], error, result["n"], chance, more)


def load(
    settings: RecipeSettings, tokenizer: PreTrainedTokenizerBase, config: Any, held_out_rows: int, eval_rows: int
) -> Examples:
    """The examples that the settings name.

    Args:
        config: of the model, for its context.

    Raises:
        RecipeError: too many rows are unusable, or too few are left.
        ValueError, FileNotFoundError, ConnectionError: as of the loaders.
    """
    loader = _Loader(settings, tokenizer, config, held_out_rows, eval_rows)
    return loader.load()


class _Loader:
    def __init__(self, settings: RecipeSettings, tokenizer, config, held_out_rows: int, eval_rows: int):
        self.settings, self.tokenizer, self.config = settings, tokenizer, config
        self.held_out_rows, self.eval_rows = held_out_rows, eval_rows
        # What messages call the data.
        self.source = str(settings.dataset if settings.dataset is not None else f"task {settings.task}")
        self.left_out: Counter[str] = Counter()
        self.read = 0
        # The largest share of rows to measure on that cannot be used.
        self.max_left_out = settings.max_left_out
        self.notes: list[str] = []
        self.found_split: str | None = None

    def load(self) -> Examples:
        settings = self.settings
        self._check_options()
        if settings.dataset is None:
            task = get_task(cast(str, settings.task))
            check_read("task", self.source, settings.turns)
            split = settings.eval_split or "validation"
            self.found_split = task.splits.get(split, split)
            if settings.eval_split is None and settings.train_split in ("validation", task.splits.get("validation")):
                raise RecipeError(
                    f"train_split {settings.train_split} is what the student is measured on: give eval_split too"
                )
            train = load_task_dataset(task, settings.train_split or "train")
            evaluation = load_task_dataset(task, split)
            return self._task(task, task.hub_id or task.name, train, evaluation, in_form=True)
        loaded = load_examples(
            settings.dataset,
            config_name=settings.dataset_config,
            revision=settings.dataset_revision,
            train_split=settings.train_split,
            validation_split=settings.eval_split,
            seed=ROWS_SEED,
            skip_undecodable=True,
        )
        self._count_unread(loaded)
        source, train, evaluation = loaded.source, loaded.train, loaded.validation
        self.found_split = loaded.validation_split
        if settings.label_words:
            self._check_classes(train, evaluation)
        recognized = self._recognize(loaded)
        check_read(recognized.kind, source, settings.turns)
        self.notes += recognized.notes
        if recognized.task is not None and recognized.kind == "task":
            return self._task(recognized.task, source, train, evaluation)
        if recognized.kind == "text":
            return self._text(recognized.columns[0], source, train, evaluation)
        return self._answers(recognized.kind, recognized.columns[0], source, train, evaluation)

    def _recognize(self, loaded: LoadedExamples) -> Recognized:
        settings = self.settings
        if settings.task:
            task = get_task(settings.task)
            return Recognized("task", task.columns, task)
        return recognize(
            loaded.train,
            loaded.source,
            config_name=loaded.config_name,
            text_columns=settings.text_columns,
            label_column=settings.label_column,
            label_words=settings.label_words,
        )

    def _count_unread(self, loaded: LoadedExamples) -> None:
        """Rows that could not even be read, and those that stand in for a split to evaluate on."""
        of_train, of_evaluation = loaded.left_out
        self.read += of_train.total()
        self.left_out.update(of_train)
        if loaded.held_out_from_train:
            self.max_left_out = 1.0  # by chance there are more among few rows; those to train on are judged
            self.notes.append(
                f"no split to evaluate on: {len(loaded.validation)} training rows were taken away for it"
            )
        self._note(
            not_measured(of_evaluation, len(loaded.validation) + of_evaluation.total(), self.source, self.max_left_out)
        )

    def _check_options(self) -> None:
        """Refuse what would not be read.

        Raises:
            RecipeError: names it.
        """
        settings = self.settings
        if settings.task:
            said = [name for name in ("text_columns", "label_column", "label_words") if getattr(settings, name)]
            if said:
                raise RecipeError(
                    f"{', '.join(said)}: the task says this already; leave it out, or change the task file"
                )
        if settings.dataset is not None:
            return
        said = [name for name in ("dataset_config", "dataset_revision") if getattr(settings, name)]
        if said:
            raise RecipeError(f"{', '.join(said)}: of which dataset? Give it (--dataset) beside the task")

    def _check_classes(self, train: Dataset, evaluation: Dataset) -> None:
        """Refuse splits whose classes are counted differently, where words stand in the place of their names.

        Raises:
            RecipeError: they are.
        """
        from datasets import ClassLabel

        for name, feature in train.features.items():
            other = evaluation.features.get(name)
            if isinstance(feature, ClassLabel) and isinstance(other, ClassLabel) and feature.names != other.names:
                raise RecipeError(
                    f"column {name!r} counts {', '.join(feature.names)} in the rows to train on and {', '.join(other.names)} in those to "
                    "measure on: label_words would name them differently. Leave label_words out, or encode both alike"
                )

    # ---- Kinds ----

    def _task(self, task: Task, source: str, train: Dataset, evaluation: Dataset, in_form: bool = False) -> Examples:
        """A task's examples; `in_form`: the rows are in its form already, each checked."""
        length = self._length(task.max_length)
        limit = self.eval_rows
        if task.metric in WRITTEN_METRICS:
            limit = min(limit, _WRITTEN_EVAL_ROWS) if limit else _WRITTEN_EVAL_ROWS
        how = self._how("task", length, limit, task=task)
        self.read += len(train)
        if in_form:
            evaluation = few(evaluation, limit)
        else:
            train, left_out = usable_rows(train, task, source)
            self.left_out.update(left_out)
            evaluation = self._to_measure(evaluation, how)
        parts = [encode_task_rows(task, part, self.tokenizer, length, source=source) for part in self._cut(train)]
        for part in parts:
            self.left_out.update(part.left_out)
        encoded, encoded_held_out = (part.dataset for part in parts)
        rest, held_out = (cast(Dataset, part.rows) for part in parts)
        # Before hours of training: the prompts of the evaluation after it must fit too.
        build_dataset(task, held_out, self.tokenizer, length, train=False)
        build_dataset(task, evaluation, self.tokenizer, length, train=task.is_predicted)
        answer = f"classes {', '.join(task.label_words)}" if task.label_words else "written answers"
        description = f"{source}: task {task.name}, {answer}"
        answers = list(rest[task.target_field]) if task.label_words else []
        return _TaskRows(
            task,
            self._describe(description, encoded, encoded_held_out, evaluation),
            encoded,
            encoded_held_out,
            held_out,
            evaluation,
            answers,
            self.tokenizer,
            length,
            how,
            self._finish(len(encoded)),
        )

    def _answers(self, kind: str, column: str, source: str, train: Dataset, evaluation: Dataset) -> Examples:
        length = self._length(DEFAULT_LENGTH)
        named = {"column": column, "turns": self.settings.turns} if kind == "messages" else {}
        how = self._how(kind, length, self.eval_rows, **named)
        rest, held_out = self._cut(train)
        self.read += len(train)
        parts = [encode_answers(part, how, self.tokenizer, length) for part in (rest, held_out)]
        for part in parts:
            self.left_out.update(part.left_out)
        encoded, encoded_held_out = (part.dataset for part in parts)
        measured = self._to_measure(evaluation, how)
        name = "conversations" if kind == "messages" else "prompts with completions"
        description = self._describe(f"{source}: {name}", encoded, encoded_held_out, measured)
        rows = self._finish(len(encoded))
        return _Answers("answers", description, encoded, encoded_held_out, measured, self.tokenizer, rows, how)

    def _text(self, column: str, source: str, train: Dataset, evaluation: Dataset) -> Examples:
        size = self._length(DEFAULT_BLOCK)
        how = self._how("text", size, self.eval_rows, column=column)
        self.read += len(train)
        texts, left_out = usable_texts(train, column, source)
        self.left_out.update(left_out)
        rest, held_out = self._cut(texts)
        blocks, held_out_blocks = (text_blocks(part, self.tokenizer, size, column) for part in (rest, held_out))
        measured = self._to_measure(evaluation, how)
        description = self._describe(
            f"{source}: plain text, blocks of {size} tokens", blocks, held_out_blocks, measured
        )
        rows = self._finish(len(rest))
        return _Answers("text", description, blocks, held_out_blocks, measured, self.tokenizer, rows, how)

    def _how(self, kind: str, length: int, limit: int, **more: Any) -> Measurement:
        """For whoever measures a model on the evaluation split again."""
        settings = self.settings
        return Measurement(
            kind,
            dataset=settings.dataset,
            dataset_config=settings.dataset_config,
            dataset_revision=settings.dataset_revision,
            split=settings.eval_split,
            found_split=self.found_split,
            train_split=settings.train_split,
            max_length=length,
            limit=limit or None,
            **more,
        )

    # ---- Rows ----

    def _cut(self, dataset: Dataset) -> tuple[Dataset, Dataset]:
        """Training rows, and the held-out part of them."""
        count = min(self.held_out_rows, max(1, int(len(dataset) * _LARGEST_HELD_OUT_SHARE)))
        if len(dataset) - count < 2:
            raise RecipeError(f"{self.source} has {len(dataset)} usable training rows: too few")
        parts = dataset.train_test_split(test_size=count, seed=ROWS_SEED, shuffle=True)
        return parts["train"], parts["test"]

    def _to_measure(self, evaluation: Dataset, how: Measurement) -> Dataset:
        """The rows of the evaluation split that can be used; the report says how many others there are."""
        rows, said = rows_to_measure(evaluation, how, self.tokenizer, self.max_left_out)
        self._note(said)
        return rows

    def _note(self, text: str | None) -> None:
        if text is not None:
            self.notes.append(text)

    def _length(self, default: int) -> int:
        wanted = self.settings.max_length or default
        context = context_length(self.config)
        if context is not None and wanted > context:
            if self.settings.max_length:
                raise RecipeError(f"max_length is {wanted}, and the model reads {context} tokens at most")
            return context
        return wanted

    def _finish(self, kept: int) -> dict[str, int]:
        """Rows by what became of them.

        Raises:
            ValueError: too many are left out.
        """
        check_left_out(self.left_out, self.read, self.source, self.settings.max_left_out)
        return {
            "read": self.read,
            "trained on": kept,
            **{name: count for name, count in self.left_out.items() if count},
        }

    def _describe(self, text: str, train: Dataset, held_out: Dataset, evaluation: Dataset) -> str:
        parts = [f"{len(train)} to train on, {len(held_out)} of the training rows held out for choices"]
        if self.left_out.total():
            parts.append(
                f"{self.left_out.total():,} of {self.read:,} training rows left out ({describe(self.left_out)})"
            )
        parts.append(f"{len(evaluation)} to evaluate on")
        return "; ".join([text, ", ".join(parts), *self.notes])
