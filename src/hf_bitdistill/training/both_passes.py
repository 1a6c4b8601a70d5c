"""The forward passes of student and teacher on a micro-batch, and the token losses at their output layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers.utils import logging

from ..data.batches import DOCUMENTS
from ..data.preprocessing import IGNORE_INDEX
from ..modeling.model_heads import Head
from .losses.divergences import divergence_of
from .losses.head_losses import HeadPlan, HeadTeacher, TokenWeights, head_token_losses, product_tokens
from .losses.head_tap import HeadTap, Take
from .losses.terms import Forwards, LossTerm, Progress
from .losses.token_losses import TokenLosses, TokenLossSums, check_top, default_chunk_size, distillation_token_losses
from .passes import TeacherOutputs, labelled_positions, run_model, run_teacher
from .teacher.cache import TeacherCache
from .teacher.teacher_placement import PlacedTeacher
from .teacher.teacher_scores import TeacherScores, TopTeacher


logger = logging.get_logger(__name__)


class _Reading(NamedTuple):
    """Of a teacher's forward pass.

    Attributes:
        states: what its output layer reads of the selected tokens, `[N, H]`.
        head: the layer.
        products: what it makes of one token, `[1, 1, V]`.
    """

    states: Tensor
    head: nn.Module
    products: Tensor


class BothPasses:
    """Runs both models as far as the terms need them.

    The logits of a causal LM are not made as a whole where the losses alone read them: see [`HeadTap`] and [`head_token_losses`]. A
    model that this does not fit is computed as usual, and a warning says why.

    Args:
        args: a `DistillationConfig`.
        head: of both models.
        teacher: unwrapped; `None` without one.
        placed_teacher: the same, ready to be called.
        cache: in the place of a teacher.
        refusal: why logits have to be whole whatever the models are.
    """

    def __init__(
        self,
        args: Any,
        head: Head,
        teacher: nn.Module | None = None,
        placed_teacher: PlacedTeacher | None = None,
        cache: TeacherCache | None = None,
        refusal: str | None = None,
    ):
        self.args, self.head, self.cache = args, head, cache
        self.teacher, self.placed_teacher = teacher, placed_teacher
        self.refusal = refusal
        self._is_told = self._is_proven = False
        self._student_tap: HeadTap | None = None
        self._teacher_tap: HeadTap | None = None

    def __call__(
        self,
        model: nn.Module,
        student: nn.Module,
        inputs: Mapping[str, Any],
        targets: Tensor,
        mask: Tensor,
        terms: Sequence[LossTerm],
        progress: Progress,
        logits: str = "none",
    ) -> Forwards:
        """What the terms read.

        Args:
            model: the (wrapped) student.
            student: the same, unwrapped.
            inputs: the batch, prepared.
            targets: aligned with the logits.
            mask: the tokens that take part.
            terms: of the next step.
            progress: of the training.
            logits: which of the student's have to be in its outputs: `"none"`, `"labelled"` or `"all"`.
        """
        try:
            return self._run(model, student, inputs, targets, mask, terms, progress, logits)
        finally:
            if self.placed_teacher is not None:
                self.placed_teacher.release()

    def _run(self, model, student, inputs, targets, mask, terms, progress, logits: str) -> Forwards:
        found = None
        if any(term.reads_logits for term in terms):
            logits = "labelled" if logits == "none" else logits
        if logits == "none" and self.head == "causal_lm":
            found = self._tapped(model, student, inputs, targets, terms, progress)
            if found is None and not self._is_told:
                self._is_told = True
                logger.warning(
                    f"The logits of a batch are computed as a whole, which takes more memory: {self.refusal}."
                )
        if found is None:
            found = self._whole(model, student, inputs, targets, terms, progress, logits == "all")
        return Forwards(
            args=self.args,
            inputs=inputs,
            mask=mask,
            documents=inputs.get(DOCUMENTS),
            student=student,
            **{"targets": targets, **found},
        )

    def of_teacher(
        self,
        inputs: Mapping[str, Any],
        positions: Tensor | None,
        terms: Sequence[LossTerm],
        progress: Progress,
        tap: tuple[HeadTap, Take] | None = None,
    ) -> TeacherOutputs:
        """See [`run_teacher`]."""
        prepared = None if self.placed_teacher is None else self.placed_teacher.model
        return run_teacher(prepared, self.teacher, inputs, positions, terms, progress, self.head, tap)

    def _of_student(
        self,
        model: nn.Module,
        student: nn.Module,
        inputs: Mapping[str, Any],
        positions: Tensor | None,
        terms: Sequence[LossTerm],
        progress: Progress,
        tap: tuple[HeadTap, Take] | None = None,
    ) -> tuple[Any, Tensor, tuple[Tensor, ...]]:
        wants_hidden = any(term.wants_hidden(progress) for term in terms)
        with ExitStack() as stack:
            for term in terms:
                stack.enter_context(term.watch_student(model))
            return run_model(model, student, inputs, positions, wants_hidden, tap)

    # ---- Logits as a whole ----

    def _whole(self, model, student, inputs, targets, terms, progress, all_logits: bool) -> dict[str, Any]:
        args, batch_targets = self.args, targets
        positions = None if all_logits else labelled_positions(targets, self.head)
        targets = targets if positions is None else targets[:, positions]
        if self.cache is None:
            taught = self.of_teacher(inputs, positions, terms, progress)
        else:
            top = self.cache.top_logits(inputs, batch_targets, self.head, args.temperature)
            taught = TeacherOutputs(top, width=self.cache.info.vocab_size)
        outputs, logits, hidden = self._of_student(model, student, inputs, positions, terms, progress)
        sums = distillation_token_losses(
            logits,
            taught.logits,
            targets,
            divergence=divergence_of(args),
            temperature=args.temperature,
            chunk_size=args.kl_chunk_size,
            # the tokenizers were compared: surplus columns are padding rows of the embedding
            vocab_size=None if taught.width is None else min(logits.shape[-1], taught.width),
            label_smoothing=args.label_smoothing_factor,
        )
        return {
            "targets": targets,
            "outputs": outputs,
            "token_sums": sums,
            "logits": logits,
            "hidden": hidden,
            "teacher_logits": taught.logits,
            "teacher_hidden": taught.hidden,
        }

    # ---- Losses at the output layers ----

    def _taps(self, student: nn.Module) -> list[tuple[str, HeadTap]]:
        if self._student_tap is None or self._student_tap.model is not student:
            # The student is made again with model_init.
            self._student_tap = HeadTap(student, is_derived=True)
        if self._teacher_tap is None and self.teacher is not None:
            self._teacher_tap = HeadTap(self.teacher, is_derived=False)
        taps = {"student": self._student_tap, "teacher": self._teacher_tap}
        return [(name, tap) for name, tap in taps.items() if tap is not None]

    def _is_refused(self, taps: list[tuple[str, HeadTap]]) -> bool:
        """Whether logits have to be whole."""
        if self.refusal is None:
            bad = [f"{tap.refusal} (the {name}, {type(tap.model).__name__})" for name, tap in taps if tap.refusal]
            if not bad:
                return False
            self.refusal = bad[0]
        return True

    def _tapped(self, model, student, inputs, targets, terms, progress) -> dict[str, Any] | None:
        """`None` where it turns out that the models cannot be tapped."""
        taps = self._taps(student)
        if self._is_refused(taps):
            return None
        try:
            found = self._at_heads(model, student, inputs, targets, terms, progress)
        except Exception as error:
            if self._is_proven:
                raise
            # A forward may not bear logits of one token. Whatever else it is comes up again.
            text = (str(error).splitlines() or [""])[0]
            self.refusal, found = f"a pass with logits of one token failed ({type(error).__name__}: {text})", None
        self._is_proven = not self._is_refused(taps)
        return found if self._is_proven else None

    def _at_heads(self, model, student, inputs, targets, terms, progress) -> dict[str, Any] | None:
        args, student_tap, teacher_tap = self.args, self._student_tap, self._teacher_tap
        assert student_tap is not None  # (`_taps` made it)
        flat = targets.reshape(-1)
        # Found once: on an accelerator the search waits for everything before it.
        selected = (flat != IGNORE_INDEX).nonzero().squeeze(-1)
        labels = flat[selected]
        top = reading = None
        sums: list[Tensor] | None = None

        def rows(states: Tensor, tap: HeadTap) -> Tensor | None:
            if states.shape[:2] != targets.shape:
                tap.refusal = f"its output layer reads states {list(states.shape)} of targets {list(targets.shape)}"
                return None
            return states.flatten(0, 1)[selected]

        def read_teacher(states: Tensor, head: nn.Module, products: Tensor) -> None:
            nonlocal reading
            mine = None if teacher_tap is None else rows(states, teacher_tap)
            reading = None if mine is None else _Reading(mine, head, products)

        def read_student(states: Tensor, head: nn.Module, products: Tensor) -> Tensor | None:
            nonlocal sums
            mine = rows(states, student_tap)
            if mine is None:
                return None
            width, dtype = products.shape[-1], products.dtype
            teacher, shared = self._teacher(top, reading, width, len(selected))
            losses = TokenLosses(teacher, divergence_of(args), args.temperature, shared, args.label_smoothing_factor)
            plan = HeadPlan(
                dtype,
                student_tap.tail,
                _weights(terms, progress),
                product_tokens(products.device, width, dtype),
                args.kl_chunk_size or default_chunk_size(products.device, width),
            )
            plain = cast(nn.Linear, head)  # (another kind is refused)
            tied = student_tap.tied
            *sums, tie = head_token_losses(mine, plain.weight, plain.bias, labels, losses, plan, tied)
            return tie

        hidden_of_teacher: Sequence[Tensor] = ()
        if self.cache is not None:
            top = self.cache.top_logits(inputs, targets, self.head, args.temperature)
        else:
            tap = None if teacher_tap is None else (teacher_tap, read_teacher)
            taught = self.of_teacher(inputs, None, terms, progress, tap)
            hidden_of_teacher = taught.hidden
            if teacher_tap is not None and teacher_tap.refusal is not None:
                return None
        read = (student_tap, read_student)
        outputs, logits, hidden = self._of_student(model, student, inputs, None, terms, progress, read)
        if student_tap.refusal is not None:
            return None
        assert sums is not None  # (what was not read was refused)
        cross_entropy, kl = sums
        # Adds nothing. A sharded model prepares its weights for the backward pass when the gradient of its outputs comes.
        cross_entropy = cross_entropy + logits[..., :0].to(cross_entropy.dtype).sum()
        count = torch.tensor(len(selected), device=targets.device)
        return {
            "outputs": outputs,
            "token_sums": TokenLossSums(cross_entropy, kl, count),
            "hidden": hidden,
            "teacher_hidden": hidden_of_teacher,
        }

    def _teacher(self, top, reading, width: int, count: int) -> tuple[TeacherScores | None, int | None]:
        """Its scores, and the leading columns that both models have."""
        if top is not None and self.cache is not None:
            shared = min(width, self.cache.info.vocab_size)
            check_top(top, count, shared, width)
            return TopTeacher(top), shared
        if reading is None:
            return None, None
        assert self._teacher_tap is not None  # (it read)
        shared = min(width, reading.products.shape[-1])
        teacher = HeadTeacher(
            reading.states,
            reading.head,
            self._teacher_tap.tail,
            shared,
            self.args.temperature,
            reading.products.dtype,
        )
        return teacher, shared


def _weights(terms: Sequence[LossTerm], progress: Progress) -> TokenWeights:
    weights = dict.fromkeys(TokenWeights._fields, 0.0)
    for term in terms:
        if term.token_sum is not None:
            weights[term.token_sum] += term.weight(progress)
    return TokenWeights(**weights)
