"""Speed of continual pre-training with a teacher on this machine, and what each choice adds: JSON.

    python benchmarks/bench_training.py --model MODEL --name NAME --output FILE [--settings NAME ...]

Every setting runs in a process of its own, because the C library reads how to keep freed memory when it starts: a training keeps it
unless the environment says anything about it. Figures are tokens a second of optimiser steps on random tokens, after the compiler and a
warm-up.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hf_bitdistill.machine.environment import describe_environment


# glibc's own default, said, which a training leaves as it is: every freed tensor of more than 32 MB goes back to the system, which hands
# it out again page by page, zeroed.
GIVE_BACK_MEMORY = {"MALLOC_ARENA_TEST": "8"}
# Compiles one decoder layer for all of them: the compiler takes a fraction of the time.
COMPILE_LAYERS = {"ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "1"}

# name -> what it adds to the one before
SETTINGS: dict[str, dict[str, Any]] = {
    "float32": {"kl_chunk_size": 256, "environment": GIVE_BACK_MEMORY},
    "bfloat16": {"bf16": True},
    "chunks of the loss in cache": {"kl_chunk_size": None},
    "freed memory kept": {"environment": {}},
    "eager attention": {"attn_implementation": "eager"},
    "torch.compile": {"torch_compile": True, "environment": COMPILE_LAYERS},
}


def accumulated(name: str) -> dict[str, Any]:
    """A setting with all that come before it."""
    options: dict[str, Any] = {}
    for other, added in SETTINGS.items():
        options.update(added)
        if other == name:
            return options
    raise KeyError(name)


def measure(args: argparse.Namespace, options: dict[str, Any]) -> dict[str, Any]:
    """Steps of a `DistillationTrainer`, timed between their ends."""
    import torch
    from clocks import StepClock
    from datasets import Dataset
    from transformers import AutoModelForCausalLM

    from hf_bitdistill import BitNetConfig, DistillationTrainer, PretrainingConfig, apply_bitnet
    from hf_bitdistill.recipe.train import Machine, training_arguments

    torch.set_num_threads(args.threads)

    attention = options.pop("attn_implementation", None)
    options.pop("environment", None)
    teacher, source = (
        AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, attn_implementation=attention)
        for _ in range(2)
    )
    steps = args.warmup + args.steps
    generator = torch.Generator().manual_seed(0)
    shape = (steps * args.batch_size, args.block_size)
    tokens = torch.randint(source.config.vocab_size, shape, generator=generator).tolist()
    clock = StepClock()
    with tempfile.TemporaryDirectory() as folder:
        training = training_arguments(
            PretrainingConfig,
            Path(folder),
            Machine(bf16=options.pop("bf16", False)),
            steps=steps,
            batch=args.batch_size,
            micro=args.batch_size,
            rate=5e-5,
            seed=0,
            # As the recorded rows were trained.
            dead_zone_leak=0.0,
            # (Reading a loss waits for the step.)
            logging_strategy="no",
            **options,
        )
        student = apply_bitnet(source, BitNetConfig())
        rows = Dataset.from_dict({"input_ids": tokens, "labels": tokens})
        DistillationTrainer(student, teacher, training, train_dataset=rows, callbacks=[clock]).train()
    seconds = clock.seconds_a_step(args.warmup)
    size = args.batch_size * args.block_size
    return {"tokens_per_second": round(size / statistics.median(seconds), 1), "step_seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of the full-precision model")
    parser.add_argument("--name", help="of the model, in the result")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--block_size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--warmup", type=int, default=2, help="steps before the clock, at least 1")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--worker", choices=list(SETTINGS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.warmup < 1:
        parser.error("--warmup must be at least 1")
    if args.worker:
        print(json.dumps(measure(args, accumulated(args.worker))))
        return
    rows = {}
    for name in args.settings:
        inherited = {
            key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_TUNABLES"))
        }
        environment = {**inherited, **accumulated(name).get("environment", {})}
        command = [sys.executable, __file__, *sys.argv[1:], "--worker", name]
        finished = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        rows[name] = json.loads(finished.stdout.splitlines()[-1])
        print(f"{name}: {rows[name]['tokens_per_second']} tokens/s", flush=True)
    result = {
        "model": args.name or args.model,
        "batch": [args.batch_size, args.block_size],
        "threads": args.threads,
        "machine": describe_environment(),
        "settings": rows,
    }
    if args.output:
        args.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
