"""The card of a model: one template, and what is known of the model for it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from transformers.utils import logging

from ...config import ternary_method
from ...evaluation.score_record import Measurement, Record
from ...files.atomic import write_text
from ...modeling.model_heads import PIPELINE_TASKS, head_of
from ...modeling.sizes import Sizes
from ...pages.tables import format_score, markdown_table
from .base_model_id import CARD, base_model_id, card_data, exact_model_id, hub_model_id, license_of


logger = logging.get_logger(__name__)

TEMPLATE = Path(__file__).with_name("template.md")
EVAL_RESULTS = ".eval_results/bitdistill.yaml"

TAGS = ("bitdistill", "distillation")
TERNARY_TAGS = ("bitnet", "ternary")

CITATION = """@article{wu2025bitnetdistillation,
  title   = {BitNet Distillation},
  author  = {Wu, Xun and Huang, Shaohan and Wang, Wenhui and Song, Ting and Dong, Li and Xia, Yan and Wei, Furu},
  journal = {arXiv preprint arXiv:2510.13998},
  year    = {2025}
}"""
# Of a trainer's evaluation: not a quality of the model.
_SPEED_SUFFIXES = ("_runtime", "_per_second", "_time")
_PAPER = "*BitNet Distillation* ([arXiv 2510.13998](https://arxiv.org/abs/2510.13998))"


@dataclass
class CardFacts:
    """What is known of a model. What is not known is absent from its card.

    Attributes:
        title: of the card.
        repo: by which the model is loaded: a repository's name, or a folder's.
        config: of the model.
        classifier: whether it has a classification head; default: what `config` says.
        base, teacher: an id on the Hub; a folder (always, if it is a `Path`), of which only the last part is told; `""`: one of which no
            name is told.
        distilled_by: what made it after the published recipe; `None`: nothing of that is known.
        push_format: the forms in the repository.
        record: the model's scores, and how they were measured.
        date: of the scores.
        data: one line on the examples.
        scores: table of scores; default: that of `record`.
        sentences: about the scores.
        sizes: of its files.
        speed: how fast it writes, and where.
        command: that made it.
        stages, settings: tables.
        choices: that were made while it was.
        kept: projections that stayed in full precision.
        machine: that it was made on.
        gguf: files beside it for llama.cpp.
        tags: besides those of every student.
        metadata: further fields (`language`, `license`, `datasets`, ...); they win over what is found.
    """

    title: str
    repo: str
    config: Any
    classifier: bool | None = None
    base: str | os.PathLike | None = None
    teacher: str | os.PathLike | None = None
    distilled_by: str | None = None
    push_format: str = "packed"
    record: Record | None = None
    date: str | None = None
    data: str | None = None
    scores: str | None = None
    sentences: Sequence[str] = ()
    sizes: Sizes | None = None
    speed: str | None = None
    command: str | None = None
    stages: str | None = None
    settings: str | None = None
    choices: Sequence[str] = ()
    kept: Sequence[str] = ()
    machine: str | None = None
    gguf: Sequence[str] = ()
    tags: Sequence[str] = ()
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def is_ternary(self) -> bool:
        return ternary_method(self.config) is not None

    @property
    def task_type(self) -> str:
        if self.classifier is None:
            return PIPELINE_TASKS[head_of(self.config)]
        return PIPELINE_TASKS["sequence_classification" if self.classifier else "causal_lm"]

    @property
    def how(self) -> Measurement | None:
        return self.record.how if self.record is not None else None


def build_card(facts: CardFacts) -> ModelCard:
    """The card, ready to be saved."""
    how = facts.how
    task = how.task if how is not None else None
    kind = "SequenceClassification" if facts.task_type == "text-classification" else "CausalLM"
    fields: dict[str, Any] = {
        "title": facts.title,
        "repo": facts.repo,
        "ternary": facts.is_ternary,
        "auto_class": f"AutoModelFor{kind}",
        "native_class": f"BitNetModelFor{kind}",
        "push_format": facts.push_format,
        "base": _link(base_model_id(facts.base), facts.base),
        "teacher": _link(exact_model_id(facts.teacher), facts.teacher),
        "distilled_by": f"{facts.distilled_by} after {_PAPER}" if facts.distilled_by else None,
        "weight_bits": f"{facts.sizes.weight_bits:g}" if facts.sizes is not None else None,
        "share": f"{facts.sizes.ternary_share:.0%}" if facts.sizes and facts.sizes.kinds["ternary codes"] else None,
        "data": facts.data,
        "prompt": task.prompt if task is not None else None,
        "answers": ", ".join(task.label_words) if task is not None and task.label_words else None,
        "scores": facts.scores or (_scores(facts.record) if facts.record is not None else None),
        "sentences": "\n\n".join(facts.sentences),
        "again": _again(facts),
        "sizes": facts.sizes.markdown() if facts.sizes is not None else None,
        "speed": facts.speed,
        "gguf": list(facts.gguf),
        "command": facts.command,
        "stages": facts.stages,
        "settings": facts.settings,
        "choices": "\n".join(f"- {choice}" for choice in facts.choices),
        "machine": facts.machine,
        "kept": ", ".join(facts.kept),
        "citation": CITATION if facts.distilled_by else None,
    }
    return ModelCard.from_template(metadata(facts), template_path=str(TEMPLATE), **fields)


def write_card(folder: Path, facts: CardFacts) -> Path:
    """`README.md`, and the scores for the Hub where they are on a dataset of the Hub; those of an older card go. What somebody else wrote
    there is set aside, with a warning. Returns the card's path."""
    card, text = folder / CARD, card_text(facts)
    if card.is_file() and not is_ours(card):
        logger.warning(f"{card} was not written by hf-bitdistill: it is {set_aside(card).name} now")
    write_text(card, text)
    entries, results = eval_results(facts), folder / EVAL_RESULTS
    if entries:
        results.parent.mkdir(exist_ok=True)
        write_text(results, yaml.safe_dump(entries, sort_keys=False))
    else:
        results.unlink(missing_ok=True)
    return card


def card_text(facts: CardFacts) -> str:
    """The card as the file that it becomes."""
    return str(build_card(facts)).rstrip("\n") + "\n"


def is_ours(card: str | Path) -> bool:
    """Whether this library wrote a card, its text or its file: its tags say so."""
    return TAGS[0] in (card_data(card).tags or ())


def set_aside(card: Path) -> Path:
    """Rename a card, so that another takes its place: to the first of README.previous.md, README.previous-2.md, ... that is free. Returns its
    new path."""
    number, place = 1, card.with_name("README.previous.md")
    while place.exists():
        number += 1
        place = card.with_name(f"README.previous-{number}.md")
    return card.replace(place)


# ---- Metadata ----


def metadata(facts: CardFacts) -> ModelCardData:
    """What the Hub reads of a card: base model, data, scores."""
    base = base_model_id(facts.base)
    dataset = _hub_dataset(facts.how)
    own_tags = [TAGS[0], *(TAGS[1:] if facts.distilled_by else ()), *(TERNARY_TAGS if facts.is_ternary else ())]
    known = {
        "library_name": "transformers",
        "base_model": base,
        "base_model_relation": ("quantized" if facts.is_ternary else "finetune") if base else None,
        "license": license_of(facts.base),
        "pipeline_tag": facts.task_type,
        "datasets": [dataset] if dataset else None,
        "metrics": list(facts.record.metrics) if facts.record is not None else None,
        **{name: value for name, value in facts.metadata.items() if value is not None},
        "tags": list(dict.fromkeys([*own_tags, *facts.tags])),
    }
    results = _eval_results(facts) if facts.record is not None and facts.how is not None else []
    if results:
        known |= {"model_name": facts.title, "eval_results": results}
    return ModelCardData(**known)


def _eval_results(facts: CardFacts) -> list[EvalResult]:
    record, how = facts.record, facts.how
    assert record is not None and how is not None
    name = how.task.name if how.task is not None else how.kind
    return [
        EvalResult(
            task_type=facts.task_type,
            dataset_type=_hub_dataset(how) or name,
            dataset_name=name,
            dataset_config=how.dataset_config,
            dataset_split=how.measured_split,
            dataset_revision=how.dataset_revision,
            metric_type=metric,
            metric_name=metric.replace("_", " "),
            metric_value=round(record.scores[metric], 4),
            metric_args=_metric_args(record, metric),
        )
        for metric in record.metrics
    ]


def _metric_args(record: Record, metric: str) -> dict[str, Any]:
    error = _error(record, metric)
    return {"n": record.scores.get("n")} | ({} if error is None else {"stderr": round(error, 4)})


def eval_results(facts: CardFacts) -> list[dict[str, Any]]:
    """For `.eval_results/`, of a dataset that is on the Hub."""
    record, how = facts.record, facts.how
    dataset = _hub_dataset(how)
    if dataset is None or record is None or how is None or not record.metrics:
        return []
    metric = record.metrics[0]
    error = _error(record, metric)
    entry = EvalResultEntry(
        dataset_id=dataset,
        task_id=how.dataset_config or "default",
        value=round(record.scores[metric], 4),
        dataset_revision=how.dataset_revision,
        date=facts.date,
        notes=f"{metric}, {record.scores.get('n')} rows" + ("" if error is None else f", standard error {error:.4f}"),
    )
    return eval_result_entries_to_yaml([entry])


def _error(record: Record, metric: str) -> float | None:
    """The standard error of a score; `None`: one row tells none."""
    error = record.scores[f"{metric}_stderr"]
    return error if math.isfinite(error) else None


def _hub_dataset(how: Measurement | None) -> str | None:
    """The id on the Hub of the data, if that is where it was read from."""
    if how is None:
        return None
    if how.dataset is not None:
        return None if how.is_local else hub_model_id(how.dataset)
    return how.task.hub_id if how.task is not None and how.data_dir is None else None


# ---- Text ----


def _link(found: str | None, name: str | os.PathLike | None) -> str | None:
    if found:
        return f"[{found}](https://huggingface.co/{found})"
    if name is None:
        return None
    return f"`{Path(name).name}`, a local folder" if name else "a model that is not named"


def _again(facts: CardFacts) -> str | None:
    """How the scores are measured again: of data that is not on the Hub, with which copy of it."""
    how = facts.how
    if how is None:
        return None
    if _hub_dataset(how) is not None:
        return f"`bitdistill evaluate {facts.repo}` measures the scores again"
    option, name = "--data_dir" if how.data_dir else "--dataset", Path(how.place).name
    part = f", split {how.measured_split}" if how.measured_split else ""
    return f"`bitdistill evaluate {facts.repo} {option} DATA` measures the scores again, where DATA is your copy of the data (`{name}`{part})"


def _scores(record: Record) -> str | None:
    """A table of what was measured, with standard errors."""
    split, count = (
        (record.how.measured_split if record.how is not None else None) or "",
        str(record.scores.get("n", "")),
    )
    rows = [
        [
            metric.replace("_", " "),
            format_score(metric, record.scores[metric], _error(record, metric)),
            record.what,
            split,
            count,
        ]
        for metric in record.metrics
    ]
    return markdown_table(["", "± one standard error", "data", "split", "rows"], rows) if rows else None


def last_evaluation(log_history: Sequence[Mapping[str, Any]], best_step: int | None = None) -> str | None:
    """A table of what a `Trainer` measured last of the weights that it has, from its log.

    Args:
        best_step: of which it took the weights at the end of the training; `None`: it kept the last ones.
    """
    of_another = False
    for record in reversed(log_history):
        of_another = of_another or "train_runtime" in record  # the end of a training; before it, weights changed
        if of_another and best_step is not None and record.get("step") != best_step:
            continue
        metrics = [
            (name, f"{value:.4f}")
            for name, value in record.items()
            if name.startswith("eval_") and isinstance(value, (int, float)) and not name.endswith(_SPEED_SUFFIXES)
        ]
        if metrics:
            table = markdown_table(("metric", "value"), metrics)
            return f"Measured by the trainer after step {record['step']}:\n\n{table}"
    return None


def add_tags(card: str, tags: Sequence[str]) -> str:
    """A card with tags added to its metadata.

    Raises:
        ValueError: its metadata is damaged.
    """
    try:
        loaded = ModelCard(card)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{CARD}: its metadata cannot be read ({' '.join(str(error).split())})") from error
    loaded.data["tags"] = list(dict.fromkeys([*(loaded.data.get("tags") or []), *tags]))
    return str(loaded)
