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

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .._compat import fake_tensors
from ..nn import BitLinear
from ..nn.experts import Experts
from ..training.losses.attention_states import AttentionStateCapture
from ..training.losses.divergences import make_divergence
from ..training.losses.head_losses import HeadPlan, HeadTeacher, TokenWeights, head_token_losses, product_tokens
from ..training.losses.logits_tail import LogitsTail
from ..training.losses.relations import attention_relation_loss, largest_relation_heads, state_width
from ..training.losses.token_losses import TokenLosses, default_chunk_size
from .live_bytes import LiveBytes
from .shapes import Shape


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
    """

    rows: int
    length: int
    labels: int
    precision: Precision
    checkpointing: bool
    device: str = "cuda"


@dataclass(frozen=True)
class MicroStep:
    """Bytes of a micro batch beside weights and their gradients.

    Attributes:
        teacher, teacher_peak: what the teacher's forward pass leaves (hidden states, attention states), and the most on its way.
        kept: what the student's forward pass keeps for its backward pass.
        codes: of that, or of the most on the way back, ternary codes in the dtype of the product.
        forward, backward: the most of the student's passes above `kept`. Gradients of weights are there one at a time.
        logits: the most that the losses at the output layers take.
        states_gradient: what they leave: the gradient of what the output layer reads.
        whole_logits: of both models, with their gradient, where logits have to be whole.
        relations: the most of the attention relations.
        hidden: what the loss on hidden states keeps: a row of differences a token and layer, float32.
    """

    teacher: int
    teacher_peak: int
    kept: int
    codes: int
    forward: int
    backward: int
    logits: int
    states_gradient: int
    whole_logits: int
    relations: int
    hidden: int


# (Shape and dtype of Q, K, V of the teacher, then of the student.)
_States = tuple[tuple[tuple[int, ...], torch.dtype], ...]


@dataclass(frozen=True)
class _Passes:
    """Bytes of both models' decoder layers, as of [`MicroStep`]; and what the losses read of them."""

    numbers: tuple[int, ...]
    states: _States
    last: tuple[torch.dtype, torch.dtype]

    NAMES = ("teacher", "teacher_peak", "kept", "codes", "forward", "backward")
    GROW_WITH_EXPERTS = ("kept", "codes")


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


def _codes(model: nn.Module, itemsize: int) -> int:
    return itemsize * sum(module.weight.numel() for module in model.modules() if isinstance(module, BitLinear))


def _run_passes(shape: Shape, batch: MicroBatch, losses: Losses, depth: int, experts: int | None) -> _Passes:
    """The decoder layers of both models forward, and the student's backward."""
    config, precision = shape.reduced(depth, experts), batch.precision
    with fake_tensors():
        teacher = _with_equal_shares(shape.teacher(config, precision.teacher))
        student = _with_equal_shares(shape.student(config, precision.student))
        if batch.checkpointing:
            # (No random numbers are drawn, and fake tensors have no generator.)
            name = "activation_checkpointing_enable"  # (the other name is the one before transformers 5.24 or so)
            getattr(student, name, student.gradient_checkpointing_enable)(
                {"use_reentrant": False, "preserve_rng_state": False}
            )
        for weight in student.parameters():
            weight.register_post_accumulate_grad_hook(_drop_gradient)
        mask = torch.ones(batch.rows, 1, batch.length, batch.length, dtype=torch.bool)
        inputs = {"attention_mask": mask, "use_cache": False, "output_hidden_states": losses.hidden}
        shown = batch.rows, batch.length, shape.hidden
        # Masks and rotary tables are made once for this purpose, not counted.
        embedded = torch.empty(shown, dtype=precision.student, requires_grad=True)
        with LiveBytes() as live:
            taught: Any = None
            states: list[Tensor] = []
            with live.part() as of_teacher:
                if losses.teacher:
                    read = torch.empty(shown, dtype=precision.teacher)
                    with torch.no_grad():
                        taught, states = _called(teacher, read, inputs, batch, losses, depth)
                    del read
            with live.part() as forward:
                learned, own = _called(student, embedded, inputs, batch, losses, depth)
            last = learned.last_hidden_state
            of_states = tuple((tuple(each.shape), each.dtype) for each in (*states, *own))
            of_last = last.dtype if taught is None else taught.last_hidden_state.dtype, last.dtype
            del taught, states, learned, own
            kept = live.now
            with live.part() as backward:
                last.backward(torch.empty_like(last))
        before = of_teacher.kept
        codes = _codes(student, precision.of_products(precision.student).itemsize)
        numbers = (before, of_teacher.peak, kept, codes, forward.peak - kept, backward.peak)
        return _Passes(numbers, of_states, of_last)


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


@lru_cache(maxsize=128)
def _passes(shape: Shape, batch: MicroBatch, losses: Losses) -> _Passes:
    """Of all layers, with all experts."""
    experts = shape.counted_experts
    runs = {depth: _run_passes(shape, batch, losses, depth, experts[0]) for depth in shape.counted_depths}
    numbers = {depth: dict(zip(_Passes.NAMES, run.numbers, strict=True)) for depth, run in runs.items()}
    if len(experts) == 2 and experts[0] is not None and experts[1] is not None:
        depth = min(numbers)
        more = dict(zip(_Passes.NAMES, _run_passes(shape, batch, losses, depth, experts[1]).numbers, strict=True))
        for name in _Passes.GROW_WITH_EXPERTS:
            slope = (more[name] - numbers[depth][name]) / (experts[1] - experts[0]) / depth
            for each in numbers:
                numbers[each][name] += round(slope * each * (shape.experts - experts[0]))
    whole = numbers[max(numbers)]
    if len(numbers) == 2:
        (few, fewer), (many, _) = sorted(numbers.items())
        slopes = {name: (whole[name] - fewer[name]) / (many - few) for name in whole}
        whole = {name: round(fewer[name] + slopes[name] * (shape.depth - few)) for name in whole}
    known = runs[max(runs)]
    return _Passes(tuple(whole[name] for name in _Passes.NAMES), known.states, known.last)


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


def _logits(
    shape: Shape, batch: MicroBatch, has_teacher: bool, states: tuple[torch.dtype, torch.dtype]
) -> tuple[int, int]:
    """The most that [`head_token_losses`] of the labelled tokens takes above its inputs, and what it leaves; both without the gradient of
    the output layer's weight. It goes chunk by chunk: of many tokens, a few chunks tell what more of them take."""
    tokens, precision = batch.rows * batch.labels, batch.precision
    at_once = product_tokens(torch.device(batch.device), shape.vocabulary, precision.of_products(precision.student))
    if tokens <= 4 * at_once:
        return _logits_of(shape, tokens, at_once, precision, batch.device, has_teacher, states)
    few, many = (
        _logits_of(shape, chunks * at_once, at_once, precision, batch.device, has_teacher, states) for chunks in (2, 4)
    )
    most, left = (
        _line((2 * at_once, one), (4 * at_once, other), tokens) for one, other in zip(few, many, strict=True)
    )
    return most, left


@lru_cache(maxsize=128)
def _logits_of(
    shape: Shape,
    tokens: int,
    at_once: int,
    precision: Precision,
    device: str,
    has_teacher: bool,
    states: tuple[torch.dtype, torch.dtype],
) -> tuple[int, int]:
    width, dtype = shape.vocabulary, precision.of_products(precision.student)
    with fake_tensors():
        head, other = (
            nn.Linear(shape.hidden, width, bias=False, dtype=each) for each in (precision.student, precision.teacher)
        )
        labels = torch.zeros(tokens, dtype=torch.long)
        theirs, mine = (torch.empty(tokens, shape.hidden, dtype=each) for each in states)
        mine.requires_grad_()
        tail = LogitsTail.claimed(shape.config.get_text_config())
        chunk = default_chunk_size(torch.device(device), width)
        plan = HeadPlan(dtype, tail, TokenWeights(1.0, 1.0), at_once, chunk)
        teacher = None
        if has_teacher:
            teacher = HeadTeacher(theirs, other, tail, width, 5.0, precision.of_products(precision.teacher))
        losses = TokenLosses(teacher, make_divergence("forward_kl"), 5.0, width)
        with LiveBytes() as live, live.part() as part:
            # (What the losses read are selected rows, copies.)
            copies = mine.clone(), theirs.clone()
            sums = head_token_losses(copies[0], head.weight, None, labels, losses, plan)
            del copies
        # It is summed up in float32, and left in the dtype of the weight.
        count = head.weight.numel()
        del sums
        return part.peak - count * torch.float32.itemsize, part.kept - count * head.weight.element_size()


def micro_step(shape: Shape, batch: MicroBatch, losses: Losses) -> MicroStep:
    """What a micro batch takes beside the weights and their gradients."""
    passes = _passes(shape, batch, losses)
    most, left = _logits(shape, batch, losses.logits, passes.last)
    width = batch.precision.of_products(batch.precision.student).itemsize
    whole = (3 if losses.logits else 2) * batch.rows * batch.labels * shape.vocabulary * width
    relations = _relations(passes.states, batch.rows, batch.length) if losses.relations else 0
    hidden = shape.depth * batch.rows * batch.length * shape.hidden * torch.float32.itemsize if losses.hidden else 0
    numbers: list[int] = [*passes.numbers, most, left, whole, relations, hidden]
    return MicroStep(*numbers)
