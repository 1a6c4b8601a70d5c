"""Writes the plans of four models on 1, 8 and 64 GPUs of 80 GB: JSON, and the table in `docs/scale.md`. No weights, no GPU; a minute. And the
tables there of what was measured (`check_memory_plan.py`, `plan_warm_start.py`), of their records.

    python benchmarks/render_scale.py
    python benchmarks/render_scale.py --only_records
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from transformers import LlamaConfig, Qwen3MoeConfig

from hf_bitdistill.pages.tables import markdown_table
from hf_bitdistill.recipe.efforts import EFFORTS
from hf_bitdistill.scale import HardwareArguments
from hf_bitdistill.scale.memory_plan import Data, ScalePlan, plan_shape, student_shape


ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE, RECORD = ROOT / "docs" / "scale.md", RESULTS / "scale_plan.json"
GPUS, GPU_MEMORY = (1, 8, 64), 80.0
BATCH, LENGTH = 64, 2048


def _llama(**shape: Any) -> LlamaConfig:
    return LlamaConfig(vocab_size=128256, num_key_value_heads=8, head_dim=shape.pop("head_dim", 128), **shape)


MODELS = {
    "1B (Llama 3.2)": _llama(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        head_dim=64,
        tie_word_embeddings=True,
    ),
    "8B (Llama 3.1)": _llama(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32),
    "70B (Llama 3.1)": _llama(hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64),
    "30B-A3B (Qwen 3)": Qwen3MoeConfig(
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=6144,
        moe_intermediate_size=768,
        num_hidden_layers=48,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
        tie_word_embeddings=False,
    ),
}


def plans() -> list[ScalePlan]:
    numbers = dataclasses.replace(EFFORTS["standard"], batch_size=BATCH)
    steps = numbers.distill_examples // BATCH
    data = Data(LENGTH, LENGTH, float(LENGTH), (("distillation", steps, BATCH),), is_measured=False)
    found = []
    for name, config in MODELS.items():
        shape = student_shape(config, numbers)
        for count in GPUS:
            nodes, gpus = (count // 8, 8) if count >= 8 else (1, count)
            hardware = HardwareArguments(nodes, gpus, GPU_MEMORY)
            found.append(plan_shape(name, shape, numbers, data, hardware))
            print(found[-1].text(), "\n", flush=True)
    return found


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f}"


def row(plan: ScalePlan) -> list[str]:
    cheapest = plan.cheapest
    shown = cheapest or min(plan.rows, key=lambda each: each.memory.total)
    parts, training = shown.memory.parts, shown.training
    states = sum(parts[name] for name in ("latents", "gradients", "optimizer"))
    working = sum(parts[name] for name in ("activations", "logits", "relations", "gathered"))
    sent = shown.wire
    codes = f"{_gb(sent.ternary)} ({_gb(sent.ternary_bfloat16)})" if shown.engine.kind == "fsdp" else ""
    return [
        plan.model,
        str(plan.hardware.processes),
        shown.name if cheapest else f"nothing fits; least: {shown.name}",
        f"{training.micro} x {training.accumulation}",
        *map(_gb, (states, parts["teacher"], working, shown.memory.total, sent.total)),
        codes,
    ]


def table(found: list[ScalePlan]) -> str:
    header = (
        "model", "GPUs", "cheapest that fits", "micro batch", "latents, gradients, optimizer", "teacher", "activations, logits, gathered",
        "at once", "sent a step", "ternary all-gather (in bfloat16)",
    )  # fmt: skip
    return markdown_table(header, [row(plan) for plan in found])


def memory_table(record: dict[str, Any]) -> str:
    """Trainings of the same kind in one row, least to most of what was planned, as a share of what was measured."""
    kinds: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for training in record["trainings"]:
        model = "mixture" if training.get("mixture") else "Llama"
        dtype = "bfloat16" if training["bf16"] else "float32"
        checkpointing = "yes" if training["checkpointing"] else "no"
        kinds.setdefault((training["engine"], model, dtype, checkpointing), []).append(training)
    rows = []
    for kind, trainings in kinds.items():
        counts = ", ".join(map(str, sorted({training["processes"] for training in trainings})))
        measured = [f"{training['measured'] / 1e6:.0f}" for training in trainings]
        ratios = sorted(training["planned"] / training["measured"] for training in trainings)
        shown = " to ".join(dict.fromkeys(f"{ratio:.2f}" for ratio in (ratios[0], ratios[-1])))
        rows.append([*kind, counts, ", ".join(measured), shown])
    header = ("engine", "model", "dtype", "checkpointing", "processes", "measured, MB", "planned / measured")
    return markdown_table(header, rows)


def _named(case: dict[str, Any]) -> list[str]:
    dtype = "bfloat16" if case["bf16"] else "float32"
    return [
        f"{case['hidden_size']} x {case['intermediate_size']}, {dtype}",
        str(case["window"]),
        f"{case['batch_size']} x {case['length']}",
    ]


def warm_start_table(record: dict[str, Any]) -> str:
    header = ("layers", "window", "tokens of a batch", "weights", "stand-ins", "optimizer", "step", "at once, GB")
    parts = ("weights", "stand-ins", "optimizer", "step", "at once")
    return markdown_table(
        header,
        [[*_named(each), *(f"{each['planned'][part] / 1e9:.2f}" for part in parts)] for each in record["plans"]],
    )


def put(name: str, content: str) -> None:
    """Between the marks of a part of the page.

    Raises:
        ValueError: it has no such part.
    """
    begin, end = f"<!-- {name}: written by benchmarks/render_scale.py -->", f"<!-- end of {name} -->"
    page = PAGE.read_text(encoding="utf-8")
    if begin not in page or end not in page:
        raise ValueError(f"{PAGE} has no part {name}")
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    PAGE.write_text(f"{before}{begin}\n\n{content}\n\n{end}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only_records", action="store_true", help="nothing is planned anew")
    if not parser.parse_args().only_records:
        found = plans()
        RECORD.write_text(json.dumps([plan.to_dict() for plan in found], indent=1) + "\n", encoding="utf-8")
        put("plans", table(found))
    put("memory", memory_table(json.loads((RESULTS / "memory_plan.json").read_text(encoding="utf-8"))))
    warm_start = json.loads((RESULTS / "warm_start_plan.json").read_text(encoding="utf-8"))
    put("warm start", warm_start_table(warm_start))


if __name__ == "__main__":
    main()
