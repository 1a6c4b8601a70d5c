"""Which layers of student and teacher correspond."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from .attention_states import resolve_layer


if TYPE_CHECKING:
    from ..config import DistillationConfig


def relative_depth(layer: int, student_depth: int, teacher_depth: int) -> int:
    """The teacher's layer at the relative depth of the student's: where the middle of a layer falls, so that it is the same
    index where the depths are equal."""
    return (2 * layer + 1) * teacher_depth // (2 * student_depth)


def _nearest(layer: int, available: Collection[int]) -> int:
    """The nearest layer of `available`, of two the later one; `layer` itself where there is none at all."""
    return min(available, key=lambda other: (abs(other - layer), -other), default=layer)


def relation_layers(
    args: DistillationConfig,
    student_depth: int,
    teacher_depth: int,
    student_attention: Collection[int] = (),
    teacher_attention: Collection[int] = (),
) -> tuple[list[int], list[int]]:
    """The student's and the teacher's layers of the relation loss, resolved: see `DistillationConfig`.

    Args:
        args: the options.
        student_depth, teacher_depth: numbers of layers.
        student_attention, teacher_attention: the layers that have attention, to which defaults keep; empty: unknown.

    Raises:
        ValueError: a layer does not exist, or the numbers of layers differ.
    """
    if args.attention_layers is None:
        # 22 of 28 layers, in integers, so that the index of a model of 28 layers is exactly 22.
        student = [_nearest(student_depth * 22 // 28, student_attention)]
    else:
        student = list(args.attention_layers)
    teacher = args.teacher_attention_layers
    if teacher is None:
        teacher = [
            layer if layer < 0 else _nearest(relative_depth(layer, student_depth, teacher_depth), teacher_attention)
            for layer in student
        ]
    return (
        [resolve_layer(layer, student_depth) for layer in student],
        [resolve_layer(layer, teacher_depth) for layer in teacher],
    )
