"""What a run would take on machines that are not at hand: from a model's configuration, without its weights."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..pages.tables import text_table
from ..recipe.efforts import Effort, bitnet_config
from ..recipe.given_models import full_precision_source
from ..recipe.progress import duration
from ..recipe.settings import RecipeError, RecipeSettings
from .engine_memory import ENGINES, PARTS, Engine, Memory, Training, Wire, memory, to_dict, wire
from .hardware import HardwareArguments
from .micro_step import Losses, MicroBatch, MicroStep, micro_step
from .shapes import Shape, read_config


# Of a device's memory: the rest is for the driver, the buffers of the network, and what an allocator cannot use.
USABLE = 0.9
# Of a GPU of today (H100) in training, and of its share of a machine's network.
_OPERATIONS, _BYTES = 4e14, 5e10
_GB = 1e9


@dataclass(frozen=True)
class Data:
    """What of the examples a plan reads.

    Attributes:
        length, labels: tokens of the longest example, and the most of one that have a label.
        mean_length: tokens.
        trainings: titles, steps and examples a step of the trainings of whole models.
        is_measured: of a dataset; otherwise taken for the most that the settings allow.
    """

    length: int
    labels: int
    mean_length: float
    trainings: tuple[tuple[str, int, int], ...]
    is_measured: bool = True

    @property
    def tokens(self) -> float:
        """That all trainings read."""
        return self.mean_length * sum(steps * batch for _, steps, batch in self.trainings)


@dataclass(frozen=True)
class Row:
    """An engine, with the largest micro batch that fits, or with the smallest where none does."""

    engine: Engine
    training: Training
    memory: Memory
    wire: Wire
    fits: bool
    operations: float

    @property
    def name(self) -> str:
        return f"{self.engine.name}{', checkpointing' if self.training.checkpointing else ''}"

    @property
    def price(self) -> tuple[bool, float]:
        """What is cheaper comes first: latent weights that are not rounded before they are quantised (which DeepSpeed does in bfloat16), then
        the sum of the times to compute and to send at [`_OPERATIONS`] and [`_BYTES`] a second. It ranks, and tells no time."""
        rounds = self.engine.kind == "zero" and self.training.bf16
        return rounds, self.operations / _OPERATIONS + self.wire.total / _BYTES

    def to_dict(self) -> dict[str, Any]:
        training = dataclasses.asdict(self.training)
        return {
            "engine": self.engine.name,
            **training,
            "operations": self.operations,
            "fits": self.fits,
            **to_dict(self.memory, self.wire),
        }


@dataclass(frozen=True)
class ScalePlan:
    """See [`plan_scale`].

    Attributes:
        rows: each engine with and without activation checkpointing.
        batch: examples a step.
        usable: bytes of a GPU that may be used.
        tokens_per_second: of one GPU, with where the number is from; `None`: not known.
    """

    model: str
    weights: dict[str, int]
    hardware: HardwareArguments
    data: Data
    batch: int
    rows: list[Row]
    tokens_per_second: tuple[float, str] | None = None

    @property
    def usable(self) -> float:
        return USABLE * _GB * (self.hardware.gpu_memory or 0.0)

    @property
    def host_bytes(self) -> int:
        """Of a machine's own memory while its processes load student and teacher, each both of them whole and in float32."""
        return 4 * (self.weights["all"] + self.weights["teacher"]) * (self.hardware.gpus or 1)

    @property
    def cheapest(self) -> Row | None:
        """Of those that fit; `None` where none does."""
        return min((row for row in self.rows if row.fits), key=lambda row: row.price, default=None)

    @property
    def refusal(self) -> str:
        """What to change where nothing fits."""
        least = min(self.rows, key=lambda row: row.memory.total)
        parts = least.memory.parts
        largest = max(PARTS, key=parts.__getitem__)
        shorter = f"shorter examples (--max_length below {self.data.length})"
        advice = {
            "activations": shorter,
            "logits": shorter,
            "relations": f"{shorter}, or --attention_loss_weight 0",
        }.get(largest, "more GPUs (--nodes, --gpus; --batch_size a multiple of them)")
        return (
            f"nothing fits: the least is {least.name} with {_gb(least.memory.total)} GB at once, most of it {largest} ({_gb(parts[largest])} GB). "
            f"Plan for {advice}, or for GPUs of {math.ceil(least.memory.total / USABLE / _GB)} GB"
        )

    @property
    def seconds(self) -> float | None:
        """Of all trainings of whole models, if the network takes no time."""
        if self.tokens_per_second is None:
            return None
        return self.data.tokens / (self.tokens_per_second[0] * self.hardware.processes)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        cheapest = self.cheapest
        return {
            "model": self.model,
            "weights": self.weights,
            "nodes": self.hardware.nodes,
            "gpus": self.hardware.gpus,
            "gpu_memory": self.hardware.gpu_memory,
            "usable_bytes": self.usable,
            "host_bytes": self.host_bytes,
            "data": {**dataclasses.asdict(self.data), "tokens": self.data.tokens},
            "batch_size": self.batch,
            "engines": [row.to_dict() for row in self.rows],
            "cheapest": None if cheapest is None else cheapest.name,
            "tokens_per_second": None if self.tokens_per_second is None else self.tokens_per_second[0],
            "seconds": self.seconds,
        }

    def table(self) -> str:
        """For people."""
        header = ("GB a GPU", "micro", *PARTS, "at once", "fullest", "sent a step")
        rows: list[tuple[str, ...]] = [header]
        for row in self.rows:
            parts = [_gb(row.memory.parts[part]) for part in PARTS]
            micro = f"{row.training.micro} x {row.training.accumulation}"
            total = _gb(row.memory.total) + ("" if row.fits else " !")
            rows.append((row.name, micro, *parts, total, row.memory.moment, _gb(row.wire.total)))
        return text_table(rows)

    def text(self) -> str:
        """Everything, for people."""
        hardware, data = self.hardware, self.data
        where = f"{hardware.nodes} x {hardware.gpus} GPUs of {hardware.gpu_memory:g} GB"
        known = (
            ""
            if data.is_measured
            else " (no dataset was given: the longest that the settings allow, every token labelled)"
        )
        lines = [
            f"{self.model}: {_count(self.weights['all'])} weights, {_count(self.weights['ternary'])} of them ternary; {where}",
            f"distillation, the largest of the trainings: {self.batch} examples a step of {data.length} tokens at most{known}",
            "",
            self.table(),
            "",
            f"micro: examples at once x micro batches a step. !: more than {_gb(self.usable)} GB, {100 * USABLE:.0f} % of a GPU. The parts are those of the "
            "fullest moment. In bfloat16 ZeRO rounds latent weights before they are made ternary, and comes last.",
            *self._verdict(),
        ]
        return "\n".join(lines)

    def _verdict(self) -> Iterator[str]:
        cheapest = self.cheapest
        if cheapest is None:
            return
        training = cheapest.training
        yield (
            f"cheapest that fits: {cheapest.name}; each of {training.processes} GPUs {training.accumulation} x {training.micro} examples a step (distill: "
            f"--per_device_train_batch_size {training.micro} --gradient_accumulation_steps {training.accumulation})"
        )
        sent = cheapest.wire
        if sent.ternary and cheapest.engine.gathers_codes and cheapest.engine.kind == "fsdp":
            ratio = sent.ternary_bfloat16 / sent.ternary
            yield (
                f"ternary weights are gathered in 1.6 bits: {_gb(sent.ternary)} GB a step and GPU, {_gb(sent.ternary_bfloat16)} GB in bfloat16 "
                f"({ratio:.1f} times); the teacher {_gb(sent.teacher)} GB, gradients {_gb(sent.gradients)} GB"
            )
        if cheapest.engine.kind == "fsdp" and training.accumulation > 1:
            yield (
                "FSDP2 keeps whole gradients while it accumulates, unless it reduces every micro batch, which is counted here: "
                '--accelerator_config \'{"gradient_accumulation_kwargs": {"sync_each_batch": true}}\''
            )
        yield (
            f"while they are loaded student and teacher are whole on the CPU of every process: {_gb(self.host_bytes)} GB of a machine's memory"
        )
        whole = 4 * self.weights["teacher"]
        if whole > self.usable:
            yield (
                f"between trainings `run` loads whole models in float32 to measure them, {_gb(whole)} GB: more than a GPU has. Train with pretrain and "
                "distill instead"
            )
        trainings = ", ".join(f"{title} {steps:,} steps" for title, steps, _ in self.data.trainings)
        yield f"trainings of whole models: {trainings}; {_count(self.data.tokens)} tokens"
        if self.tokens_per_second is None:
            yield "time: give --tokens_per_second, of one such GPU; --plan there, without --gpus, measures it"
        else:
            number, source = self.tokens_per_second
            yield (
                f"time: {duration(self.seconds or 0.0)} at {number:,.0f} tokens a second and GPU ({source}), if the network keeps up; without warm "
                "start and evaluation"
            )


def _gb(size: float) -> str:
    return f"{size / _GB:.1f}"


def _count(number: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


def student_shape(config: Any, numbers: Effort, teacher: Any = None) -> Shape:
    """Of the student that the recipe makes of a model.

    Args:
        teacher: configuration of a teacher of another shape.

    Raises:
        SurgeryError: it can make none.
    """
    return Shape(config, bitnet_config(numbers), teacher)


class _Planner:
    """Finds the rows of a plan; micro batches of engines that compute alike are looked at once."""

    def __init__(self, shape: Shape, data: Data, losses: Losses, processes: int, bf16: bool, usable: float):
        self.shape, self.data, self.losses = shape, data, losses
        self.processes, self.bf16, self.usable = processes, bf16, usable

    def _step(self, engine: Engine, training: Training) -> MicroStep:
        data = self.data
        batch = MicroBatch(
            training.micro,
            data.length,
            data.labels,
            engine.precision(self.bf16),
            training.checkpointing,
            with_codes=engine.computes_with_codes,
        )
        return micro_step(self.shape, batch, self.losses)

    def row(self, engine: Engine, checkpointing: bool, rows: int) -> Row:
        """With the largest micro batch that fits of those that divide a process's examples."""
        sizes = [size for size in range(1, rows + 1) if rows % size == 0]
        best = self._try(engine, checkpointing, rows, sizes.pop(0))
        # More examples at once take more: the border is looked for in halves.
        while sizes and best.fits:
            middle = sizes[len(sizes) // 2]
            found = self._try(engine, checkpointing, rows, middle)
            if found.fits:
                best, sizes = found, [size for size in sizes if size > middle]
            else:
                sizes = [size for size in sizes if size < middle]
        return best

    def _try(self, engine: Engine, checkpointing: bool, rows: int, micro: int) -> Row:
        training = Training(self.processes, micro, rows // micro, self.bf16, checkpointing)
        shape = self.shape
        found = memory(engine, shape.weights, self._step(engine, training), training, shape.hidden)
        sent = wire(engine, shape.weights, training)
        return Row(engine, training, found, sent, found.total <= self.usable, self._operations(training))

    def _operations(self, training: Training) -> float:
        """Of a process in a step: two a weight and token for a forward pass of each model, four for the student's backward pass, and two for
        what is computed again."""
        shape, tokens = self.shape, training.micro * training.accumulation * self.data.length
        share = shape.experts_a_token / shape.experts if shape.experts else 1.0
        active = share * shape.weights.ternary + shape.weights.all - shape.weights.ternary
        of_teacher = active if shape.teacher is shape else shape.teacher.active
        return tokens * (active * (6 + 2 * training.checkpointing) + 2 * self.losses.teacher * of_teacher)


def plan_shape(
    name: str,
    shape: Shape,
    numbers: Effort,
    data: Data,
    hardware: HardwareArguments,
    bf16: bool = True,
    engines: Sequence[Engine] = ENGINES,
) -> ScalePlan:
    """The plan of a model; nothing needs to fit.

    Raises:
        RecipeError: a step has fewer examples than there are GPUs, or no multiple of them.
    """
    count, batch = hardware.processes, numbers.batch_size
    if batch % count:
        lower, higher = batch - batch % count, batch + -batch % count
        more = f"--batch_size {higher}" + (f" (or {lower})" if lower else "")
        raise RecipeError(
            f"{batch} examples a step cannot be shared equally by {count} GPUs: set {more}, or plan for other GPUs"
        )
    # (The recipe leaves the loss on hidden states out where it cannot be had.)
    compares_hidden = bool(numbers.hidden_loss_weight) and shape.teacher.hidden == shape.hidden
    losses = Losses(bool(numbers.logits_loss_weight), bool(numbers.attention_loss_weight), compares_hidden)
    planner = _Planner(shape, data, losses, count, bf16, USABLE * _GB * (hardware.gpu_memory or 0.0))
    rows = [
        planner.row(engine, checkpointing, batch // count) for engine in engines for checkpointing in (False, True)
    ]
    weights = {**dataclasses.asdict(shape.weights), "all": shape.weights.all}
    return ScalePlan(name, weights, hardware, data, batch, rows)


def plan_scale(settings: RecipeSettings, hardware: HardwareArguments) -> ScalePlan:
    """What a run would take on these machines. Reads the model's configuration, and the dataset if one is given.

    Raises:
        RecipeError: an option is missing or makes no sense.
        SurgeryError: no student can be made of the model.
        OSError, ValueError: of the model or the data.
    """
    hardware.require(settings.plan)
    if settings.base is None:
        raise RecipeError("--model is required")
    config, teacher = read_config(full_precision_source(settings.base)), None
    if settings.teacher not in (None, settings.base):
        teacher = read_config(full_precision_source(settings.teacher))
    data, numbers = _data(settings, config)
    shape = student_shape(config, numbers, teacher)
    plan = plan_shape(settings.base, shape, numbers, data, hardware, settings.bf16 != "false")
    rate = hardware.tokens_per_second
    known = (rate, "given") if rate is not None else _probed(settings, numbers, data)
    return dataclasses.replace(plan, tokens_per_second=known)


def _data(settings: RecipeSettings, config: Any) -> tuple[Data, Effort]:
    """Of the dataset; without one, as much as the settings allow."""
    from ..data.encoding import DEFAULT_LENGTH

    if settings.dataset is not None or settings.task is not None:
        return _measured_data(settings, config)
    numbers = settings.numbers(classes=True)
    length = settings.max_length or DEFAULT_LENGTH
    steps = {
        "teacher": (numbers.teacher_examples if settings.teacher is None else 0, numbers.batch_size),
        "continual pre-training": (
            numbers.corpus_tokens // numbers.block_size if settings.corpus is not None else 0,
            numbers.pretrain_batch_size,
        ),
        "distillation": (numbers.distill_examples * numbers.distill_rounds, numbers.batch_size),
    }
    trainings = tuple((title, max(1, rows // batch), batch) for title, (rows, batch) in steps.items() if rows)
    return Data(length, length, float(length), trainings, False), numbers


def _measured_data(settings: RecipeSettings, config: Any) -> tuple[Data, Effort]:
    from ..data.tokenizers import load_tokenizer
    from ..recipe import examples as example_kinds
    from ..recipe.train import steps_for

    tokenizer = load_tokenizer(settings.base)
    numbers = settings.numbers(classes=True)
    examples = example_kinds.load(settings, tokenizer, config, numbers.held_out_rows, numbers.eval_rows)
    numbers = settings.numbers(examples.kind == "classes")
    lengths = [len(row) for row in examples.train["input_ids"]]
    labels = max(sum(label != -100 for label in row) for row in examples.train["labels"])
    rows, batch = len(lengths), numbers.batch_size
    trainings = []
    if settings.teacher is None and examples.kind != "text":
        steps = steps_for(numbers.teacher_examples, numbers.teacher_epochs, rows, batch)
        trainings.append(("teacher", steps, batch))
    if settings.corpus is not None:
        blocks = numbers.pretrain_batch_size
        trainings.append(
            ("continual pre-training", max(1, round(numbers.corpus_tokens / (blocks * numbers.block_size))), blocks)
        )
    if numbers.distill_examples:
        steps = steps_for(numbers.distill_examples, numbers.distill_epochs, rows, batch) * numbers.distill_rounds
        trainings.append(("distillation", steps, batch))
    return Data(max(lengths), labels, statistics.mean(lengths), tuple(trainings)), numbers


def _probed(settings: RecipeSettings, numbers: Effort, data: Data) -> tuple[float, str] | None:
    """What the newest probe in the output folder tells of one device: tokens a second of the distillation."""
    from ..files.model_folder import STAGES
    from ..recipe.store import RESULT

    if settings.output_dir is None or not data.is_measured:
        return None
    files = Path(settings.output_dir, STAGES).glob(f"probe-*/{RESULT}")
    newest = max(files, key=lambda file: file.stat().st_mtime, default=None)
    if newest is None:
        return None
    result = json.loads(newest.read_text(encoding="utf-8"))
    settings_of_probe, machine = result["settings"], result["machine"]
    processes = settings_of_probe.get("processes", [1])[0]
    examples = settings_of_probe["batch_size"] / processes
    device = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    return examples * data.mean_length / result["measured"]["distill_step"], f"measured by --plan on {device}"
