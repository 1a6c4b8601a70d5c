"""What a micro batch takes beside the weights, found by running the trainer's own computations on tensors without memory.

Nothing here knows an architecture, or what a ternary layer keeps for its backward pass: models of the configuration's shapes, with one and
with two layers, go forward and backward on fake tensors of torch (`FakeTensorMode`), and [`LiveBytes`] counts. What a layer takes is the
difference; what all take is that times their number. The losses at the output layers and of the attention relations are called as the
trainer calls them, with their whole vocabulary and batch.

Not seen: what operators use inside of themselves, and what an allocator wastes. Attention is torch's on a CPU, which like the fused kernels
of GPUs keeps its inputs, its output and one number a row. Experts get equal numbers of tokens. The teacher's experts are computed one after
another, as a student's are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .._compat import fake_tensors
from ..nn import compute_as_gathered
from ..nn.experts import Experts
from ..training.losses.attention_states import AttentionStateCapture
from ..training.losses.divergences import make_divergence
from ..training.losses.head_losses import HeadPlan, HeadTeacher, TokenWeights, head_token_losses, product_tokens
from ..training.losses.logits_tail import LogitsTail
from ..training.losses.relations import attention_relation_loss, largest_relation_heads, state_width
from ..training.losses.token_losses import TokenLosses, default_chunk_size, selected_token_losses
from ..training.teacher.teacher_scores import TeacherScores, WholeTeacher
from .live_bytes import LiveBytes
from .shapes import ModelShape, Shape


@dataclass(frozen=True)
class Losses:
    """Those on a teacher that are on: on its logits, attention relations, hidden states."""

    logits: bool = True
    relations: bool = True
    hidden: bool = True

    @property
    def teacher(self) -> bool:
        """Whether any is."""
        return self.logits or self.relations or self.hidden


@dataclass(frozen=True)
class Precision:
    """In which dtypes a micro batch is computed.

    Attributes:
        autocast: to bfloat16.
        student, teacher: dtype of the weights that the layers see.
    """

    autocast: bool = False
    student: torch.dtype = torch.float32
    teacher: torch.dtype = torch.float32

    def of_products(self, weights: torch.dtype) -> torch.dtype:
        return torch.bfloat16 if self.autocast else weights


@dataclass(frozen=True)
class MicroBatch:
    """Of one process.

    Attributes:
        rows, length: sequences, and tokens of each.
        labels: tokens of each that have a label.
        precision: see [`Precision`].
        checkpointing: activations of a layer are computed again in the backward pass.
        device: its type, which decides how many tokens' logits there are at once.
        with_codes: ternary weights come as codes that were gathered (FSDP2).
    """

    rows: int
    length: int
    labels: int
    precision: Precision
    checkpointing: bool
    device: str = "cuda"
    with_codes: bool = False


@dataclass(frozen=True)
class MicroStep:
    """Bytes of a micro batch beside weights and their gradients.

    Attributes:
        teacher, teacher_peak: what the teacher's forward pass leaves (hidden states, attention states), and the most on its way.
        kept: what the student's forward pass keeps for its backward pass.
        forward, backward: the most of the student's passes above `kept`. Gradients of weights are there one at a time.
        logits: the most that the losses at the output layers take.
        states_gradient: what they leave: the gradient of what the output layer reads.
        whole_logits: of both models, with their gradient, where logits have to be whole.
        whole_losses: the most that the losses take then, with these.
        relations: the most of the attention relations.
        hidden: what the loss on hidden states keeps: a row of differences a token and layer, float32.
    """

    teacher: int
    teacher_peak: int
    kept: int
    forward: int
    backward: int
    logits: int
    states_gradient: int
    whole_logits: int
    whole_losses: int
    relations: int
    hidden: int


# (Shape and dtype of Q, K, V; of the losses' those of the teacher, then of the student.)
_States = tuple[tuple[tuple[int, ...], torch.dtype], ...]


@dataclass(frozen=True)
class _Passes:
    """Bytes of a model's decoder layers, as of [`MicroStep`]; and what the losses read of them.

    Attributes:
        numbers: by name.
        states: of Q, K, V.
        last: dtype of the last hidden state.
    """

    numbers: dict[str, int]
    states: _States
    last: torch.dtype


_GROW_WITH_EXPERTS = frozenset({"kept"})
_MANY_ROWS = 4


def _with_rows(states: _States, rows: int) -> _States:
    return tuple(((rows, *shape[1:]), dtype) for shape, dtype in states)


class _EqualShares(Experts):
    """[`Experts`] that get equal numbers of tokens: which get which is not known without numbers."""

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        weights, output = top_k_weights.flatten(), torch.zeros_like(hidden_states)
        order = top_k_index.flatten().argsort(stable=True)
        for expert, places in zip(self, order.tensor_split(len(self)), strict=True):
            token = places // top_k_index.shape[1]
            expert_output = expert(hidden_states[token]) * weights[places, None]
            output.index_add_(0, token, expert_output.to(output.dtype))
        return output


def _with_equal_shares(model: PreTrainedModel) -> PreTrainedModel:
    for module in model.modules():
        if type(module) is Experts:
            module.__class__ = _EqualShares
    return model


def _drop_gradient(weight: Tensor) -> None:
    """An engine has its own place for it."""
    weight.grad = None


def _inputs(batch: MicroBatch, losses: Losses) -> dict[str, Any]:
    """Masks and rotary tables are made once for this purpose, not counted."""
    mask = torch.ones(batch.rows, 1, batch.length, batch.length, dtype=torch.bool)
    return {"attention_mask": mask, "use_cache": False, "output_hidden_states": losses.hidden}


def _of_states(states: list[Tensor]) -> _States:
    return tuple((tuple(each.shape), each.dtype) for each in states)


def _run_teacher(shape: ModelShape, batch: MicroBatch, losses: Losses, depth: int, experts: int | None) -> _Passes:
    """Its decoder layers forward."""
    precision = batch.precision
    with fake_tensors():
        teacher = _with_equal_shares(shape.frozen(shape.reduced(depth, experts), precision.teacher))
        inputs = _inputs(batch, losses)
        with LiveBytes() as live, live.part() as part:
            read = torch.empty((batch.rows, batch.length, shape.hidden), dtype=precision.teacher)
            with torch.no_grad():
                taught, states = _called(teacher, read, inputs, batch, losses, depth)
            del read
        numbers = {"teacher": part.kept, "teacher_peak": part.peak}
        return _Passes(numbers, _of_states(states), taught.last_hidden_state.dtype)


def _run_student(shape: Shape, batch: MicroBatch, losses: Losses, depth: int, experts: int | None) -> _Passes:
    """Its decoder layers forward and backward."""
    precision = batch.precision
    with fake_tensors():
        student = _with_equal_shares(shape.student(shape.reduced(depth, experts), precision.student))
        if batch.with_codes:
            compute_as_gathered(student)
        if batch.checkpointing:
            # (No random numbers are drawn, and fake tensors have no generator.)
            name = "activation_checkpointing_enable"  # (the other name is the one before transformers 5.24 or so)
            getattr(student, name, student.gradient_checkpointing_enable)(
                {"use_reentrant": False, "preserve_rng_state": False}
            )
        for weight in student.parameters():
            weight.register_post_accumulate_grad_hook(_drop_gradient)
        inputs = _inputs(batch, losses)
        shown = batch.rows, batch.length, shape.hidden
        embedded = torch.empty(shown, dtype=precision.student, requires_grad=True)
        with LiveBytes() as live:
            with live.part() as forward:
                learned, states = _called(student, embedded, inputs, batch, losses, depth)
            last, of_states = learned.last_hidden_state, _of_states(states)
            del learned, states
            kept = live.now
            with live.part() as backward:
                last.backward(torch.empty_like(last))
        numbers = {
            "kept": kept,
            "forward": forward.peak - kept,
            "backward": backward.peak,
        }
        return _Passes(numbers, of_states, last.dtype)


def _called(
    model: PreTrainedModel, embedded: Tensor, inputs: dict[str, Any], batch: MicroBatch, losses: Losses, depth: int
) -> tuple[Any, list[Tensor]]:
    """Outputs, and Q, K, V of the layer whose relations are compared."""
    with torch.autocast("cpu", torch.bfloat16, enabled=batch.precision.autocast):
        if not losses.relations:
            return model.base_model(inputs_embeds=embedded, **inputs), []
        with AttentionStateCapture(model, [depth * 22 // 28]) as capture:
            outputs = model.base_model(inputs_embeds=embedded, **inputs)
        return outputs, list(capture.release()[0])


_Run = Callable[[Any, MicroBatch, Losses, int, int | None], _Passes]


@lru_cache(maxsize=128)
def _passes(run: _Run, shape: ModelShape, batch: MicroBatch, losses: Losses) -> _Passes:
    """Of all layers, with all experts."""
    experts = shape.counted_experts
    runs = {depth: run(shape, batch, losses, depth, experts[0]) for depth in shape.counted_depths}
    numbers = {depth: dict(found.numbers) for depth, found in runs.items()}
    growing = _GROW_WITH_EXPERTS & numbers[min(numbers)].keys()
    if growing and len(experts) == 2 and experts[0] is not None and experts[1] is not None:
        depth = min(numbers)
        more = run(shape, batch, losses, depth, experts[1]).numbers
        for name in growing:
            slope = (more[name] - numbers[depth][name]) / (experts[1] - experts[0]) / depth
            for each in numbers:
                numbers[each][name] += round(slope * each * (shape.experts - experts[0]))
    whole = numbers[max(numbers)]
    if len(numbers) == 2:
        (few, fewer), (many, _) = sorted(numbers.items())
        slopes = {name: (whole[name] - fewer[name]) / (many - few) for name in whole}
        whole = {name: round(fewer[name] + slopes[name] * (shape.depth - few)) for name in whole}
    known = runs[max(runs)]
    return _Passes(whole, known.states, known.last)


def _line(few: tuple[int, int], many: tuple[int, int], at: int) -> int:
    """The value at `at` of the line through two points."""
    (x, y), (other_x, other_y) = few, many
    return round(y + (other_y - y) / (other_x - x) * (at - x))


@lru_cache(maxsize=128)
def _relations(states: _States, rows: int, length: int) -> int:
    """The most that [`attention_relation_loss`] of a layer takes above its inputs, forward and backward. It goes block by block of rows: of
    many rows, a few tell what more of them take."""
    if rows > 2 * _MANY_ROWS:
        few, many = (_relations(_with_rows(states, each), each, length) for each in (_MANY_ROWS, 2 * _MANY_ROWS))
        return _line((_MANY_ROWS, few), (2 * _MANY_ROWS, many), rows)
    with fake_tensors():
        made = [torch.empty(shape, dtype=dtype) for shape, dtype in states]
        teacher = made[0], made[1], made[2]
        student = made[3].requires_grad_(), made[4].requires_grad_(), made[5].requires_grad_()
        heads = largest_relation_heads([state_width(each) for each in made])
        mask = torch.ones(rows, length, dtype=torch.long)
        with LiveBytes() as live, live.part() as part:
            attention_relation_loss(teacher, student, mask, heads).kl.backward()
        return part.peak


@dataclass(frozen=True)
class _Heads:
    """Of both models' output layers.

    Attributes:
        hidden, vocabulary, states: width and dtype of what the student's reads, and how many words it knows.
        teacher_hidden, teacher_vocabulary, teacher_states: likewise; `None` where no loss reads a teacher's logits.
    """

    hidden: int
    vocabulary: int
    states: torch.dtype
    teacher_hidden: int | None
    teacher_vocabulary: int
    teacher_states: torch.dtype

    @property
    def shared(self) -> int:
        """Leading columns that both have."""
        return min(self.vocabulary, self.teacher_vocabulary)

    def losses(self, teacher: TeacherScores | None) -> TokenLosses:
        return TokenLosses(teacher, make_divergence("forward_kl"), 5.0, self.shared)


def _logits(heads: _Heads, tail: LogitsTail, batch: MicroBatch) -> tuple[int, int]:
    """The most that [`head_token_losses`] of the labelled tokens takes above its inputs, and what it leaves; both without the gradient of
    the output layer's weight. It goes chunk by chunk: of many tokens, a few chunks tell what more of them take."""
    tokens, precision = batch.rows * batch.labels, batch.precision
    at_once = product_tokens(torch.device(batch.device), heads.vocabulary, precision.of_products(precision.student))
    if tokens <= 4 * at_once:
        return _logits_of(heads, tail, tokens, at_once, precision, batch.device)
    few, many = (_logits_of(heads, tail, chunks * at_once, at_once, precision, batch.device) for chunks in (2, 4))
    most, left = (
        _line((2 * at_once, one), (4 * at_once, other), tokens) for one, other in zip(few, many, strict=True)
    )
    return most, left


@lru_cache(maxsize=128)
def _logits_of(
    heads: _Heads, tail: LogitsTail, tokens: int, at_once: int, precision: Precision, device: str
) -> tuple[int, int]:
    dtype = precision.of_products(precision.student)
    with fake_tensors():
        head = nn.Linear(heads.hidden, heads.vocabulary, bias=False, dtype=precision.student)
        labels = torch.zeros(tokens, dtype=torch.long)
        mine = torch.empty(tokens, heads.hidden, dtype=heads.states, requires_grad=True)
        chunk = default_chunk_size(torch.device(device), heads.vocabulary)
        plan = HeadPlan(dtype, tail, TokenWeights(1.0, 1.0), at_once, chunk)
        teacher = theirs = None
        if heads.teacher_hidden is not None:
            theirs = torch.empty(tokens, heads.teacher_hidden, dtype=heads.teacher_states)
            other = nn.Linear(heads.teacher_hidden, heads.teacher_vocabulary, bias=False, dtype=precision.teacher)
            of_teacher = precision.of_products(precision.teacher)
            teacher = HeadTeacher(theirs, other, tail, heads.shared, 5.0, of_teacher)
        losses = heads.losses(teacher)
        with LiveBytes() as live, live.part() as part:
            # (What the losses read are selected rows, copies.)
            copies = mine.clone(), None if theirs is None else theirs.clone()
            sums = head_token_losses(copies[0], head.weight, None, labels, losses, plan)
            del copies
        # It is summed up in float32, and left in the dtype of the weight.
        count = head.weight.numel()
        del sums
        return part.peak - count * torch.float32.itemsize, part.kept - count * head.weight.element_size()


def _whole_logits(heads: _Heads, batch: MicroBatch) -> tuple[int, int]:
    """Of both models with their gradient; and the most that [`selected_token_losses`] takes, with these. Its chunks come and go."""
    tokens, dtype = batch.rows * batch.labels, batch.precision.of_products(batch.precision.student)
    of_teacher = heads.teacher_vocabulary if heads.teacher_hidden is not None else 0
    whole = (2 * heads.vocabulary + of_teacher) * tokens * dtype.itemsize
    chunk = default_chunk_size(torch.device(batch.device), heads.vocabulary)
    count = min(tokens, 2 * chunk)
    with fake_tensors():
        places, labels = torch.arange(count), torch.zeros(count, dtype=torch.long)
        mine = torch.empty(count, heads.vocabulary, dtype=dtype, requires_grad=True)
        teacher = None
        if of_teacher:
            theirs = torch.empty(count, of_teacher, dtype=batch.precision.of_products(batch.precision.teacher))
            teacher = WholeTeacher(theirs, places, 5.0, heads.shared)
        with LiveBytes() as live, live.part() as part:
            sums = selected_token_losses(mine, places, labels, heads.losses(teacher), chunk)
            (sums[0] + sums[1]).backward()
    return whole, whole + part.peak - mine.numel() * dtype.itemsize


def micro_step(shape: Shape, batch: MicroBatch, losses: Losses) -> MicroStep:
    """What a micro batch takes beside the weights and their gradients."""
    student, teacher = _passes(_run_student, shape, batch, losses), None
    if losses.teacher:
        teacher = _passes(_run_teacher, shape.teacher, batch, losses)
    heads = _Heads(
        shape.hidden,
        shape.vocabulary,
        student.last,
        shape.teacher.hidden if losses.logits else None,
        shape.teacher.vocabulary,
        student.last if teacher is None else teacher.last,
    )
    most, left = _logits(heads, LogitsTail.claimed(shape.config.get_text_config()), batch)
    whole, whole_losses = _whole_logits(heads, batch)
    relations = 0
    if losses.relations and teacher is not None:
        relations = _relations((*teacher.states, *student.states), batch.rows, batch.length)
    hidden = shape.depth * batch.rows * batch.length * shape.hidden * torch.float32.itemsize if losses.hidden else 0
    of_teacher = {"teacher": 0, "teacher_peak": 0} if teacher is None else teacher.numbers
    return MicroStep(
        **of_teacher,
        **student.numbers,
        logits=most,
        states_gradient=left,
        whole_logits=whole,
        whole_losses=whole_losses,
        relations=relations,
        hidden=hidden,
    )
