"""The tasks: where their data is, how a prompt is written, which words stand for the labels.

A task is a YAML file (:func:`load_task`): six come with the package, in ``builtin_tasks``, and a user writes their own. It is the only
place that knows. Training, evaluation, the command line and the model card read it from there, so a model is always evaluated with the
prompt it was trained with.
"""

from __future__ import annotations

import difflib
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import yaml


TaskKind = Literal["classification", "summarization"]

#: Metrics of labels, of answers that the model writes, and of given answers that it predicts token by token.
LABEL_METRICS = ("accuracy", "f1", "matthews_correlation")
WRITTEN_METRICS = ("rouge", "exact_match")
PREDICTED_METRICS = ("token_accuracy", "perplexity")

_SPLITS = {"train": "train", "validation": "validation", "test": "test"}


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: The name used on the command line and in model cards.
        prompt: ``str.format`` template over columns. It ends where the answer begins, without a trailing space.
        target_field: Column of the answer: a label, or a text that the model writes.
        label_words: The answer of each label, in the order of the label ids. Empty where the answer is a text.
        label_values: What stands in the target's column for each label id, as text; empty: the ids themselves.
        metric: Of labels ``"accuracy"`` (default), ``"f1"`` (macro) or ``"matthews_correlation"``; of texts ``"rouge"`` (default) or
            ``"exact_match"``, for which the model writes its answer, ``"token_accuracy"`` or ``"perplexity"`` of the given one.
        document_field: The column that is shortened when a prompt is too long; the instruction and the answer never are. Default:
            the first of the prompt.
        hub_id: Dataset id on the Hub; empty: it is not there.
        hub_config: Dataset configuration on the Hub, or None.
        splits: Our split names (``"train"``, ``"validation"``, ``"test"``) to the dataset's own.
        field_aliases: Other names a column may have in local files, per canonical name.
        hidden_label_splits: The dataset's own names of splits published without labels.
        max_length: Default limit, in tokens, of prompt and answer together.
        max_new_tokens: Default limit, in tokens, of a generated answer.

    Raises:
        ValueError: The prompt has no column or ends in a space, the target is part of it, labels are not distinct words, or the metric is
            unknown or of the other kind of answers.
    """

    name: str
    prompt: str
    target_field: str
    label_words: tuple[str, ...] = ()
    label_values: tuple[str, ...] = ()
    metric: str = ""
    document_field: str = ""
    hub_id: str = ""
    hub_config: str | None = None
    splits: Mapping[str, str] = field(default_factory=lambda: _SPLITS)
    field_aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    hidden_label_splits: tuple[str, ...] = ()
    max_length: int = 256
    max_new_tokens: int = 16

    def __post_init__(self) -> None:
        def settle(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        # Tasks are shared constants: their mappings are read-only too.
        settle("splits", MappingProxyType(dict(self.splits)))
        settle("field_aliases", MappingProxyType({name: tuple(other) for name, other in self.field_aliases.items()}))
        for name in ("label_words", "label_values", "hidden_label_splits"):
            settle(name, tuple(getattr(self, name)))
        fields = self.text_fields
        if not fields or any(not name.isidentifier() for name in fields):
            raise ValueError(f"prompt must name columns in braces, as in {{text}}; it is {self.prompt!r}")
        if self.prompt != self.prompt.rstrip():
            raise ValueError(
                f"prompt must end where the answer begins, without white space; it ends {self.prompt[-10:]!r}"
            )
        if self.target_field in fields:
            raise ValueError(f"the answer's column {self.target_field!r} is part of the prompt")
        if not self.document_field:
            settle("document_field", fields[0])
        elif self.document_field not in fields:
            raise ValueError(f"the document column {self.document_field!r} is not in the prompt")
        if not self.metric:
            settle("metric", "accuracy" if self.label_words else "rouge")
        words = self.label_words
        if (
            len(words) == 1
            or len(set(words)) != len(words)
            or not all(isinstance(word, str) and word for word in words)
        ):
            raise ValueError(f"labels must be two or more different words, they are {list(words)}")

        metrics = LABEL_METRICS if words else (*WRITTEN_METRICS, *PREDICTED_METRICS)
        if self.metric not in metrics:
            what = "labels" if words else "texts"
            raise ValueError(f"the metric {self.metric!r} is none of {what}; those are {', '.join(metrics)}")

    def __reduce__(self):
        # A mappingproxy cannot be pickled, and worker processes as well as datasets' fingerprints pickle the task.
        state = {name: getattr(self, name) for name in self.__dataclass_fields__}
        state["splits"] = dict(self.splits)
        state["field_aliases"] = dict(self.field_aliases)
        return _make_task, (state,)

    @property
    def kind(self) -> TaskKind:
        """``"classification"`` if there are labels; otherwise ``"summarization"``: the model writes the answer."""
        return "classification" if self.label_words else "summarization"

    @property
    def is_predicted(self) -> bool:
        """Whether the given answers are predicted token by token for the metric; otherwise the model chooses or writes its own."""
        return self.metric in PREDICTED_METRICS

    @property
    def text_fields(self) -> tuple[str, ...]:
        """Columns of the prompt, in the order in which they appear in it."""
        return tuple(
            dict.fromkeys(name for _, name, _, _ in string.Formatter().parse(self.prompt) if name is not None)
        )

    @property
    def num_labels(self) -> int:
        """Number of classes; 0 for summarization."""
        return len(self.label_words)

    @property
    def id2label(self) -> dict[int, str]:
        """Label id to label word, as a model config wants it."""
        return dict(enumerate(self.label_words))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns a dataset of this task has after loading."""
        return (*self.text_fields, self.target_field)

    @property
    def answer_anchor(self) -> str:
        """The fixed end of every prompt (the template's text after its last field)."""
        return self.prompt.rsplit("}", 1)[1]

    def format_prompt(self, example: Mapping[str, str]) -> str:
        """Writes the prompt of one example.

        Args:
            example: A mapping that has every name of ``text_fields``.

        Returns:
            The prompt, which ends where the answer begins.
        """
        return self.prompt.format(**{name: example[name] for name in self.text_fields})

    def format_answer(self, example: Mapping[str, object]) -> str:
        """The answer of one example, without the space that separates it from the prompt."""
        target = example[self.target_field]
        return self.label_words[int(target)] if self.kind == "classification" else str(target).strip()  # type: ignore[call-overload]  # of rows that were checked


def _make_task(state: dict) -> Task:
    return Task(**state)


BUILTIN = Path(__file__).parent / "builtin_tasks"

# Keys of a task file -> field of `Task`, and the type that it must have.
_KEYS: dict[str, tuple[str, type | tuple[type, ...]]] = {
    "name": ("name", str),
    "dataset": ("hub_id", str),
    "dataset_config": ("hub_config", str),
    "splits": ("splits", dict),
    "columns": ("field_aliases", dict),
    "prompt": ("prompt", str),
    "document": ("document_field", str),
    "target": ("target_field", str),
    "labels": ("label_words", (list, dict)),
    "hidden_label_splits": ("hidden_label_splits", list),
    "metric": ("metric", str),
    "max_length": ("max_length", int),
    "max_new_tokens": ("max_new_tokens", int),
}


def load_task(path: str | PathLike) -> Task:
    """Reads a task file.

    It is YAML with these keys, of which ``prompt`` and ``target`` are needed:

    - ``prompt``: what the model reads, with columns in braces: ``"Review: {text}\\nTone:"``; a brace that is text is doubled;
    - ``target``: the column of the answer;
    - ``labels``: for classification. A list: the answer's word for each number (or ``ClassLabel``) in the target's column. A mapping:
      ``{value in the column: the answer's word}``. Without it the answer is the column's text, which the model writes;
    - ``document``: the column that is shortened when a prompt is too long (default: the prompt's first);
    - ``metric``: with ``labels`` ``accuracy`` (default), ``f1`` (the mean over the classes) or ``matthews_correlation``; without,
      ``rouge`` (default) or ``exact_match`` of the answer that the model writes, ``token_accuracy`` or ``perplexity`` of the given
      answer, which it predicts token by token (much faster: nothing is written);
    - ``max_length``, ``max_new_tokens``: in tokens, of prompt and answer together, of a written answer;
    - ``columns``: other names that a column may have: ``{text: [review, sentence]}``;
    - ``dataset``, ``dataset_config``, ``splits``: where the data is, if it is on the Hub;
    - ``name``: default: the file's name without its ending.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no YAML mapping, or a key is unknown, missing or has a value of the wrong kind; names file and key.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no task file {path}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    return task_of(values, str(path), path.stem)


def task_of(values: Any, path: str, name: str = "task") -> Task:
    """The task that a task file's values define.

    Args:
        values: What :func:`load_task` reads.
        path: Where they are from, for messages.
        name: Of a task without one.

    Raises:
        ValueError: As :func:`load_task`.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{path} must map keys to values")
    for key, value in values.items():
        if key not in _KEYS:
            close = difflib.get_close_matches(str(key), _KEYS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(_KEYS)}"
            raise ValueError(f"{path}: unknown key {key!r}; {hint}")
        kind = _KEYS[key][1]
        if not isinstance(value, kind) or isinstance(value, bool):
            names = " or ".join(each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,)))
            raise ValueError(f"{path}: {key} must be a {names}, it is {value!r}")
    for key in ("prompt", "target"):
        if key not in values:
            raise ValueError(f"{path}: {key} is missing")
    options = {"name": name, **{_KEYS[key][0]: value for key, value in values.items()}}
    labels = values.get("labels") or []
    words = list(labels.values()) if isinstance(labels, dict) else labels
    truths = [value for value in (*labels, *words) if isinstance(value, bool)]
    if truths:
        raise ValueError(f"{path}: labels: YAML reads a bare yes, no, true or false as {truths[0]}; put it in quotes")
    options["label_words"] = [str(word) for word in words]
    if isinstance(labels, dict):
        options["label_values"] = [str(value) for value in labels]
    try:
        return _make_task(options)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def task_values(task: Task) -> dict[str, Any]:
    """A task as a task file has it, for YAML or JSON: ``task_of(task_values(task), ...) == task``."""
    words: Any = list(task.label_words)
    if task.label_values:
        words = dict(zip(task.label_values, task.label_words, strict=True))
    found = {key: getattr(task, field) for key, (field, _) in _KEYS.items()}
    found |= {
        "labels": words,
        "splits": {} if task.splits == _SPLITS else dict(task.splits),
        "columns": {name: list(other) for name, other in task.field_aliases.items()},
        "document": "" if task.document_field == task.text_fields[0] else task.document_field,
        "hidden_label_splits": list(task.hidden_label_splits),
    }
    return {key: value for key, value in found.items() if value not in (None, "", [], {})}


TASKS: Mapping[str, Task] = MappingProxyType(
    {name: load_task(BUILTIN / f"{name}.yaml") for name in ("sst2", "mnli", "rte", "qnli", "cnn_dailymail", "xsum")}
)


def get_task(name: str | Task) -> Task:
    """Looks a task up by its name, or reads it from the file that is named (a :class:`Task` is returned as it is).

    Raises:
        ValueError: If there is no such task (the message lists the names), or the file is no task.
        FileNotFoundError: If there is no such file.
    """
    if isinstance(name, Task):
        return name
    if name.endswith((".yaml", ".yml")):
        return load_task(name)
    try:
        return TASKS[name]
    except KeyError:
        raise ValueError(
            f"unknown task {name!r}; the tasks are {', '.join(TASKS)}, or give a file of your own (task.yaml)"
        ) from None
