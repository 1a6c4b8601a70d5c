"""The planned memory of a training beside what real trainings take: every engine, on this CPU, with one process and with several. JSON.

    python benchmarks/check_memory_plan.py --output benchmarks/results/memory_plan.json

A small student and its teacher are trained for two steps by `DistillationTrainer`, with all losses. Measured is the most that torch's
allocator has given out at once (`torch.profiler`, `profile_memory`: every allocation and release, whoever asks) from the beginning to the
end of the second step, when the optimizer has its states; everything of the process counts that came after its imports. Not a process's
size, in which freed memory stays. Processes meet over gloo. accelerate is told that FSDP and DeepSpeed can be used on a CPU, and Trainer that
bfloat16 can.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import itertools
import json
import multiprocessing
import os
import socket
import tempfile
import time
import traceback
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers.training_args
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen3MoeConfig, TrainerCallback

from hf_bitdistill import BitNetConfig, apply_bitnet
from hf_bitdistill.machine.environment import describe_environment
from hf_bitdistill.machine.processes import world_size
from hf_bitdistill.recipe.train import Machine, training_arguments
from hf_bitdistill.scale.engine_memory import ENGINES, Engine, Training, memory
from hf_bitdistill.scale.micro_step import Losses, MicroBatch, micro_step
from hf_bitdistill.scale.shapes import Shape
from hf_bitdistill.training import DistillationConfig, DistillationTrainer


WORDS, LENGTH, MICRO = 4096, 128, 2
BEGINS, ENDS = "the second step begins", "the second step ends"
TOLERANCE = 0.15
_C10 = Path(torch.__file__).parent / "lib" / "libc10.so"


class Case(NamedTuple):
    """A training.

    Attributes:
        mixture: of eight experts a layer, two a token.
    """

    engine: Engine
    checkpointing: bool = False
    accumulation: int = 1
    tied: bool = False
    bf16: bool = False
    mixture: bool = False


def configuration(tied: bool, mixture: bool = False) -> PreTrainedConfig:
    shape: dict[str, Any] = {
        "vocab_size": WORDS,
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "tie_word_embeddings": tied,
        "pad_token_id": 0,
    }
    if not mixture:
        return LlamaConfig(**shape)
    experts = {"moe_intermediate_size": 128, "num_experts": 8, "num_experts_per_tok": 2, "head_dim": 32}
    return Qwen3MoeConfig(**shape, **experts)


def student_config() -> BitNetConfig:
    return BitNetConfig(sub_norm="output", weight_granularity="row")


class Mark(TrainerCallback):
    """Leaves the borders of the second step in the profile."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1:
            with record_function(BEGINS):
                pass

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            with record_function(ENDS):
                pass


def options(engine: Engine, checkpointing: bool) -> dict[str, Any]:
    """Training arguments that turn an engine on."""
    checkpoints = {"use_reentrant": False}
    again = {"gradient_checkpointing": checkpointing, "gradient_checkpointing_kwargs": checkpoints}
    if engine.kind == "ddp":
        several = world_size() > 1
        return {"use_cpu": True, "ddp_backend": "gloo" if several else None, **again}
    if engine.kind == "fsdp":
        sync = {"gradient_accumulation_kwargs": {"sync_each_batch": True}}
        config = {"state_dict_type": "SHARDED_STATE_DICT", "version": 2, "activation_checkpointing": checkpointing}
        return {"fsdp": True, "fsdp_config": config, "accelerator_config": sync}
    sizes = ("train_micro_batch_size_per_gpu", "train_batch_size", "gradient_accumulation_steps", "gradient_clipping")
    zero = {"stage": engine.stage, "reduce_bucket_size": "auto"}
    if engine.stage == 3:
        zero |= {"stage3_prefetch_bucket_size": "auto", "stage3_param_persistence_threshold": "auto"}
    config = {
        **dict.fromkeys(sizes, "auto"),
        "zero_allow_untested_optimizer": True,
        "zero_optimization": zero,
    }
    return {"deepspeed": config, **again}


def pretend() -> None:
    """From here on processes of a launcher meet over gloo as if each had an accelerator, which is its CPU."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    os.environ["ACCELERATE_TORCH_DEVICE"] = os.environ["DS_ACCELERATOR"] = "cpu"
    if find_spec("deepspeed") is not None:
        import deepspeed

        # It would compile an operator of its own for the memory that processes share, which no GPU uses.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    transformers.training_args.is_torch_bf16_gpu_available = lambda: True
    PartialState._prepare_backend = lambda self, cpu=False, sagemaker_dp=False, backend=None: (
        "gloo",
        DistributedType.MULTI_GPU,
    )


def train(case: Case, folder: str) -> list[Any]:
    """Two steps. What is returned has to live until the profile is read."""
    engine, checkpointing, accumulation, tied, bf16, mixture = case
    if engine.kind != "ddp":
        pretend()
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        models.append(AutoModelForCausalLM.from_config(configuration(tied, mixture), dtype=torch.float32))
    rows = torch.randint(3, WORDS, (64, LENGTH), generator=torch.Generator().manual_seed(0)).tolist()
    # (A shorter row, so that there is a mask.)
    rows = [row[: LENGTH - index % 2] for index, row in enumerate(rows)]

    def collate(features: list[dict]) -> dict[str, torch.Tensor]:
        ids = torch.zeros(len(features), LENGTH, dtype=torch.long)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for number, feature in enumerate(features):
            row = torch.tensor(feature["input_ids"])
            ids[number, : len(row)], labels[number, : len(row)], mask[number, : len(row)] = row, row, 1
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    arguments = training_arguments(
        DistillationConfig,
        Path(folder),
        Machine(bf16),
        steps=2,
        batch=MICRO * accumulation * world_size(),
        micro=MICRO,
        rate=5e-5,
        seed=0,
        hidden_loss_weight=10.0,
        **{"use_cpu": False, **options(engine, checkpointing)},
    )
    trainer = DistillationTrainer(
        model=apply_bitnet(models[0], student_config()),
        teacher_model=models.pop(),
        args=arguments,
        train_dataset=[{"input_ids": row} for row in rows],
        data_collator=collate,
        callbacks=[Mark()],
    )
    models.clear()
    trainer.train()
    return [trainer]


def peak_of(events: list[dict[str, Any]]) -> tuple[int, int]:
    """The most bytes that were out between the marks, and those at the first one."""
    marks = {event["name"]: event["ts"] for event in events if event.get("name") in (BEGINS, ENDS) and "ts" in event}
    out = sorted(
        (event["ts"], event["args"]["Total Allocated"])
        for event in events
        if event.get("name") == "[memory]" and event["args"]["Device Type"] == 0
    )
    before = [total for at, total in out if at < marks[BEGINS]]
    within = [total for at, total in out if marks[BEGINS] <= at <= marks[ENDS]]
    return max(within), before[-1]


def process(rank: int, processes: int, port: int, case: Case, results: str) -> None:
    """One of the processes of a training; writes what it measured."""
    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    if processes > 1 or case.engine.kind != "ddp":
        os.environ.update({name: str(value) for name, value in environment.items()})
        os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    torch.set_num_threads(1)
    count_all_threads()
    found: dict[str, Any] = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
                kept = train(case, folder)
            trace = os.path.join(folder, "trace.json")
            profiled.export_chrome_trace(trace)
            with open(trace, encoding="utf-8") as file:
                found["peak"], found["between_steps"] = peak_of(json.load(file)["traceEvents"])
            found["refusal"] = kept[0]._passes.refusal
    except BaseException:
        found["error"] = traceback.format_exc()
    Path(results, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    # (Freeing a model of several processes may hang.)
    os._exit(0)


def count_all_threads() -> None:
    """Let torch keep its table of what is out in every thread. By itself it does so only in those that are profiled, and what gloo's threads
    free last, buffers that were sent, would count as out for ever."""
    ctypes.c_bool.in_dll(ctypes.CDLL(_C10), "FLAGS_caffe2_report_cpu_memory_usage").value = True


def measure(case: Case, processes: int) -> dict[str, Any]:
    """Of the process that takes the most."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as results:
        started = [
            context.Process(target=process, args=(rank, processes, port, case, results)) for rank in range(processes)
        ]
        for each in started:
            each.start()
        for each in started:
            each.join(300)
        for each in started:
            each.kill()
        found = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(Path(results).glob("*.json"))]
    errors = [each["error"] for each in found if "error" in each]
    if errors or len(found) < processes:
        raise RuntimeError(errors[0] if errors else f"{processes - len(found)} of {processes} processes did not end")
    return max(found, key=lambda each: each["peak"])


def planned(case: Case, processes: int) -> dict[str, Any]:
    """By the configuration alone."""
    engine, checkpointing, accumulation, tied, bf16, mixture = case
    shape = Shape(configuration(tied, mixture), student_config())
    # (Trainer's size of "auto".)
    engine = dataclasses.replace(engine, bucket=shape.hidden**2)
    precision = engine.precision(bf16)
    batch = MicroBatch(MICRO, LENGTH, LENGTH, precision, checkpointing, "cpu", engine.computes_with_codes)
    training = Training(processes, MICRO, accumulation, bf16, checkpointing)
    found = memory(engine, shape.weights, micro_step(shape, batch, Losses()), training, shape.hidden)
    steady = {name: total for name, total in found.moments.items() if name != "setup"}
    moment = max(steady, key=steady.__getitem__)
    return {"peak": steady[moment], "moment": moment, "moments": found.moments}


def plan_again(row: dict[str, Any]) -> dict[str, Any]:
    """A row with what is planned today beside what was measured then."""
    engine = next(engine for engine in ENGINES if engine.name == row["engine"])
    case = Case(engine, *(row.get(name, False) for name in Case._fields[1:]))
    return {**row, **_planned_part(planned(case, row["processes"]), row["measured"])}


def _planned_part(plan: dict[str, Any], measured: int) -> dict[str, Any]:
    return {
        "planned": plan["peak"],
        "moment": plan["moment"],
        "planned_moments": plan["moments"],
        "difference": round(plan["peak"] / measured - 1, 4),
    }


def check(case: Case, processes: int) -> dict[str, Any]:
    started = time.perf_counter()
    plan, real = planned(case, processes), measure(case, processes)
    return {
        **case._asdict(),
        "engine": case.engine.name,
        "processes": processes,
        **_planned_part(plan, real["peak"]),
        "measured": real["peak"],
        "between_steps": real["between_steps"],
        "seconds": round(time.perf_counter() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--engines", nargs="+", default=[engine.name for engine in ENGINES])
    parser.add_argument("--accumulation", type=int, nargs="+", default=[1])
    parser.add_argument("--tied", type=int, nargs="+", default=[0])
    parser.add_argument("--bf16", type=int, nargs="+", default=[0])
    parser.add_argument("--checkpointing", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--mixture", type=int, nargs="+", default=[0])
    parser.add_argument("--plan_again", action="store_true", help="only compute the plans in the output file anew")
    parser.add_argument(
        "--add", action="store_true", help="to the trainings in the output file, in the place of the same ones"
    )
    arguments = parser.parse_args()
    engines = [engine for engine in ENGINES if engine.name in arguments.engines]
    rows: list[dict[str, Any]] = []
    if arguments.plan_again:
        content = json.loads(arguments.output.read_text(encoding="utf-8"))
        found = record([plan_again(row) for row in content["trainings"]])
        found["machine"] = content["machine"]  # (that measured)
        arguments.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"largest difference {100 * found['largest_difference']:.1f} %")
        return
    if arguments.add:
        rows = json.loads(arguments.output.read_text(encoding="utf-8"))["trainings"]
    flags = (arguments.tied, arguments.bf16, arguments.mixture)
    cases = itertools.product(engines, arguments.checkpointing, arguments.accumulation, *flags, arguments.processes)
    for engine, checkpointing, accumulation, tied, bf16, mixture, processes in cases:
        if engine.kind != "ddp" and processes == 1:
            continue
        case = Case(engine, bool(checkpointing), accumulation, bool(tied), bool(bf16), bool(mixture))
        row = check(case, processes)
        rows = [each for each in rows if _what(each) != _what(row)] + [row]
        print(
            f"{row['engine']:7} x {processes}  checkpointing {checkpointing}  accumulation {accumulation}  tied {tied}  bf16 {bf16}  "
            f"mixture {mixture}  planned {row['planned'] / 1e6:7.1f} MB ({row['moment']})  measured {row['measured'] / 1e6:7.1f} MB  "
            f"{100 * row['difference']:+.1f} %  {row['seconds']} s",
            flush=True,
        )
        if arguments.output is not None:
            arguments.output.write_text(json.dumps(record(rows), indent=1) + "\n", encoding="utf-8")
    worst = max(abs(row["difference"]) for row in rows)
    print(f"largest difference {100 * worst:.1f} % (aim {100 * TOLERANCE:.0f} %)")


def _what(row: dict[str, Any]) -> tuple:
    return (row["processes"], *(row.get(name, False) for name in Case._fields))


def record(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """With the machine and the model."""
    shown = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
    )
    config = configuration(False)
    return {
        "machine": describe_environment(),
        "model": {name: getattr(config, name) for name in shown},
        "rows": MICRO,
        "length": LENGTH,
        "largest_difference": max(abs(row["difference"]) for row in rows),
        "trainings": rows,
    }


if __name__ == "__main__":
    main()
