"""Run by `test_engines.py` in two processes, and by itself in one: trainings of a small student with a teacher under an engine.

Usage: engines_run.py FOLDER ENGINE... (results go to FOLDER/ENGINE-RANK.pt)
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, TrainerCallback

from hf_bitdistill import BitNetConfig, apply_bitnet
from hf_bitdistill.distillation import DistillationConfig, DistillationTrainer
from hf_bitdistill.distillation.student import load_student_model


STEPS = 4
BATCH = 8
KEPT: list = []  # torch can hang when it frees a DDP model together with gloo's group

_ZERO = {
    "train_micro_batch_size_per_gpu": "auto",
    "train_batch_size": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_allow_untested_optimizer": True,
}


def _zero(stage: int, **more) -> dict:
    return {"deepspeed": {**_ZERO, "zero_optimization": {"stage": stage, **more}}}


def _fsdp(**config) -> dict:
    return {"fsdp": True, "fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT", **config}}


ENGINES = {
    "ddp": {"use_cpu": True, "ddp_backend": "gloo"},
    "fsdp_sharded": _fsdp(),
    "fsdp_full": _fsdp(state_dict_type="FULL_STATE_DICT"),
    "fsdp_checkpointing": _fsdp(activation_checkpointing=True),
    "fsdp_root": _fsdp(auto_wrap_policy="NO_WRAP", reshard_after_forward=False),
    "zero1": _zero(1),
    "zero2": _zero(2),
    "zero3": _zero(3),
}
"""Training arguments of each."""


def save_models(folder: Path, tied: bool = False) -> None:
    """A ternary student and its teacher, for all processes and engines."""
    config = LlamaConfig(
        vocab_size=67,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        pad_token_id=0,
    )
    for seed, name in enumerate(("student", "teacher")):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        if name == "student":
            model = apply_bitnet(model, BitNetConfig())
        model.save_pretrained(folder / name)


def rows() -> list[dict]:
    generator = torch.Generator().manual_seed(5)
    found = []
    for index in range(BATCH * STEPS):
        length = 6 + index % 5
        ids = torch.randint(3, 67, (length,), generator=generator).tolist()
        found.append(
            {"input_ids": ids, "attention_mask": [1] * length, "labels": [-100] * (index % 4) + ids[index % 4 :]}
        )
    return found


class _Pad:
    def __call__(self, features: list[dict]) -> dict:
        width = max(len(feature["input_ids"]) for feature in features)

        def padded(name: str, value: int) -> torch.Tensor:
            return torch.tensor([feature[name] + [value] * (width - len(feature[name])) for feature in features])

        return {
            "input_ids": padded("input_ids", 0),
            "attention_mask": padded("attention_mask", 0),
            "labels": padded("labels", -100),
        }


def trainer(folder: Path, *callbacks: TrainerCallback, models: Path | None = None, **options) -> DistillationTrainer:
    """Of this process; the batch of a step is the same whatever the number of processes is."""
    torch.set_num_threads(1)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    models = folder.parent if models is None else models
    values = {
        "report_to": [],
        "disable_tqdm": True,
        "max_steps": STEPS,
        "save_steps": 2,
        "logging_steps": 1,
        "learning_rate": 5e-4,
        "lr_scheduler_type": "linear",
        "attention_loss_weight": 10.0,
        "hidden_loss_weight": 1.0,
        "temperature": 2.0,
        "max_grad_norm": 1.0,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "gradient_accumulation_steps": BATCH // 2 // processes,
    }
    args = DistillationConfig(output_dir=str(folder), **{**values, **options})
    # (An object: by name the tokenizer is asked for too, which these have none of.)
    student = load_student_model(str(models / "student"))
    made = DistillationTrainer(
        model=student,
        teacher_model=str(models / "teacher"),
        args=args,
        train_dataset=rows(),
        eval_dataset=rows()[: 2 * BATCH],
        data_collator=_Pad(),
        callbacks=list(callbacks),
    )
    KEPT.append(made)
    return made


def losses(made: DistillationTrainer) -> list[dict]:
    """The terms of every step."""
    names = ("loss", "loss_ce", "loss_logits", "loss_attention", "loss_hidden", "grad_norm")
    return [{name: entry[name] for name in names} for entry in made.state.log_history if "loss" in entry]


def training(folder: Path, **options) -> dict:
    """A training with an evaluation, and one that goes on from its checkpoint in the middle, both saved as models."""
    first = trainer(folder, eval_strategy="steps", eval_steps=2, **options)
    first.train()
    first.save_model()
    placed = first._placed_teacher
    found = {
        "losses": losses(first),
        "evaluations": [entry["eval_loss"] for entry in first.state.log_history if "eval_loss" in entry],
        "refusal": first._passes.refusal,
        "is_whole": placed.is_whole,
        "teacher_weights": sum(_held(weight) for weight in first.teacher.parameters()),
        "teacher_gradients": any(w.requires_grad or w.grad is not None for w in first.teacher.parameters()),
        "checkpoint": sorted(os.listdir(folder / "checkpoint-2")),
    }
    again = folder.with_name(f"{folder.name}-again")
    second = trainer(again, **options)
    second.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    second.save_model()
    return {**found, "resumed": losses(second)}


def _held(weight: torch.Tensor) -> int:
    """Numbers of a weight that this process holds."""
    weight = getattr(weight, "ds_tensor", weight)
    return (weight.to_local() if hasattr(weight, "to_local") else weight).numel()


def message(work) -> str:
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def main(folder: Path, names: list[str]) -> None:
    rank = int(os.environ["RANK"])
    for name in names:
        try:
            found = training(folder / name, **ENGINES[name])
        except Exception:
            found = {"error": traceback.format_exc()}
        torch.save(found, folder / f"{name}-{rank}.pt")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    from pretending import shard_on_cpu

    if "ddp" not in sys.argv:
        shard_on_cpu()
    main(Path(sys.argv[1]), sys.argv[2:])
