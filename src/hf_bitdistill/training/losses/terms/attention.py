"""Relations among the queries, keys and values of one layer, of both models."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, cast

from torch import Tensor, nn

from ..attention_states import AttentionStateCapture, AttentionStates, attention_layers, number_of_layers
from ..depths import relation_layers
from ..document_groups import document_groups, gather_states
from ..relations import (
    RelationNormalization,
    attention_relation_loss,
    largest_relation_heads,
    relation_divisor,
    state_width,
)
from .base import Forwards, LossTerm, TermSums


class AttentionTerm(LossTerm):
    """[`attention_relation_loss`] of the chosen layers, a mean over rows.

    Attributes:
        layers: of the student and of the teacher, once both are known.
        heads: relation heads, once they are known.
    """

    name = "attention"
    label = "attention relations (unweighted)"
    unit = "nats a row of relations"
    order = 20
    reads_logits = False
    weight_option = "attention_loss_weight"
    needs_teacher = True
    reads_mask = True
    settings = ("attention_loss_weight", "relation_normalization", "relation_causal")

    def __init__(self, args):
        super().__init__(args)
        self.layers: tuple[list[int], list[int]] = ([], [])
        self.heads: int | None = args.relation_heads

    def check(self, student: nn.Module, teacher: nn.Module | None, args) -> None:
        assert teacher is not None  # (`needs_teacher`)
        self.layers = relation_layers(
            args,
            number_of_layers(student),
            number_of_layers(teacher),
            attention_layers(student),
            attention_layers(teacher),
        )
        # Both are built now, so that an architecture without Q, K, V to capture is refused before training.
        self._student = AttentionStateCapture(student, self.layers[0])
        self._teacher = AttentionStateCapture(teacher, self.layers[1])

    def watch_teacher(self) -> AbstractContextManager:
        return self._teacher

    def watch_student(self, model: nn.Module) -> AbstractContextManager:
        # The model is wrapped after the trainer was made, and made again with model_init.
        if self._student.model is not model:
            self._student = AttentionStateCapture(model, self.layers[0])
        return self._student

    def watched_teacher(self) -> list[tuple[str, Tensor]]:
        return [("teacher attention states", state) for layer in self._teacher.release() for state in layer]

    def sums(self, forwards: Forwards) -> TermSums:
        args, mask, documents = self.args, forwards.mask, forwards.documents
        normalization = cast(RelationNormalization, args.relation_normalization)
        teacher_states, student_states = self._teacher.release(), self._student.release()
        if self.heads is None:
            self.heads = largest_relation_heads(
                [state_width(state) for states in (*teacher_states, *student_states) for state in states]
            )
        pairs = list(zip(teacher_states, student_states, strict=True))
        parts: Iterable[tuple[AttentionStates, AttentionStates, Tensor]] = [(*pair, mask) for pair in pairs]
        if documents is not None:
            # A generator: the states of one group of documents at a time.
            parts = (
                (gather_states(teacher, places), gather_states(student, places), real)
                for places, real in document_groups(documents, mask)
                for teacher, student in pairs
            )
        # The first summand ties the graph to the student where no document takes part.
        total: Any = student_states[0].query[..., :0].float().sum() if documents is not None else 0.0
        for teacher, student, real in parts:
            total = (
                total
                + attention_relation_loss(teacher, student, real, self.heads, normalization, args.relation_causal).kl
            )
        divisor = relation_divisor(normalization, len(student_states), self.heads)
        return TermSums(total, "tokens", each=self.heads, divisor=divisor)

    def facts(self) -> list[tuple[str, Any]]:
        if self.heads is None:
            return []
        return [("relation_heads", self.heads), ("attention_layers (student, teacher)", self.layers)]
