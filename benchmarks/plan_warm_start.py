"""What a warm start larger than the device takes there, counted without weights: of a shape, a window and a batch. A minute, no GPU. JSON.

A window's layers go forward and backward as they are trained, on tensors without memory, and every tensor that is alive is counted
(`hf_bitdistill.scale.live_bytes`). Added are the layers' own weights and Adam's two states of what is trained. Not counted: what operators use
inside of themselves, the driver, fragmentation.

    python benchmarks/plan_warm_start.py --output benchmarks/results/warm_start_plan.json

With `--check` the same is measured on small shapes by `bench_warm_start_memory.py`, whose hidden states go to a file, and stands beside it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from bench_warm_start_memory import llama_config
from transformers import AutoModelForCausalLM

from hf_bitdistill import BitNetConfig, WarmStartConfig, apply_bitnet
from hf_bitdistill._compat import fake_tensors
from hf_bitdistill.machine.environment import describe_environment
from hf_bitdistill.scale.live_bytes import LiveBytes
from hf_bitdistill.training.warm_start.decoder_layers import decoder_layers
from hf_bitdistill.training.warm_start.stand_ins import StandIns


@dataclass(frozen=True)
class Case:
    """A shape, and what is trained at once; named as the options of `bench_warm_start_memory.py`."""

    hidden_size: int
    intermediate_size: int
    vocab_size: int
    heads: int
    layers: int
    window: int
    rank: int
    batch_size: int
    length: int
    bf16: bool = False


SEVEN_BILLION = (4096, 11008, 32000, 32, 32)
PLANS = [Case(*SEVEN_BILLION, window, 64, 4, 1024, bf16=True) for window in (2, 4, 8)]
CHECKS = [
    Case(256, 704, 256, 4, 6, 2, 16, 2, 128),
    Case(256, 704, 256, 4, 6, 4, 16, 2, 128),
    Case(512, 1408, 256, 8, 6, 2, 16, 2, 128),
    Case(512, 1408, 256, 8, 6, 4, 16, 2, 128),
    Case(512, 1408, 256, 8, 4, 2, 64, 4, 256, bf16=True),
]


def trained_bytes(case: Case) -> dict[str, int]:
    """What the training of a window has on the device at once, by part. To be called with fake tensors or with real ones.

    Returns:
        `weights` of the student's layers; `stand-ins` with what they keep; `optimizer`; `step`: the most that a forward and backward pass
        takes above these, gradients included; `at once`: their sum.
    """
    dtype = torch.bfloat16 if case.bf16 else torch.float32
    config = llama_config(case.hidden_size, case.intermediate_size, 8, case.window, case.heads, case.length)
    student = apply_bitnet(AutoModelForCausalLM.from_config(config, dtype=dtype), BitNetConfig()).requires_grad_(False)
    layers = decoder_layers(student)
    weights = sum(weight.numel() * weight.element_size() for weight in layers.parameters())
    # (Trained as float32 copies.)
    vectors = sum(weight.numel() for weight in layers.parameters() if weight.ndim == 1)
    shape = case.batch_size, case.length, case.hidden_size
    hidden, target = (torch.zeros(shape, dtype=dtype) for _ in range(2))
    # (Made once, for all batches.)
    mask = torch.ones(case.batch_size, 1, case.length, case.length, dtype=torch.bool)
    # (The search of the other start depends on values. It leaves the same.)
    start = WarmStartConfig(window_layers=case.window, window_stride=case.window, rank=case.rank, start="absmean")
    with LiveBytes() as live:
        held = StandIns(layers, start, None, recompute=True)  # type: ignore[arg-type]  # (fake tensors have no generator)
        with held.put_in(0, case.window) as stand_ins:
            kept = live.now
            trained = [parameter for each in stand_ins for parameter in (*each.updates(), *each.factors())]
            for stand_in in stand_ins:
                stand_in.sharpness = start.sharpness_at(0)
            with live.part() as step:
                output = student.base_model(
                    inputs_embeds=hidden, attention_mask=mask, use_cache=False
                ).last_hidden_state
                F.huber_loss(output.float(), target.float(), delta=start.huber_delta).backward()
    count = sum(parameter.numel() for parameter in trained) + vectors
    parts = {"weights": weights, "stand-ins": kept + 4 * vectors, "optimizer": 8 * count, "step": step.peak}
    return {**parts, "at once": sum(parts.values())}


def planned(case: Case) -> dict[str, int]:
    """[`trained_bytes`] without memory."""
    with fake_tensors():
        return trained_bytes(case)


def measured(case: Case) -> int:
    """Bytes of a process whose training it is, see `bench_warm_start_memory.py`."""
    options = {**asdict(case), "windows": case.window, "where": "disk", "steps": 3, "batches": 4}
    del options["window"], options["bf16"]
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "result.json")
        script = [sys.executable, str(Path(__file__).with_name("bench_warm_start_memory.py"))]
        subprocess.run([*script, *words, *["--bf16"] * case.bf16, "--output", str(output)], check=True)
        return json.loads(output.read_text(encoding="utf-8"))["results"][0]["process"]


def row(case: Case, check: bool) -> dict[str, Any]:
    found: dict[str, Any] = {**asdict(case), "planned": planned(case)}
    if check:
        found["measured"] = measured(case)
        found["planned / measured"] = round(found["planned"]["at once"] / found["measured"], 3)
    print(found, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="measure small shapes too")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    content = {"machine": describe_environment(), "plans": [row(case, False) for case in PLANS]}
    if options.check:
        content["checks"] = [row(case, True) for case in CHECKS]
    if options.output:
        options.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
