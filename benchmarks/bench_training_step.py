"""Time and memory of a training step: the online student beside the same model in full precision, and a distillation step beside a naive
one (both models' logits as a whole, in float32). JSON.

    python benchmarks/bench_training_step.py --output FILE

Random weights in the shape of a SmolLM2-135M, random tokens. What is compared takes turns in one process, and each one's peak of memory
is measured in a process of its own: above the models and the student's gradients, in the first step. Steps are forward and backward; where
a student is compared with full precision, the C library keeps freed memory, as in a training of this package (a naive distillation would need
all of it). bfloat16 is autocast of float32 weights; compiled is each decoder layer for itself. Nothing else should run meanwhile.

FILE may be filled in parts (`--what`, `--dtypes`, `--vocabularies`, `--compiled`): rows of other cases stay in it, each with its date and load.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from decode.other_load import OtherLoad
from transformers import AutoModelForCausalLM, LlamaConfig

from hf_bitdistill import BitNetConfig, DistillationConfig, DistillationTrainer, apply_bitnet
from hf_bitdistill.machine.environment import describe_environment
from hf_bitdistill.machine.freed_memory import freed_memory_kept
from hf_bitdistill.recipe.train import Machine, training_arguments


SHAPE = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
QUICK_SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}

STUDENT_KINDS = ("full precision", "student", "student, scales of rows")
# "whole logits": the project's own losses, where they cannot be taken at the output layer.
DISTILLATION_KINDS = ("naive", "whole logits", "ours")


def make_model(vocabulary: int, layers: int, args: argparse.Namespace, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    shape = QUICK_SHAPE if args.quick else SHAPE
    config = LlamaConfig(vocab_size=vocabulary, num_hidden_layers=layers, tie_word_embeddings=True, **shape)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def autocast(dtype: str) -> Any:
    return torch.autocast("cpu", torch.bfloat16) if dtype == "bfloat16" else nullcontext()


def tokens_of(vocabulary: int, shape: list[int]) -> torch.Tensor:
    return torch.randint(vocabulary, tuple(shape), generator=torch.Generator().manual_seed(0))


def student_steps(kinds: list[str], dtype: str, compiled: bool, args: argparse.Namespace) -> dict[str, Callable]:
    """`step(part)` of each kind: `"forward"` without the backward pass."""
    vocabulary = args.vocabularies[0]
    ids = tokens_of(vocabulary, args.student_batch)
    steps = {}
    for kind in kinds:
        model = make_model(vocabulary, args.layers, args, seed=0).train()
        if kind != "full precision":
            granularity = "row" if kind.endswith("rows") else "tensor"
            model = apply_bitnet(model, BitNetConfig(weight_granularity=granularity)).train()
        if compiled:
            for layer in model.model.layers:
                layer.compile()

        def step(part: str, model=model) -> None:
            with autocast(dtype):
                loss = model(ids, labels=ids, use_cache=False).loss
            if part == "step":
                loss.backward()

        steps[kind] = step
        prepare_gradients(model)
    return steps


def prepare_gradients(model: torch.nn.Module) -> None:
    for parameter in model.parameters():
        # Written to, so that it is there.
        parameter.grad = torch.zeros_like(parameter).fill_(0)


def distillation_steps(kinds: list[str], vocabulary: int, dtype: str, args: argparse.Namespace) -> dict[str, Callable]:
    ids = tokens_of(vocabulary, args.distillation_batch)
    batch = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}
    layers = args.distillation_layers
    student = apply_bitnet(make_model(vocabulary, layers, args, seed=0), BitNetConfig()).train()
    # Without it, activations are most of the memory.
    student.gradient_checkpointing_enable({"use_reentrant": False})
    teacher = make_model(vocabulary, layers, args, seed=1).eval().requires_grad_(False)
    steps = {}
    for kind in kinds:
        if kind == "naive":

            def step(part: str) -> None:
                with autocast(dtype):
                    with torch.no_grad():
                        target = teacher(ids, use_cache=False).logits.float()
                    logits = student(ids, use_cache=False).logits.float()
                logits, target, labels = (
                    logits[:, :-1].flatten(0, 1),
                    target[:, :-1].flatten(0, 1),
                    ids[:, 1:].flatten(),
                )
                log_p, log_t = (logits / 5).log_softmax(-1), (target / 5).log_softmax(-1)
                kl = F.kl_div(log_p, log_t, reduction="batchmean", log_target=True)
                (F.cross_entropy(logits, labels) + 25 * kl).backward()

        else:
            with tempfile.TemporaryDirectory() as folder:
                options = training_arguments(
                    DistillationConfig,
                    Path(folder),
                    Machine(bf16=dtype == "bfloat16"),
                    steps=1,
                    batch=1,
                    micro=1,
                    rate=5e-5,
                    seed=0,
                    use_cpu=True,
                    attention_loss_weight=0,
                )
                trainer = DistillationTrainer(student, teacher, options, train_dataset=[])
            if kind == "whole logits":
                trainer._passes.refusal = "they are measured"

            def step(part: str, trainer=trainer) -> None:
                with trainer.compute_loss_context_manager():
                    loss = trainer.compute_loss(student, batch)
                loss.backward()

        steps[kind] = step
    prepare_gradients(student)
    return steps


def memory(field: str) -> int:
    """Bytes, of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def peak(step: Callable) -> float | None:
    """GB above what there was, in the first step; `None` where the system does not tell."""
    try:
        before = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        step("step")
        return round((memory("VmHWM") - before) / 1e9, 3)
    except OSError:
        return None


def timed(step: Callable, part: str) -> float:
    start = time.perf_counter()
    step(part)
    return time.perf_counter() - start


def times(steps: dict[str, Callable], parts: list[str], rounds: int) -> dict[str, dict[str, Any]]:
    """Seconds of each kind; they take turns."""
    seconds = {kind: {part: [] for part in parts} for kind in steps}
    for number in range(rounds + 1):
        for kind, step in steps.items():
            for part in parts:
                value = timed(step, part)
                if number:  # the first ones compile and warm up
                    seconds[kind][part].append(value)
    return {
        kind: {
            f"{part}_seconds": {"median": round(statistics.median(values), 4), "least": round(min(values), 4)}
            for part, values in of_kind.items()
        }
        for kind, of_kind in seconds.items()
    }


def make_steps(case: dict[str, Any], kinds: list[str], args: argparse.Namespace) -> dict[str, Callable]:
    if case["what"] == "student":
        return student_steps(kinds, case["dtype"], case["compiled"], args)
    return distillation_steps(kinds, case["vocabulary"], case["dtype"], args)


def work(case: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    if "kind" in case:
        return {"peak_gb": peak(make_steps(case, [case["kind"]], args)[case["kind"]])}
    kinds = list(STUDENT_KINDS if case["what"] == "student" else DISTILLATION_KINDS)
    parts = ["forward", "step"] if case["what"] == "student" else ["step"]
    rounds = args.rounds if case["what"] == "student" else args.distillation_rounds
    with freed_memory_kept(case["what"] == "student"):
        return times(make_steps(case, kinds, args), parts, rounds)


def cases(args: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    if "student" in args.what:
        for dtype in args.dtypes:
            found += [{"what": "student", "dtype": dtype, "compiled": compiled} for compiled in args.compiled]
    if "distillation" in args.what:
        for vocabulary in args.vocabularies:
            found += [{"what": "distillation", "dtype": dtype, "vocabulary": vocabulary} for dtype in args.dtypes]
    return found


def run(case: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    if args.quick:
        return work(case, args)
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", json.dumps(case)]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(finished.stdout.splitlines()[-1])


def measured(case: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """The row of a case."""
    load = OtherLoad([])
    kinds = run(case, args)
    for kind, values in kinds.items():
        if case.get("compiled"):  # (compiling takes memory of its own)
            continue
        values.update(run({**case, "kind": kind}, args))
    environment = describe_environment() | {"threads": args.threads}
    size = (
        {"layers": args.layers, "batch": args.student_batch, "vocabulary": args.vocabularies[0], "rounds": args.rounds}
        if case["what"] == "student"
        else {
            "layers": args.distillation_layers,
            "batch": args.distillation_batch,
            "rounds": args.distillation_rounds,
        }
    )
    return {**case, **size, "kinds": kinds, "machine": environment, "load": load.record()}


def add(row: dict[str, Any], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`rows` with `row`, in the place of an earlier one of its case."""
    names = ("what", "dtype", "compiled", "vocabulary")
    key = [row.get(name) for name in names]
    return [*(each for each in rows if [each.get(name) for name in names] != key), row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--what", nargs="+", choices=["student", "distillation"], default=["student", "distillation"])
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument(
        "--vocabularies", nargs="+", type=int, default=[49152, 151936], help="the student's is the first"
    )
    parser.add_argument("--student_batch", nargs=2, type=int, default=[4, 256])
    parser.add_argument("--distillation_batch", nargs=2, type=int, default=[4, 512])
    parser.add_argument("--layers", type=int, default=30, help="of the student")
    parser.add_argument("--distillation_layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--distillation_rounds", type=int, default=1)
    parser.add_argument(
        "--compiled", nargs="+", type=int, choices=[0, 1], default=[0, 1], help="the student's: 0 is eager"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--quick", action="store_true", help="a tiny model and one round: whether it runs")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.layers = args.distillation_layers = 2
        args.rounds, args.compiled = 1, [0]
        args.vocabularies, args.dtypes = [64], args.dtypes[:1]
        args.student_batch = args.distillation_batch = [2, 8]
    args.compiled = [bool(each) for each in args.compiled]
    if args.worker:
        print(json.dumps(work(args.worker, args)))
        return
    rows = []
    if args.output and args.output.is_file():
        rows = json.loads(args.output.read_text(encoding="utf-8"))["rows"]
    for case in cases(args):
        row = measured(case, args)
        rows = add(row, rows)
        print(json.dumps(row), flush=True)
        if args.output:
            args.output.write_text(json.dumps({"rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
