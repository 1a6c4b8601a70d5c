"""The tasks: where their data is, how a prompt is written, which words stand for the labels.

This is the only place that knows. Training, evaluation, the command line and the model card read it from here, so a
model is always evaluated with the prompt it was trained with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal


TaskKind = Literal["classification", "summarization"]


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: The name used on the command line and in model cards.
        kind: ``"classification"`` or ``"summarization"``.
        hub_id: Dataset id on the Hub.
        hub_config: Dataset configuration on the Hub, or None.
        splits: Our split names (``"train"``, ``"validation"``, ``"test"``) to the dataset's own.
        text_fields: Columns of the prompt, in the order in which they appear in it.
        document_field: The column that is shortened when a prompt is too long; the instruction and the answer never are.
        target_field: Column of the answer: ``"label"`` (int, an index into ``label_words``) or the summary (str).
        prompt: ``str.format`` template over ``text_fields``. It ends where the answer begins, without a trailing space.
        metric: Name for :func:`hf_bitdistill.evaluation.get_metric`.
        label_words: The answer of each label, in the order of the label ids. Empty for summarization.
        field_aliases: Other names a column may have in local files, per canonical name.
        hidden_label_splits: The dataset's own names of splits published without labels.
        max_length: Default limit, in tokens, of prompt and answer together.
        max_new_tokens: Default limit, in tokens, of a generated answer.
    """

    name: str
    kind: TaskKind
    hub_id: str
    hub_config: str | None
    splits: Mapping[str, str]
    text_fields: tuple[str, ...]
    document_field: str
    target_field: str
    prompt: str
    metric: str
    label_words: tuple[str, ...] = ()
    field_aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    hidden_label_splits: tuple[str, ...] = ()
    max_length: int = 256
    max_new_tokens: int = 16

    def __post_init__(self) -> None:
        # Tasks are shared constants: their mappings are read-only too.
        object.__setattr__(self, "splits", MappingProxyType(dict(self.splits)))
        object.__setattr__(self, "field_aliases", MappingProxyType(dict(self.field_aliases)))

    def __reduce__(self):
        # A mappingproxy cannot be pickled, and worker processes as well as datasets' fingerprints pickle the task.
        state = {name: getattr(self, name) for name in self.__dataclass_fields__}
        state["splits"] = dict(self.splits)
        state["field_aliases"] = dict(self.field_aliases)
        return _make_task, (state,)

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
        return self.label_words[int(target)] if self.kind == "classification" else str(target).strip()  # type: ignore[call-overload]


def _make_task(state: dict) -> Task:
    return Task(**state)


_GLUE = "nyu-mll/glue"
_GLUE_SPLITS = {"train": "train", "validation": "validation", "test": "test"}

TASKS: Mapping[str, Task] = MappingProxyType(
    {
        task.name: task
        for task in (
            Task(
                name="sst2",
                kind="classification",
                hub_id=_GLUE,
                hub_config="sst2",
                splits=_GLUE_SPLITS,
                text_fields=("sentence",),
                document_field="sentence",
                target_field="label",
                prompt="Review: {sentence}\nSentiment (negative or positive):",
                metric="accuracy",
                label_words=("negative", "positive"),
                hidden_label_splits=("test",),
                max_length=128,
            ),
            Task(
                name="mnli",
                kind="classification",
                hub_id=_GLUE,
                hub_config="mnli",
                splits={"train": "train", "validation": "validation_matched", "test": "test_matched"},
                text_fields=("premise", "hypothesis"),
                document_field="premise",
                target_field="label",
                prompt="Premise: {premise}\nHypothesis: {hypothesis}\nRelation (entailment, neutral or contradiction):",
                metric="accuracy",
                label_words=("entailment", "neutral", "contradiction"),
                hidden_label_splits=("test_matched", "test_mismatched"),
            ),
            Task(
                name="rte",
                kind="classification",
                hub_id=_GLUE,
                hub_config="rte",
                splits=_GLUE_SPLITS,
                text_fields=("sentence1", "sentence2"),
                document_field="sentence1",
                target_field="label",
                prompt="Text: {sentence1}\nHypothesis: {sentence2}\nRelation (entailment or not_entailment):",
                metric="accuracy",
                label_words=("entailment", "not_entailment"),
                hidden_label_splits=("test",),
                max_length=384,
            ),
            Task(
                name="qnli",
                kind="classification",
                hub_id=_GLUE,
                hub_config="qnli",
                splits=_GLUE_SPLITS,
                text_fields=("question", "sentence"),
                document_field="sentence",
                target_field="label",
                prompt="Question: {question}\nSentence: {sentence}\nAnswers it (entailment or not_entailment):",
                metric="accuracy",
                label_words=("entailment", "not_entailment"),
                hidden_label_splits=("test",),
            ),
            Task(
                name="cnn_dailymail",
                kind="summarization",
                hub_id="abisee/cnn_dailymail",
                hub_config="3.0.0",
                splits=_GLUE_SPLITS,
                text_fields=("article",),
                document_field="article",
                target_field="highlights",
                prompt="Article: {article}\n\nSummary of the article in a few sentences:",
                metric="rouge",
                field_aliases={"article": ("document", "text"), "highlights": ("summary",)},
                max_length=1024,
                max_new_tokens=128,
            ),
            Task(
                name="xsum",
                kind="summarization",
                hub_id="EdinburghNLP/xsum",
                hub_config=None,
                splits=_GLUE_SPLITS,
                text_fields=("document",),
                document_field="document",
                target_field="summary",
                prompt="Article: {document}\n\nSummary of the article in one sentence:",
                metric="rouge",
                field_aliases={"document": ("article", "text"), "summary": ("highlights",)},
                max_length=1024,
                max_new_tokens=64,
            ),
        )
    }
)


def get_task(name: str | Task) -> Task:
    """Looks a task up by its name (a :class:`Task` is returned as it is).

    Raises:
        ValueError: If there is no such task; the message lists the names.
    """
    if isinstance(name, Task):
        return name
    try:
        return TASKS[name]
    except KeyError:
        raise ValueError(f"unknown task {name!r}; the tasks are {', '.join(TASKS)}") from None
