"""`DistillationTrainer`: transformers' `Trainer` with the losses of BitNet Distillation."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.utils import logging

from ..data.batch_checks import CheckedCollator, ModelLimits, check_batch
from ..data.batches import DOCUMENTS, PreparedBatch, prepare_batch
from ..data.preprocessing import IGNORE_INDEX, collate
from ..hub.cards import TAGS, TERNARY_TAGS, CardFacts, write_card
from ..modeling.model_heads import model_head
from ..nn import warn_of_16_bit_weights
from .batch_layout import batch_layouts, check_layout
from .both_passes import BothPasses
from .callbacks import training_callbacks
from .component_means import ComponentMeans, FreshMeansCallback
from .config import TEACHER_LOSS_WEIGHTS, DistillationConfig, check_one_device, needs_teacher
from .conversation_rows import encode_datasets
from .engines.sharding import prepare_for_shards
from .losses.targets import batch_targets, taking_part
from .losses.terms import TERMS, LossTerm, Progress
from .losses.terms.attention import AttentionTerm
from .passes import labelled_positions, without
from .reliability.finite import not_finite
from .reliability.reliable_trainer import ReliableTrainer
from .student_model import check_evaluation_dtype, check_ternary, load_student_model
from .teacher.cache import CachedCollator, TeacherCache
from .teacher.teacher_model import choose_teacher, load_teacher_tokenizer
from .teacher.teacher_placement import PlacedTeacher, place_teacher
from .training_card import card_facts


logger = logging.get_logger(__name__)


class DistillationTrainer(ReliableTrainer):
    """Trains a student on labels, on a teacher's logits, on its attention relations and on its hidden states.

    The student may be a ternary model or any other one with a causal LM or a (single-label) sequence classification
    head; the teacher has the same head and tokenizer, but any depth, width and number of heads.

    Positions: all token losses are taken where there is a label (for a causal LM, at the position that predicts it).
    The relation and hidden state losses are taken over all real tokens of every sequence that has a label; a sequence without any takes
    no part in the training. A batch without any label has the loss 0 and zero gradients, and a warning is logged once.

    Layout: a batch may be padded on either side, or packed (`DataCollatorWithFlattening`: `position_ids` that restart, `seq_idx` or
    `cu_seq_lens_q`); the loss is the same. A document of a packed batch is a sequence of its own. Where a model would see over the
    borders of documents, or counts padding as positions, it is refused with its name, at the first such batch.

    Checks: batches with labels or tokens out of range, more tokens than a model's context, empty rows or misaligned labels are refused
    with row and value, by the data collator.

    A mixture of experts whose config asks for it (`output_router_logits`) has its load-balancing loss added to every micro-batch, as
    `Trainer` adds it; its unweighted sum is logged as `loss_router`.

    Normalisation: cross entropy and KL are divided by the number of labels, the relation loss by its own number of
    rows, the hidden state loss by its tokens and layers, all counted over the whole accumulated batch (over all processes too, with
    `average_tokens_across_devices`). So the gradient depends on what is in the batch, not on how it is cut up.

    Besides `loss`, the unweighted terms are logged: `loss_ce`, `loss_logits`, `loss_attention`, `loss_hidden`, `loss_router` (with the
    prefix of the evaluation, as `eval_loss_ce`). In an evaluation they are averaged like `eval_loss`: means of batches,
    weighted by their sequences (documents, of a flattened batch). They are the same for any number of processes with the same `per_device_eval_batch_size`.

    Args:
        model: the student: a model, or a name or path. A student's checkpoint is loaded, a full-precision one becomes a student with the
            options of `BitNetConfig()`; the tokenizer is the one beside it, unless `processing_class` is given. A model in full
            precision is refused as the student of a teacher, unless `args.allow_full_precision_student`.
        teacher_model: a model, or a name or path (overrides `args.teacher_model_name_or_path`). Not needed if
            no distillation loss is on. It is put into eval mode and frozen.
        args: a `DistillationConfig`.
        processing_class: the student's tokenizer. With it and the teacher's, different tokenizers are refused.
        teacher_processing_class: the teacher's tokenizer. Default: the one saved where the teacher was loaded from; a
            warning says so where there is none to compare.
        data_collator: default: `hf_bitdistill.data.collate(processing_class, head)`, which pads labels too (the stock
            default does not).
        train_dataset, eval_dataset: as in `Trainer`. Columns `messages` (or `conversations`), or `prompt` and `completion`, without
            `input_ids` are encoded with `processing_class`, with labels on what the assistant says alone (see
            [`encode_conversations`], [`encode_completions`]); not so with a `data_collator` and `remove_unused_columns=False`,
            which reads them itself.
        model_init, compute_metrics, callbacks, optimizers, optimizer_cls_and_kwargs,
        preprocess_logits_for_metrics: as in `Trainer`.

    Raises:
        TypeError: `args` is not a `DistillationConfig`.
        ValueError: no teacher, or one that does not fit; an unsupported head, architecture or parallelism.
    """

    _tag_names = [*TAGS, *TERNARY_TAGS]
    _name = "BitNet Distillation"
    _paper = {"title": "BitNet Distillation", "id": "2510.13998"}

    # compute_loss divides by counts of the whole accumulated batch
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | str | os.PathLike | None = None,
        teacher_model: PreTrainedModel | nn.Module | str | os.PathLike | None = None,
        args: DistillationConfig | None = None,
        data_collator: Callable | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        teacher_processing_class: Any = None,
        model_init: Callable[..., PreTrainedModel] | None = None,
        compute_metrics: Callable | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
        optimizer_cls_and_kwargs: tuple | None = None,
        preprocess_logits_for_metrics: Callable | None = None,
    ):
        if args is None:
            args = DistillationConfig()
        elif not isinstance(args, DistillationConfig):
            raise TypeError(f"args must be a DistillationConfig, got {type(args).__name__}")
        if args.use_liger_kernel:
            raise ValueError("use_liger_kernel computes the loss inside the model and is not supported")
        if isinstance(model, (str, os.PathLike)):
            processing_class = load_teacher_tokenizer(model) if processing_class is None else processing_class
            model = load_student_model(model)
        if data_collator is None or args.remove_unused_columns:
            # (Not for a collator of the user's own that may read them.)
            train_dataset, eval_dataset = encode_datasets(model, args, processing_class, train_dataset, eval_dataset)
        if data_collator is None and model is not None and isinstance(processing_class, PreTrainedTokenizerBase):
            # The stock default does not pad labels.
            data_collator = collate(processing_class, model_head(model))
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            model_init=model_init,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        student = self.accelerator.unwrap_model(self.model)
        self.head = model_head(student)
        if self.head == "sequence_classification":
            # What the model's own loss would set on its first batch; ours bypasses it.
            student.config.problem_type = "single_label_classification"
        self._check_parallelism()
        warn_of_16_bit_weights(student)
        check_evaluation_dtype(student, args)
        prepare_for_shards(student, self.accelerator)

        self._train_means = ComponentMeans()
        self._eval_means = ComponentMeans()
        # The student's logits that an evaluation wants (see `BothPasses`); `None` elsewhere.
        self._wanted_logits: str | None = None
        self._warned_unlabelled = False
        self._step_counts: Tensor | None = None
        self._counts: Tensor | None = None
        self.terms: list[LossTerm] = [kind(args) for kind in TERMS if kind.is_on(args)]
        self.teacher: nn.Module | None = None
        self._placed_teacher: PlacedTeacher | None = None
        self.teacher_name: str | None = None
        self.teacher_cache: TeacherCache | None = None
        if not args.allow_full_precision_student:
            check_ternary(student, needs_teacher(args) or args.teacher_cache is not None)
        if args.teacher_cache is not None:
            self._set_teacher_cache(teacher_model)
        elif needs_teacher(args):
            self._set_teacher(teacher_model, teacher_processing_class)
        is_zero_3 = self.is_deepspeed_enabled and self.engine.shards_weights
        self._passes = BothPasses(
            args,
            self.head,
            self.teacher,
            self._placed_teacher,
            self.teacher_cache,
            "ZeRO-3 gathers the weights of a module for its own pass alone" if is_zero_3 else None,
        )
        models = {"student": student} | ({} if self.teacher is None else {"teacher": self.teacher})
        self._limits = ModelLimits.of(models, self.head)
        self._checked_layouts: set[str] = set()
        self.data_collator = CheckedCollator(self.data_collator, self._limits, self.head)
        if self.teacher_cache is not None:
            self.data_collator = CachedCollator(self.data_collator, self.teacher_cache, self.head)
        for callback in (*training_callbacks(args), FreshMeansCallback(self._train_means)):
            self.add_callback(callback)

    # ---- Setting up ----

    @property
    def relation_layers(self) -> tuple[list[int], list[int]] | None:
        """The student's and the teacher's layers of the relation loss; `None` without it."""
        return next((term.layers for term in self.terms if isinstance(term, AttentionTerm)), None)

    @property
    def relation_heads(self) -> int | None:
        """Its relation heads, once they are known."""
        return next((term.heads for term in self.terms if isinstance(term, AttentionTerm)), None)

    def _check_parallelism(self) -> None:
        check_one_device(self.args)
        if self.get_cp_size() > 1 or self.get_sp_size() > 1:
            raise ValueError("context and sequence parallelism split the sequences and are not supported")
        if self.get_tp_size() > 1 and self.args.attention_loss_weight:
            raise ValueError("tensor parallelism splits the attention heads: set attention_loss_weight=0")

    def _set_teacher(self, teacher: Any, teacher_processing_class: Any) -> None:
        args = self.args
        teacher = args.teacher_model_name_or_path if teacher is None else teacher
        if teacher is None:
            raise ValueError(
                f"{', '.join(name for name in TEACHER_LOSS_WEIGHTS if getattr(args, name))} need a teacher: pass teacher_model "
                "or set teacher_model_name_or_path (or set them to 0)"
            )
        student = self.accelerator.unwrap_model(self.model)
        self.teacher, self.teacher_name = choose_teacher(
            teacher,
            student,
            self.head,
            cast("dict[str, Any] | None", args.teacher_model_init_kwargs),  # (read by `TrainingArguments`)
            self.processing_class,
            teacher_processing_class,
        )
        for term in self.terms:
            if term.needs_teacher:
                term.check(student, self.teacher, args)
        self._placed_teacher = place_teacher(self.teacher, self.accelerator)

    def _set_teacher_cache(self, teacher: Any) -> None:
        if teacher is not None:
            raise ValueError("teacher_cache stands in the place of a teacher, and a teacher_model was given too")
        self.teacher_cache = TeacherCache(cast(str, self.args.teacher_cache))
        student = self.accelerator.unwrap_model(self.model)
        is_classifier = self.head == "sequence_classification"
        width = student.config.num_labels if is_classifier else student.config.get_text_config().vocab_size
        self.teacher_cache.check(self.head, width, self.processing_class, self.args.temperature)
        self.teacher_name = self.teacher_cache.info.teacher

    # ---- Reading a batch ----

    def _prepared(self, batch: Mapping[str, Any]) -> PreparedBatch:
        """The batch with its documents' borders made visible. The collator has done it, unless a batch comes from elsewhere."""
        if isinstance(batch, PreparedBatch):
            return batch
        batch = prepare_batch(batch)
        check_batch(batch, self._limits, self.head)
        return batch

    def _check_layouts(self, batch: PreparedBatch) -> None:
        """Refuse models that read a batch of this layout differently; each is tried once."""
        for layout in batch_layouts(batch):
            if layout in self._checked_layouts:
                continue
            self._checked_layouts.add(layout)
            if self.engine.shards_weights:
                logger.warning(
                    f"A model in shards is not tried on a {layout} batch: whether it keeps documents and padding apart is not known."
                )
                continue
            half = self.accelerator.mixed_precision != "no"
            check_layout(self.accelerator.unwrap_model(self.model), layout, batch, "student", half)
            if self.teacher is not None:
                check_layout(self.teacher, layout, batch, "teacher", half)

    # ---- Counting ----

    def _taking_part(self, batch: Mapping[str, Any], targets: Tensor) -> Tensor:
        return taking_part(batch, targets, any(term.reads_mask for term in self.terms))

    def _count(self, batch: Mapping[str, Any]) -> Tensor:
        """`[2]` int64: labels, and tokens that take part in the relation and hidden state losses."""
        targets = batch_targets(batch, self.head)
        return torch.stack([(targets != IGNORE_INDEX).sum(), self._taking_part(batch, targets).sum()])

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """As in `Trainer`, with the number of labels; all counts of the step are kept for its micro-batches."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            self._step_counts = None
            return batches, None
        batches = [self._prepared(batch) for batch in batches]
        self._train_means.add_weight(1)  # one optimizer step
        counts = torch.stack([self._count(batch) for batch in batches]).sum(0).to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            # Processes of one tensor parallel group see the same batch.
            counts = self.accelerator.gather(counts[None]).sum(0) / self.get_tp_size()
        if counts[0] == 0:
            self._warn_unlabelled()
        self._step_counts = counts
        return batches, counts[0]

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """As in `Trainer`, on a micro-batch of the last [`get_batch_samples`]."""
        self._counts = self._step_counts
        try:
            return super().training_step(model, inputs, *args, **kwargs)
        finally:
            self._counts = None

    def _warn_unlabelled(self) -> None:
        if not self._warned_unlabelled:
            self._warned_unlabelled = True
            logger.warning(
                "A batch has no labels at all (every label is -100): its loss is 0 and it teaches nothing. Check the "
                "labels, and whether truncation cuts them off. This warning is shown once."
            )

    # ---- The loss ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """The weighted sum of the losses for one micro-batch.

        Args:
            model: the (wrapped) student.
            inputs: the collated batch.
            return_outputs: also return the student's outputs. Its logits then cover every position only during a
                prediction that asks for them; otherwise only those which carry a label.
            num_items_in_batch: not used. Within a training step the counts of the whole accumulated batch are known; anywhere else (an
                evaluation, a call by hand) those of this batch alone count.
        """
        inputs = self._prepared(inputs)
        self._check_layouts(inputs)
        targets = batch_targets(inputs, self.head)
        mask = self._taking_part(inputs, targets)
        accumulated = self._counts is not None
        counts = self._count(inputs) if self._counts is None else self._counts
        if not accumulated and counts[0] == 0:
            self._warn_unlabelled()

        progress, terms = self._next_terms()
        wanted = self._wanted_logits or ("labelled" if return_outputs else "none")
        student = self.accelerator.unwrap_model(model)
        forwards = self._passes(model, student, inputs, targets, mask, terms, progress, wanted)
        labels, tokens = counts.clamp(min=1).float()
        # A weight that changes would make evaluations of different steps incomparable: they have that of the training's end.
        at = progress if model.training else Progress(progress.max_steps, progress.max_steps)
        values: dict[str, Tensor] = {}
        loss: Any = None
        for term in terms:
            sums = term.sums(forwards)
            if sums is None:
                continue
            value = values[term.logged] = sums.mean({"labels": labels, "tokens": tokens})
            weighted = (term.weight(at) if sums.weight is None else sums.weight) * value
            loss = weighted if loss is None else loss + weighted.to(loss.device)

        if accumulated and self.args.average_tokens_across_devices:
            # The counts are those of all processes, and the gradients will be averaged over them.
            replicas = self.accelerator.num_processes // self.get_tp_size()
            loss = loss * replicas
            values = {name: value * replicas for name, value in values.items()}
        if model.training:
            self._watch.add(values)
            self._train_means.add(values)
        else:
            sequences = 0 if self.is_repeated_batch else self._sequences(inputs, len(mask))
            self._eval_means.add({name: value * sequences for name, value in values.items()})
            self._eval_means.add_weight(sequences)
        return (loss, without(forwards.outputs, "aux_loss", "router_logits")) if return_outputs else loss

    def _sequences(self, batch: Mapping[str, Any], rows: int) -> int:
        """Examples of an evaluated batch. `DataCollatorWithFlattening` makes one row of all; elsewhere an example is a row, which may hold
        documents of its own."""
        documents = batch.get(DOCUMENTS)
        if rows > 1 or documents is None or self.args.per_device_eval_batch_size == 1:
            return rows
        return int(documents.max()) + 1

    def _next_terms(self) -> tuple[Progress, list[LossTerm]]:
        progress = Progress(self.state.global_step, self.state.max_steps)
        return progress, [term for term in self.terms if term.is_computed(progress)]

    def _causes(self, batch: Mapping[str, Any]) -> list[str]:
        """What of the teacher is not finite on a batch: it is asked again, and only then looked at as a whole."""
        if self._placed_teacher is None or not self._placed_teacher.is_whole:  # it answers all processes together only
            return []
        positions = labelled_positions(batch_targets(batch, self.head), self.head)
        progress, terms = self._next_terms()
        batch = self._prepare_inputs(dict(batch))
        with self.compute_loss_context_manager():
            taught = self._passes.of_teacher(batch, positions, terms, progress)
        parts: list[tuple[str, Any]] = [("teacher logits", taught.logits)] if taught.logits is not None else []
        parts += [part for term in terms if term.needs_teacher for part in term.watched_teacher()]
        parts += [("teacher hidden states", state) for state in taught.hidden]
        return list(dict.fromkeys(not_finite(parts)))

    # ---- Evaluating and logging ----

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """As in `Trainer`; the logits of all positions are computed only if they are asked for."""
        self._wanted_logits = "none" if prediction_loss_only else "all"
        try:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        finally:
            self._wanted_logits = None

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """As in `Trainer`, with the means of the loss terms among the metrics."""
        self._eval_means.reset()
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        for name, value in self._eval_means.pop(self.accelerator).items():
            output.metrics[f"{metric_key_prefix}_{name}"] = value
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in `Trainer`, with the means of the loss terms over the steps since the last log of a training loss."""
        if "loss" in logs:
            logs.update(self._train_means.pop(self.accelerator))
        super().log(logs, start_time)

    # ---- Model card ----

    def create_model_card(  # type: ignore[override]  # its parent takes whatever it is given
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Writes `README.md` into the output folder: how the student was made, how to load it, what was measured.
        Arguments as in `Trainer` (`tasks`, `dataset` and `dataset_args` are not used: a card claims no more than
        the trainer knows)."""
        if not self.is_world_process_zero():
            return
        tags = [tags] if isinstance(tags, str) else list(tags or [])
        metadata = {"language": language, "license": license, "datasets": dataset_tags}
        write_card(Path(self.args.output_dir), self.card_facts(model_name, finetuned_from, tags, metadata))

    def card_facts(
        self,
        model_name: str | None = None,
        base_model: str | None = None,
        tags: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> CardFacts:
        """What this trainer knows of its student for the card.

        Args:
            model_name: title of the card; default: the output folder's name.
            base_model: default: what the student was loaded from.
            tags: besides those of every student.
            metadata: further fields of the card.
        """
        model = self.accelerator.unwrap_model(self.model)
        return card_facts(
            self,
            model_name=model_name or Path(self.args.output_dir).absolute().name,
            base_model=base_model or getattr(model.config, "name_or_path", None),
            tags=tags,
            metadata=metadata,
        )
