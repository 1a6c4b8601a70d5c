"""What a model's folder knows of how the model was measured: the task with its prompt, the data, and the scores.

``evaluation.json`` is written by the command that measured the model, and by no other. Its keys are those of a result of
:func:`evaluate_task`; under ``measured`` stands what is needed to measure the same again.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from ..data.tasks import Task, task_of, task_values
from ..files.atomic import write_text
from ..files.json_files import read_json, shorten
from ..files.model_folder import EVALUATION_FILE
from ..files.redaction import redact_text
from ..modeling.model_heads import HEADS


KINDS = ("task", "messages", "prompt_completion", "text")
_MEASURED = "measured"
# Keys of the part `measured` that are not fields of `Measurement`.
_BY, _MODEL, _ROWS = "by", "model", "rows"
# Of two measurements of one model on the same rows: rounding flips a few rows, no more.
_SHARE_OF_ERROR, _RELATIVE = 0.5, 1e-3


@dataclass(frozen=True)
class Measurement:
    """On what a model is measured, and how it is asked.

    Attributes:
        kind: ``"task"``, ``"messages"`` (conversations), ``"prompt_completion"`` or ``"text"`` (plain text).
        task: Of the kind ``"task"``: with its prompt and label words.
        dataset: Path or Hub id of the rows as it was given; None: the task's own, or ``data_dir``.
        dataset_config, dataset_revision: Of a dataset on the Hub.
        data_dir: Folder with the task's files.
        split: The split that is measured on; None: what it is usually called, or a part of the training rows.
        train_split: The split that such a part is taken from; None: the usual one.
        column: Of conversations and plain text.
        turns: Of conversations: which of the assistant's are scored.
        max_length: Tokens of a row; None: the default.
        limit: Rows at most, chosen by a fixed seed; None: all.
        head: ``"causal_lm"`` or ``"sequence_classification"``.
        use_chat_template: Whether a task's prompts are put into the chat template.
        found_split: What the split is called in the data, as far as that is known.
        local: Whether ``dataset`` was a path when this was written: then it is no id on the Hub, wherever this is read.
    """

    kind: str = "task"
    task: Task | None = None
    dataset: str | None = None
    dataset_config: str | None = None
    dataset_revision: str | None = None
    data_dir: str | None = None
    split: str | None = None
    train_split: str | None = None
    column: str | None = None
    turns: str = "all"
    max_length: int | None = None
    limit: int | None = None
    head: str = "causal_lm"
    use_chat_template: bool = False
    found_split: str | None = None
    local: bool = dataclasses.field(default=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: what differs from the defaults, the task as a task file has it, no credentials in an address."""
        values = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name == "kind" or getattr(self, field.name) != field.default
        }
        if self.is_local:
            values["local"] = True
        if self.task is not None:
            values["task"] = task_values(self.task)
        return {name: redact_text(value) if isinstance(value, str) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], file: str) -> Measurement:
        """What `to_dict` returned.

        Args:
            file: Where it is from, for messages.

        Raises:
            ValueError: A value is of another type, or none of its choices.
        """
        known = {field.name: field for field in dataclasses.fields(cls)}
        values = {name: value for name, value in values.items() if name in known}
        for name, value in values.items():
            kind = {"task": dict, "max_length": int, "limit": int}.get(name, str)
            kind = bool if name in ("local", "use_chat_template") else kind
            if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
                raise ValueError(f"{file}: {_MEASURED}: {name} must be a {kind.__name__}, it is {shorten(value)}")
        choices = {"kind": KINDS, "turns": ("all", "last"), "head": HEADS}
        for name, allowed in choices.items():
            if values.get(name, allowed[0]) not in allowed:
                raise ValueError(f"{file}: {_MEASURED}: {name} is {shorten(values[name])}, not {' or '.join(allowed)}")
        task = task_of(values["task"], f"{file}: {_MEASURED}") if "task" in values else None
        if (task is None) == (values.get("kind", "task") == "task"):
            raise ValueError(f"{file}: {_MEASURED}: a task belongs to the kind 'task', and to no other")
        return cls(**{**values, "task": task})

    @property
    def is_local(self) -> bool:
        """Whether ``dataset`` is a path of the machine that measured."""
        return self.dataset is not None and (self.local or Path(self.dataset).expanduser().exists())

    @property
    def measured_split(self) -> str | None:
        """The split's own name, as far as it is known."""
        return self.found_split or self.split

    @property
    def place(self) -> str:
        """Where the rows are, for messages."""
        if self.dataset or self.data_dir:
            return str(self.dataset or self.data_dir)
        return self.task.hub_id or self.task.name if self.task is not None else "?"


@dataclass(frozen=True)
class Record:
    """A measurement with its result.

    Attributes:
        scores: As of ``evaluate_task``: ``task``, values, their ``_stderr``, ``n``, ...
        how: None in a file of an earlier version, which does not say.
        rows: Fingerprint of the rows.
        by: The command that measured.
        model: Which of several forms of the student was measured.
    """

    scores: Mapping[str, Any]
    how: Measurement | None = None
    rows: str = ""
    by: str = ""
    model: str = ""

    def to_dict(self) -> dict[str, Any]:
        if self.how is None:
            return dict(self.scores)
        return {
            **self.scores,
            _MEASURED: {_BY: self.by, _MODEL: self.model, **self.how.to_dict(), _ROWS: self.rows},
        }

    def write(self, folder: str | PathLike) -> None:
        """Leave it beside the model."""
        write_text(Path(folder) / EVALUATION_FILE, json.dumps(self.to_dict(), indent=2) + "\n")

    @property
    def what(self) -> str:
        """The name of the task, or the kind of the rows."""
        return str(self.scores.get("task", ""))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the scores that have a standard error."""
        return tuple(name.removesuffix("_stderr") for name in self.scores if name.endswith("_stderr"))

    def agrees(self, scores: Mapping[str, Any]) -> dict[str, bool]:
        """Whether another measurement on the same rows found the same, score by score."""
        found = {}
        for name in self.metrics:
            values: list[Any] = [self.scores.get(name), scores.get(name), self.scores.get(f"{name}_stderr")]
            before, now, error = values
            if not all(isinstance(value, (int, float)) for value in values):
                continue
            near = abs(now - before) <= _SHARE_OF_ERROR * error if math.isfinite(error) else False
            found[name] = near or math.isclose(now, before, rel_tol=_RELATIVE)
        return found


def read_record(folder: str | PathLike) -> Record | None:
    """What lies beside the model in a folder, or None.

    Raises:
        CheckpointError, ValueError: The file is damaged; one line names it.
    """
    file = Path(folder) / EVALUATION_FILE
    if not file.is_file():
        return None
    values = read_json(file)
    measured = values.pop(_MEASURED, None)
    if measured is None:
        return Record(values)
    if not isinstance(measured, dict):
        raise ValueError(f"{file}: {_MEASURED} must be an object, it is {shorten(measured)}")
    how = Measurement.from_dict(measured, str(file))
    return Record(values, how, *(str(measured.get(name, "")) for name in (_ROWS, _BY, _MODEL)))


def find_record(model: str) -> Record | None:
    """What a model's folder, or its repository on the Hub, knows; None where there is no such file.

    Raises:
        CheckpointError, ValueError: As :func:`read_record`.
    """
    if Path(model).is_dir():
        return read_record(model)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return read_record(Path(hf_hub_download(model, EVALUATION_FILE)).parent)
    except (EntryNotFoundError, LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError):
        return None


def carry_record(model: str | PathLike, folder: str | PathLike) -> None:
    """Leave a model's record beside the same model in another form, if it has one."""
    file = Path(model) / EVALUATION_FILE
    if file.is_file():
        shutil.copyfile(file, Path(folder) / EVALUATION_FILE)
