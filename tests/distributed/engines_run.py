"""Run by `test_engines.py` in two processes, and by itself in one: trainings of a small student with a teacher under an engine.

Usage: engines_run.py FOLDER WHAT... (an engine, or a check; results go to FOLDER/WHAT-RANK.pt, models come from FOLDER). FSDP and
DeepSpeed need a launch each: accelerate keeps in the environment which of them it has set up.
"""

from __future__ import annotations

import gc
import os
import sys
import traceback
from pathlib import Path

import torch
from launching import message
from pretending import shard_on_cpu
from transformers import AutoModelForCausalLM, TrainerCallback

from architectures import small_llama
from hf_bitdistill import BitNetConfig, apply_bitnet
from hf_bitdistill.training import DistillationConfig, DistillationTrainer
from hf_bitdistill.training.engines.gathering import whole_state
from hf_bitdistill.training.student_model import load_student_model


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


def save_models(folder: Path, tied: bool = False, width: int = 32, words: int = 67) -> None:
    """A ternary student and its teacher, for all processes and engines."""
    sizes = {"vocab_size": words, "hidden_size": width, "intermediate_size": width * 3 // 2, "num_key_value_heads": 2}
    config = small_llama(**sizes, tie_word_embeddings=tied)
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


class _Harm(TrainerCallback):
    """Spoils the second process's student before the second step."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 1 and args.process_index == 1:
            KEPT[-1].teacher.requires_grad_(False)
            for weight in KEPT[-1].teacher.parameters():
                getattr(weight, "ds_tensor", weight).data.fill_(float("nan"))


def guards_ddp(folder: Path) -> dict:
    """A training after an evaluation."""
    made = trainer(folder, **ENGINES["ddp"])
    metrics = made.evaluate()
    made.train()
    made.save_model()
    weights = torch.cat([weight.detach().flatten() for weight in made.model.parameters()])
    return {"evaluated": metrics["eval_loss"], "losses": losses(made), "weights": weights}


def guards_fsdp(folder: Path) -> dict:
    """What is refused."""
    options = ENGINES["fsdp_sharded"]
    foreign = str(folder.parent / "one" / "checkpoint-2")
    return {
        "evaluate": message(trainer(folder, **options).evaluate),
        "foreign": message(lambda: trainer(folder, **options).train(resume_from_checkpoint=foreign)),
    }


def guards_zero(folder: Path) -> dict:
    """What is refused, and what an evaluation alone gives. After `zero3`."""
    found = {"evaluate": message(trainer(folder, **ENGINES["zero2"]).evaluate)}
    states = str(folder.parent / "zero3" / "checkpoint-2")
    found["stage"] = message(lambda: trainer(folder, **ENGINES["zero2"]).train(resume_from_checkpoint=states))
    found["nan"] = message(trainer(folder, _Harm(), nan_patience=1, **ENGINES["zero1"]).train)
    unchecked = {"bf16": {"enabled": "auto", "check_grad_overflow": False}}
    options = {"deepspeed": {**ENGINES["zero1"]["deepspeed"], **unchecked}, "bf16": True}
    found["nan_unchecked"] = message(trainer(folder, _Harm(), **options).train)
    found["nan_3"] = message(trainer(folder, _Harm(), nan_patience=1, **ENGINES["zero3"]).train)
    made = trainer(folder, **ENGINES["zero3"])
    found["evaluated"] = made.evaluate()["eval_loss"]
    found["train"] = message(made.train)
    return found


def memory(folder: Path) -> dict:
    """How much more memory than with its shards alone a process has needed at one time to save a model, in copies of the whole."""
    from torch.distributed.fsdp import fully_shard

    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    # (260 MB, beside which buffers of one parameter's size, 4 MB, are little.)
    config = small_llama(vocab_size=1000, hidden_size=512, intermediate_size=2048, num_hidden_layers=16)
    model = apply_bitnet(AutoModelForCausalLM.from_config(config), BitNetConfig())
    whole = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    gc.collect()
    # Once before, so that what is imported and kept does not count.
    save_models(folder / f"small-{rank}")
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak()
    state = whole_state(model, keep=rank == 0)
    gathered = _peak() - before
    if rank == 0:
        model.save_pretrained(folder / "saved", state_dict=state)
    return {"gathered": gathered / whole, "saved": (_peak() - before) / whole, "tensors": len(state)}


def _peak() -> int:
    """The most memory that this process has had."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


#: Trainings of other models, or with another optimizer: by what comes before the engine's name.
KINDS = {
    "tied": {"models": "tied"},
    "low_bits": {"models": "wide", "optim": "adamw_torch_8bit"},
    "paged": {"models": "wide", "optim": "paged_adamw_8bit"},
    "half": {"bf16": True, "teacher_model_init_kwargs": {"dtype": "bfloat16"}},
}
CHECKS = {"guards-ddp": guards_ddp, "guards-fsdp": guards_fsdp, "guards-zero": guards_zero, "memory": memory}


def _found(folder: Path, name: str) -> dict:
    if name in CHECKS:
        return CHECKS[name](folder / name)
    kind, _, engine = name.rpartition("-")
    options = dict(KINDS.get(kind, {}))
    models = folder / options.pop("models", ".")
    return training(folder / name, models=models, **options, **ENGINES[engine])


def main(folder: Path, names: list[str]) -> None:
    rank = int(os.environ["RANK"])
    for name in names:
        try:
            found = _found(folder, name)
        except Exception:
            found = {"error": traceback.format_exc()}
        torch.save(found, folder / f"{name}-{rank}.pt")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    shard_on_cpu()
    main(Path(sys.argv[1]), sys.argv[2:])
