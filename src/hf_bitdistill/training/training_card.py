"""What a trainer knows of its student for the card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..hub.cards import CardFacts, last_evaluation
from ..hub.cards.base_model_id import base_model_id, exact_model_id, license_of
from ..pages.tables import markdown_table
from .losses.terms import TERMS


if TYPE_CHECKING:
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


def card_facts(
    trainer: DistillationTrainer,
    *,
    model_name: str,
    base_model: str | None,
    tags: Sequence[str] = (),
    metadata: Mapping[str, Any] | None = None,
) -> CardFacts:
    """What a trainer knows of its student.

    Args:
        trainer: before or after training.
        model_name: title of the card.
        base_model: what the student was made from, a Hub id or a path (of which only the id is told that it leads to).
        tags: besides those of every student.
        metadata: further fields (language, license, datasets, pipeline_tag); `None` values are left out. The licence of a base model
            whose card lies beside it stands where none is named.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    without = trainer.teacher is None and trainer.teacher_cache is None
    settings = [(name, getattr(trainer.args, name)) for name in _HYPER_PARAMETERS]
    settings = [(name, getattr(value, "value", value)) for name, value in settings]
    steps, best = trainer.state.global_step, _best_step(trainer)
    settings.insert(0, ("optimizer steps", steps if best is None else f"{best}, the best of {steps}"))
    settings += [fact for term in trainer.terms for fact in term.facts()]
    told = {name: value for name, value in (metadata or {}).items() if value is not None}
    return CardFacts(
        title=model_name,
        repo=trainer.hub_model_id or model_name,
        config=model.config,
        base=base_model_id(base_model),
        teacher=None if without else exact_model_id(trainer.teacher_name) or "",
        distilled_by="the `DistillationTrainer` of hf-bitdistill",
        classifier=trainer.head == "sequence_classification",
        push_format=trainer.args.push_format,
        scores=last_evaluation(trainer.state.log_history, best),
        settings=markdown_table(("setting", "value"), [(name, str(value)) for name, value in settings]),
        tags=tags,
        metadata={"license": license_of(base_model), **told},
    )


def _best_step(trainer: DistillationTrainer) -> int | None:
    """The step whose weights the trainer took at the end of its training, if it did."""
    ended = any("train_runtime" in record for record in trainer.state.log_history)
    return trainer.state.best_global_step if ended and trainer.args.load_best_model_at_end else None
