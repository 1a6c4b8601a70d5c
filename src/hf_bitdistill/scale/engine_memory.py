"""What each engine keeps on a process, and what it sends: DDP, FSDP2 and DeepSpeed's ZeRO, as Trainer and accelerate configure them.

A step is looked at in the moments at which memory may be the most ([`MOMENTS`]); what counts is the fullest. Bytes of a process:

- **Latent weights, gradients and Adam's two moments** are float32. FSDP2 has a share of each. ZeRO has two bytes a weight for the
  computation in bfloat16 and its share of a copy in float32 (in float32 it has that copy too), gradients in the dtype of the
  computation; stage 1 has all gradients at the end of a backward pass, stages 2 and 3 a share.
- **A teacher** is frozen and as the recipe loads it, float32; DeepSpeed casts it. FSDP2 and stage 3 have a share.
- **Gathered** is what exists beside the shares: DDP's buckets, a second copy of all gradients; under FSDP2 a decoder layer's weights and the
  buffer that they (or the next layer's) came in, on the way back its gradients and the buffer in which the layer before is reduced; the
  tables, of which the output layer's stays from the end of a forward pass to the beginning of the backward one (and a tied one all the
  way). ZeRO has one bucket for reductions; stage 3 keeps gathered what is read again within [`_REUSED`] weights.
- **Logits** are never whole, except under ZeRO-3, which gathers the weights of whole modules alone.
- With gradient accumulation FSDP2 would keep whole gradients; counted is `sync_each_batch`, which reduces every micro batch.
- Under FSDP2 ternary weights are gathered as codes of 1.6 bits and become a parameter of the layer, which is freed and gathered again:
  nothing of them is kept for the backward pass, unless groups of columns have scales. Elsewhere a ternary layer keeps its codes, in the
  dtype of the product. A micro batch is computed in the one way or in the other ([`.micro_step.MicroBatch`]).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from .micro_step import MicroStep, Precision
from .shapes import Weights


PARTS = (
    "latents",
    "gradients",
    "optimizer",
    "teacher",
    "activations",
    "logits",
    "relations",
    "gathered",
)
"""What memory is spent on."""

MOMENTS = ("setup", "teacher", "forward", "logits", "losses", "backward", "last gradients", "optimizer")
"""When it may be the most."""

_FLOAT = 4
# Adam's.
_STATES = 2
# DeepSpeed's `stage3_max_live_parameters` and `stage3_max_reuse_distance`, and weights of a `sub_group_size`: its defaults.
_REUSED = _SUB_GROUP = 10**9
# A code, in bytes.
_CODE = 0.2


@dataclass(frozen=True)
class Engine:
    """One of them.

    Attributes:
        stage: of ZeRO.
        gathers_codes: of ternary weights, where FSDP2 would gather latent ones.
        shards_teacher: FSDP2's teacher is in shards too.
        bucket: numbers of ZeRO's bucket for reductions (`reduce_bucket_size`), which is there as a whole.
    """

    name: str
    kind: Literal["ddp", "fsdp", "zero"]
    stage: int = 0
    gathers_codes: bool = True
    shards_teacher: bool = True
    bucket: int = 5 * 10**8

    def precision(self, bf16: bool) -> Precision:
        """In which dtypes it computes: DeepSpeed's bfloat16 casts weights, DDP and FSDP2 leave that to autocast."""
        if not bf16:
            return Precision()
        return Precision(False, torch.bfloat16, torch.bfloat16) if self.kind == "zero" else Precision(True)

    @property
    def computes_with_codes(self) -> bool:
        """Ternary layers get codes that were gathered, and keep nothing of a weight for the backward pass."""
        return self.kind == "fsdp" and self.gathers_codes

    def width(self, bf16: bool) -> int:
        """Bytes of a weight that layers see, of its gradient, and of either on the wire (without codes)."""
        return 2 if bf16 and self.kind == "zero" else _FLOAT

    def shares(self, processes: int) -> tuple[int, int, int, int]:
        """Into how many parts weights, gradients, optimizer and teacher are divided."""
        n = processes
        if self.kind == "ddp":
            return 1, 1, 1, 1
        if self.kind == "fsdp":
            return n, n, n, n if self.shards_teacher else 1
        return {1: (1, 1, n, 1), 2: (1, n, n, 1), 3: (n, n, n, n)}[self.stage]


ENGINES = (
    Engine("DDP", "ddp"),
    Engine("FSDP2", "fsdp"),
    Engine("ZeRO-1", "zero", 1),
    Engine("ZeRO-2", "zero", 2),
    Engine("ZeRO-3", "zero", 3),
)


@dataclass(frozen=True)
class Memory:
    """Of a process, in bytes.

    Attributes:
        moment: the fullest one.
        parts: what is there then.
        moments: the sums of all.
    """

    moment: str
    parts: dict[str, int]
    moments: dict[str, int]

    @property
    def total(self) -> int:
        return self.moments[self.moment]


@dataclass(frozen=True)
class Training:
    """What a step consists of.

    Attributes:
        processes: on which devices.
        micro: rows of a micro batch.
        accumulation: micro batches of a process in a step.
        bf16: whether it computes in bfloat16.
        checkpointing: activations of a layer are computed again.
    """

    processes: int
    micro: int
    accumulation: int
    bf16: bool
    checkpointing: bool


def memory(engine: Engine, weights: Weights, step: MicroStep, training: Training, hidden: int) -> Memory:
    """What a process needs under an engine, see the module.

    Args:
        step: of a micro batch in the engine's precision, and with codes if it gathers them.
        hidden: of the model.
    """
    n, width = training.processes, engine.width(training.bf16)
    _, of_gradients, of_optimizer, of_teacher = engine.shares(n)
    every, tapped = weights.all, engine.stage != 3
    head = weights.head or weights.embedding

    latents = _latents(engine, every, n, width)
    optimizer = _STATES * _FLOAT * every // of_optimizer
    teacher = width * weights.teacher // of_teacher
    whole = width * every // of_gradients
    # Of earlier micro batches; stage 3 has a place for them always.
    accumulated = whole if training.accumulation > 1 or engine.stage == 3 else 0
    head_gradient = width * head if tapped else 0
    gathered = _gathered(engine, weights, n, width, hidden)

    base = {"latents": latents, "optimizer": optimizer, "teacher": teacher}
    moments: dict[str, dict[str, int]] = {
        "setup": {"latents": latents, "teacher": teacher, **_setup(engine, every, n, width)},
        "teacher": {**base, "gradients": accumulated, "activations": step.teacher_peak},
        "forward": {**base, "gradients": accumulated, "activations": step.teacher + step.kept + step.forward},
        "logits": {
            **base,
            "gradients": accumulated + (_FLOAT * head if tapped else 0),
            "activations": step.teacher + step.kept,
            "logits": step.logits if tapped else step.whole_losses,
        },
        "losses": {
            **base,
            "gradients": accumulated + head_gradient,
            "activations": step.teacher + step.kept + step.hidden,
            "logits": step.states_gradient if tapped else step.whole_logits,
            "relations": step.relations,
        },
        "backward": {
            **base,
            "gradients": accumulated + head_gradient,
            "activations": step.kept + step.hidden + step.backward,
            "logits": step.states_gradient if tapped else step.whole_logits,
        },
        # (One of a tied table is there beside that of the output layer.)
        "last gradients": {
            **base,
            "gradients": whole
            + (_FLOAT * every // n if engine.stage == 1 else 0)
            + (_FLOAT * weights.embedding if engine.kind == "ddp" and (accumulated or not weights.head) else 0),
        },
        "optimizer": {**base, "gradients": _at_step(engine, every, n, width, whole)},
    }
    full = {
        name: {part: found.get(part, 0) + (gathered[name] if part == "gathered" else 0) for part in PARTS}
        for name, found in moments.items()
    }
    sums = {name: sum(found.values()) for name, found in full.items()}
    moment = max(sums, key=sums.__getitem__)
    return Memory(moment, full[moment], sums)


def _latents(engine: Engine, every: int, n: int, width: int) -> int:
    if engine.kind == "ddp":
        return _FLOAT * every
    if engine.kind == "fsdp":
        return _FLOAT * every // n
    # (DeepSpeed compares a device with its name, and copies weights that are float32 already.)
    return width * every // (n if engine.stage == 3 else 1) + _FLOAT * every // n


def _setup(engine: Engine, every: int, n: int, width: int) -> dict[str, int]:
    """What an engine needs besides while it takes the weights over: the weights once more, before they are in one buffer; stage 3 a gradient
    of a sub-group."""
    if engine.kind != "zero":
        return {}
    if engine.stage < 3:
        # (Without the copy in float32, which comes later.)
        return {"gathered": width * every - _FLOAT * every // n}
    return {"gradients": width * every // n, "gathered": _FLOAT * min(every, _SUB_GROUP)}


def _at_step(engine: Engine, every: int, n: int, width: int, whole: int) -> int:
    """Gradients while the optimizer takes its step: ZeRO makes a copy in float32 of its share, stage 3 of a sub-group at a time."""
    if engine.kind != "zero":
        return whole
    share = width * every // n
    return share + _FLOAT * (every if engine.stage < 3 else min(every, _SUB_GROUP)) // n


def _gathered(engine: Engine, weights: Weights, n: int, width: int, hidden: int) -> dict[str, int]:
    """See the module; by moment."""
    none = dict.fromkeys(MOMENTS, 0)
    if n == 1:
        return none
    if engine.kind == "ddp":
        return dict.fromkeys(MOMENTS, _FLOAT * weights.all)
    if engine.kind == "fsdp":
        return _gathered_by_fsdp(engine, weights, width)
    bucket = width * engine.bucket
    if engine.stage < 3:
        return {**none, "backward": bucket, "last gradients": bucket}
    live = bucket + width * min(weights.all, _REUSED)
    during = ("forward", "logits", "losses", "backward", "last gradients")
    return {
        **none,
        "teacher": bucket + width * (weights.teacher_layer + hidden * hidden),
        **dict.fromkeys(during, live),
        "optimizer": bucket,
    }


def _gathered_by_fsdp(engine: Engine, weights: Weights, width: int) -> dict[str, int]:
    is_tied = not weights.head
    table = width * weights.embedding
    output = width * (weights.head or weights.embedding)
    codes = int(_CODE * weights.largest_ternary)
    layer = width * weights.largest_layer
    if engine.gathers_codes:
        arrived = codes + width * weights.largest_other
        layer_and_buffer = layer + codes + arrived
    else:
        layer_and_buffer = 2 * layer
    # The gradients of a layer, and the buffer in which those of the layer before are reduced.
    going_back = layer_and_buffer + 2 * layer
    shards = int(engine.shards_teacher)
    its_table, its_output = (
        _FLOAT * shards * each
        for each in (weights.teacher_embedding, weights.teacher_head or weights.teacher_embedding)
    )
    its_layers = 2 * _FLOAT * shards * weights.teacher_layer
    return {
        "setup": 0,
        "teacher": max(its_layers, its_table + its_output) if weights.teacher_head else its_layers + its_table,
        "forward": its_output + max(layer_and_buffer, 2 * table) + (table if is_tied else 0),
        "logits": its_output + 2 * output,
        "losses": output,
        "backward": going_back + output if is_tied else max(2 * output, going_back),
        "last gradients": (4 if is_tied else 3) * table,
        "optimizer": 0,
    }


@dataclass(frozen=True)
class Wire:
    """Bytes that a process sends in a step, where the processes are a ring: of an all-gather or a reduce-scatter the `(n - 1) / n`th part,
    of an all-reduce twice that.

    Attributes:
        gradients: and, under ZeRO-1 and 2, weights that come back.
        weights: gathered, without ternary ones.
        ternary: all-gather of ternary weights.
        ternary_bfloat16: what that would be in bfloat16.
        teacher: gathered.
    """

    gradients: int
    weights: int
    ternary: int
    ternary_bfloat16: int
    teacher: int

    @property
    def total(self) -> int:
        return self.gradients + self.weights + self.ternary + self.teacher


def wire(engine: Engine, weights: Weights, training: Training) -> Wire:
    """What a process sends, see [`Wire`].

    DDP reduces once a step. FSDP2 gathers each layer twice and the output layer once a micro batch, and the teacher once, and reduces every
    micro batch. DeepSpeed's stages 1 and 2 reduce by all-reduce, once a step and once a micro batch, and gather updated weights once a step;
    stage 3 gathers once, and again what it has not kept.
    """
    n, count, width = training.processes, training.accumulation, engine.width(training.bf16)
    part = (n - 1) / n
    rest = weights.all - weights.ternary
    if engine.kind == "ddp":
        return _sent(part, 2 * _FLOAT * weights.all, 0, 0, 0, 0)
    if engine.kind == "fsdp":
        once = weights.head or weights.embedding
        plain: float = width * (2 * (rest - once) + once)
        bfloat16 = 2 * 2 * weights.ternary
        if engine.gathers_codes:
            ternary: float = 2 * (_CODE * weights.ternary + _FLOAT * weights.scales)
        else:
            ternary = 2 * width * weights.ternary
        teacher = _FLOAT * weights.teacher if engine.shards_teacher else 0
        return _sent(count * part, width * weights.all, plain, ternary, bfloat16, teacher)
    if engine.stage < 3:
        reductions = count if engine.stage == 2 else 1
        return _sent(part, (2 * reductions + 1) * width * weights.all, 0, 0, 0, 0)
    twice = 1 + max(weights.all - _REUSED, 0) / weights.all
    plain, ternary = width * twice * rest, width * twice * weights.ternary
    return _sent(
        count * part, width * weights.all, plain, ternary, 2 * twice * weights.ternary, width * weights.teacher
    )


def _sent(factor: float, *parts: float) -> Wire:
    return Wire(*(round(factor * each) for each in parts))


def to_dict(memory: Memory, wire: Wire) -> dict[str, Any]:
    """For JSON."""
    return {
        "moment": memory.moment,
        "bytes": {**memory.parts, "at once": memory.total},
        "wire": {**{name: getattr(wire, name) for name in Wire.__dataclass_fields__}, "total": wire.total},
    }
