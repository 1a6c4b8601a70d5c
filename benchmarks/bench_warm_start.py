"""What each way to start a ternary student is worth before any training of it as a whole: held-out loss, nats a token.

The ways: SubLNs at one, SubLNs calibrated, calibrated with the nearest codes and scales, and a block-wise warm start.

    python benchmarks/bench_warm_start.py --model MODEL_FOLDER --name NAME --corpus DATA/corpus --output benchmarks/results/FILE.json
"""

from __future__ import annotations

import argparse
import gc
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_bitdistill import BitNetConfig, WarmStartConfig, apply_bitnet, calibrate_sub_norm, least_squares_warm_start
from hf_bitdistill.data import load_corpus, pack_corpus
from hf_bitdistill.evaluation import perplexity
from hf_bitdistill.machine.environment import default_device, describe_environment
from hf_bitdistill.pages.tables import markdown_table
from hf_bitdistill.training.warm_start import warm_start


def render(file: Path) -> None:
    """The result as Markdown, beside its JSON."""
    content = json.loads(file.read_text(encoding="utf-8"))
    settings, results = content["settings"], content["results"]
    rows = [[name, f"{row['nll_per_token']:.3f}"] for name, row in results.items()]
    parts = [
        f"# Start values of a ternary {settings['name']}",
        markdown_table(["", "nats a token"], rows),
        f"{results['full precision']['tokens']:,} held-out tokens in blocks of {settings['block_size']}. Nothing was trained as a whole.",
    ]
    if "warm start" in results:
        report = results["warm start"]["warm_start"]
        windows = [
            [f"{w['first_layer']} to {w['last_layer']}", f"{w['error_before']:.4f}", f"{w['error_after']:.4f}"]
            for w in report["windows"]
        ]
        parts += [
            f"The warm start: {report['calibration_tokens']:,} tokens of text, {report['config']['steps_per_window']} steps of "
            f"{settings['batch_size'] * settings['block_size']:,} tokens a window, {report['seconds']:.0f} s. Huber error of the windows:",
            markdown_table(["layers", "before", "after"], windows),
        ]
    machine = ", ".join(f"{key} {value}" for key, value in content["machine"].items())
    parts.append(f"Machine: {machine}." + (f" Note: {content['note']}." if content["note"] else ""))
    file.with_suffix(".md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--name", required=True, help="how the result calls the model")
    parser.add_argument("--corpus", required=True, help="folder with train and validation text")
    parser.add_argument("--block_size", type=int, default=256)
    parser.add_argument("--eval_blocks", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=2**20, help="calibration tokens of the warm start")
    parser.add_argument("--batch_size", type=int, default=4, help="blocks a step of the warm start")
    parser.add_argument("--options", type=json.loads, default={}, help="of WarmStartConfig, as JSON")
    parser.add_argument("--student", type=json.loads, default={}, help="of BitNetConfig, as JSON")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 weights")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--note", help="what a reader should know of the circumstances")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = default_device()
    dtype = torch.bfloat16 if options.bf16 else torch.float32

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    size = options.block_size
    held_out = pack_corpus(load_corpus(options.corpus, "validation"), tokenizer, size)
    held_out = held_out.select(range(min(options.eval_blocks, len(held_out))))["input_ids"]
    corpus = load_corpus(options.corpus, "train", streaming=True).shuffle(seed=0, buffer_size=2000)
    wanted = max(16, -(-options.tokens // size))
    rows = [row["input_ids"] for row, _ in zip(pack_corpus(corpus, tokenizer, size), range(wanted), strict=False)]
    rows = torch.tensor(rows)
    calibration = [{"input_ids": row[None]} for row in rows[:16]]
    step = options.batch_size
    batches = [{"input_ids": rows[start : start + step]} for start in range(0, len(rows), step)]

    def load() -> torch.nn.Module:
        return AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype).to(device).eval()

    results = {}

    def record(name: str, model: torch.nn.Module, **more) -> None:
        measured = perplexity(model, tokenizer, held_out, size, batch_size=4, progress=False)
        results[name] = {"nll_per_token": measured["nll_per_token"], "tokens": measured["tokens"], **more}
        print(name, results[name]["nll_per_token"], flush=True)
        settings = {k: v for k, v in vars(options).items() if k not in ("model", "corpus", "output", "note")}
        content = {"settings": settings, "machine": describe_environment(), "note": options.note, "results": results}
        options.output.write_text(json.dumps(content, indent=2) + "\n")
        render(options.output)

    teacher = load()
    record("full precision", teacher)
    config = BitNetConfig(**options.student)
    student = apply_bitnet(load(), config)
    record("SubLN at one", student)
    calibrate_sub_norm(student, calibration)
    record("SubLN calibrated", student)
    least_squares_warm_start(student)
    record("SubLN calibrated, least squares", student)
    del student
    gc.collect()
    student = apply_bitnet(load(), config)
    calibrate_sub_norm(student, calibration)
    report = warm_start(student, teacher, batches, WarmStartConfig(**options.options), progress=True)
    record("warm start", student, warm_start=report.to_dict())


if __name__ == "__main__":
    main()
