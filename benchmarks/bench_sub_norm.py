"""What `calibrate_sub_norm` does to a student's loss: at the start, and after a few steps of continual pre-training.

For each SubLN placement and start value it reports the held-out loss (nats a token) of the source model, of the student
with quantisation off, and of the ternary student before and after training. Same blocks, same seed for all.

    python benchmarks/bench_sub_norm.py --model MODEL_FOLDER --corpus DATA/corpus --output benchmarks/results/NAME.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, set_seed

from hf_bitdistill import BitNetConfig, apply_bitnet, calibrate_sub_norm
from hf_bitdistill.data import collate, load_corpus, pack_corpus
from hf_bitdistill.evaluation import perplexity
from hf_bitdistill.machine.environment import describe_environment
from hf_bitdistill.nn import full_precision
from hf_bitdistill.recipe.train import Machine, training_arguments
from hf_bitdistill.training import PretrainingConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--name", required=True, help="how the result calls the model")
    parser.add_argument("--corpus", required=True, help="folder with train and validation text")
    parser.add_argument("--block_size", type=int, default=256)
    parser.add_argument("--eval_blocks", type=int, default=16)
    parser.add_argument("--calibration_blocks", type=int, default=16)
    parser.add_argument("--steps", type=int, default=0, help="training steps (0: only the start)")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    held_out = pack_corpus(load_corpus(options.corpus, "validation"), tokenizer, options.block_size)
    held_out = held_out.select(range(options.eval_blocks))["input_ids"]
    needed = options.calibration_blocks + options.steps * options.batch_size
    corpus = load_corpus(options.corpus, "train").shuffle(seed=options.seed)
    # Far more text than is needed, far less than a large corpus.
    corpus = corpus.select(range(min(len(corpus), 200 + needed * options.block_size // 200)))
    blocks = pack_corpus(corpus, tokenizer, options.block_size)
    calibration = [{"input_ids": torch.tensor([ids])} for ids in blocks[: options.calibration_blocks]["input_ids"]]
    training = blocks.select(range(options.calibration_blocks, min(len(blocks), needed)))

    def loss(model: torch.nn.Module) -> float:
        result = perplexity(model, tokenizer, held_out, options.block_size, batch_size=4, progress=False)
        return round(result["nll_per_token"], 4)

    def load() -> torch.nn.Module:
        set_seed(options.seed)
        return AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)

    rows = [{"sub_norm": None, "start": "source model, full precision", "full_precision": loss(load())}]
    for placement, start in (
        ("none", None),
        ("output", "ones"),
        ("output", "calibrated"),
        ("all", "ones"),
        ("all", "calibrated"),
    ):
        student = apply_bitnet(load(), BitNetConfig(sub_norm=placement))
        if start == "calibrated":
            calibrate_sub_norm(student, calibration)
        with full_precision(student):
            row = {"sub_norm": placement, "start": start, "full_precision": loss(student)}
        row["ternary"] = loss(student)
        if options.steps:
            row["ternary_trained"] = train(student, training, tokenizer, options, loss)
        rows.append(row)
        print(row, flush=True)

    settings = {key: value for key, value in vars(options).items() if key not in ("model", "corpus", "output")}
    result = {"settings": settings, "machine": describe_environment(), "rows": rows}
    options.output.write_text(json.dumps(result, indent=2) + "\n")


def train(student, blocks, tokenizer, options, loss) -> float:
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(
            PretrainingConfig,
            Path(folder),
            Machine(bf16=False),
            steps=options.steps,
            batch=options.batch_size,
            micro=options.batch_size,
            rate=options.learning_rate,
            seed=options.seed,
            weight_decay=0.0,
            train_sampling_strategy="random",
        )
        Trainer(student, arguments, train_dataset=blocks, data_collator=collate(tokenizer)).train()
    return loss(student)


if __name__ == "__main__":
    main()
