"""The model card of a distilled student: only what the trainer knows or measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelCardData

from ..hub.card import CITATION, LOADING, WITHOUT_IMPORT, base_model_id, exact_model_id
from .terms import TERMS


if TYPE_CHECKING:
    from pathlib import Path

    from ..data import Task
    from .trainer import DistillationTrainer

_HYPER_PARAMETERS = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "weight_decay_share",
    "max_grad_norm",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "bf16",
    "fp16",
    "seed",
    *(setting for term in TERMS for setting in term.settings),
    "quantization_warmup_steps",
    "dead_zone_leak",
    "scale_gradient",
)
# Not a quality of the model.
_SPEED_SUFFIXES = ("_runtime", "_per_second", "_time")


def ternary_method(config: Any) -> str | None:
    """The quantisation method of a model's config, if it is a ternary one ("bitdistill" or "bitnet")."""
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return None
    get = quantization.get if isinstance(quantization, Mapping) else lambda key: getattr(quantization, key, None)
    method = get("quant_method")
    method = getattr(method, "value", method)
    return method if method in ("bitdistill", "bitnet") else None


def _table(header: tuple[str, str], rows: Sequence[tuple[str, Any]]) -> str:
    lines = [f"| {header[0]} | {header[1]} |", "|---|---|"]
    return "\n".join(lines + [f"| {name} | {value} |" for name, value in rows])


def _evaluation(log_history: Sequence[Mapping[str, Any]]) -> str:
    for record in reversed(log_history):
        metrics = [
            (name, f"{value:.4f}")
            for name, value in record.items()
            if name.startswith("eval_") and isinstance(value, (int, float)) and not name.endswith(_SPEED_SUFFIXES)
        ]
        if metrics:
            return f"Measured by the trainer after step {record['step']}:\n\n" + _table(("Metric", "Value"), metrics)
    return "The model was not evaluated during training."


def build_model_card(
    trainer: DistillationTrainer,
    *,
    model_name: str,
    base_model: str | None,
    tags: Sequence[str],
    metadata: Mapping[str, Any],
) -> ModelCard:
    """Builds the card from a trainer's state.

    Args:
        trainer: the trainer, before or after training.
        model_name: title of the card.
        base_model: what the student was made from, a Hub id or a path (of which only the id is told that it leads to).
        tags: tags of the metadata.
        metadata: further fields (language, license, datasets, pipeline_tag); `None` values are left out.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    method = ternary_method(model.config)
    classification = trainer.head == "sequence_classification"
    base_id = base_model_id(base_model)
    data = ModelCardData(
        library_name="transformers",
        base_model=base_id,
        base_model_relation=("quantized" if method else "finetune") if base_id else None,
        pipeline_tag="text-classification" if classification else "text-generation",
        tags=list(tags),
        **{key: value for key, value in metadata.items() if value is not None},
    )
    kind = "ternary (1.58-bit) " if method else ""
    base = f"[{base_id}](https://huggingface.co/{base_id})" if base_id else "a base model which is not on the Hub"
    teacher_name = trainer.teacher_name
    teacher_id = exact_model_id(teacher_name)
    if trainer.teacher is None and trainer.teacher_cache is None:
        source = "without a teacher"
    elif teacher_id:
        source = f"from the teacher [{teacher_id}](https://huggingface.co/{teacher_id})"
    else:
        source = "from a teacher which is not on the Hub"
    sections = [
        f"# {model_name}",
        f"A {kind}student of {base}, trained {source} with BitNet Distillation "
        "([arXiv 2510.13998](https://arxiv.org/abs/2510.13998)).",
    ]
    if method == "bitdistill":
        auto_class = "AutoModelForSequenceClassification" if classification else "AutoModelForCausalLM"
        name = trainer.hub_model_id or model_name
        sections += [
            "## Loading",
            "`pip install hf-bitdistill`, then:",
            LOADING.format(auto_class=auto_class, name=name, options=""),
            WITHOUT_IMPORT,
        ]
    settings = [(name, getattr(trainer.args, name)) for name in _HYPER_PARAMETERS]
    settings = [(name, getattr(value, "value", value)) for name, value in settings]
    settings.insert(0, ("optimizer steps", trainer.state.global_step))
    settings += [fact for term in trainer.terms for fact in term.facts()]
    sections += [
        "## Evaluation",
        _evaluation(trainer.state.log_history),
        "## Training",
        _table(("Setting", "Value"), settings),
        "## Citation",
        f"```bibtex\n{CITATION}\n```",
    ]
    body = "\n\n".join(sections)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n", ignore_metadata_errors=True)


_TASK = "## Task"


def describe_task(folder: Path, task: Task, split: str, scores: str) -> None:
    """Add to the card in a folder how the student is asked and what it scored, in front of how it was trained.

    Args:
        split: that it was measured on.
        scores: of the student that is in the folder, as text.
    """
    card = ModelCard.load(folder / "README.md", ignore_metadata_errors=True)
    answers = f"Answers: {', '.join(task.label_words)}.\n\n" if task.label_words else ""
    section = (
        f"{_TASK}\n\nThe student is asked with this prompt, and answers after it:\n\n```text\n{task.prompt}\n```\n\n{answers}"
        f"Measured on {task.name} ({split}):\n\n```text\n{scores}\n```\n\n`bitdistill evaluate` with this folder measures it again.\n\n"
    )
    before, training, after = card.content.partition("## Training\n")
    ModelCard(f"{before}{section}{training}{after}", ignore_metadata_errors=True).save(folder / "README.md")
