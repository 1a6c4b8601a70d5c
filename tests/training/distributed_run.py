"""Run by `test_distributed.py`, in one process and in two: one optimizer step, its gradients kept; then checkpoints, a damaged
one among them, a teacher that is not finite in one process, and a student that is not.

Usage: distributed_run.py OUTPUT_FILE
"""

import os
import sys
import tempfile

import torch
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerFast,
    TrainerCallback,
)

from architectures import small_llama
from hf_bitdistill.training import DistillationConfig, DistillationTrainer


JSD = {"logits_divergence": "jsd", "jsd_beta": 0.3}

# torch can hang when it frees a DDP model and gloo's process group with it: the thread that frees them holds the
# interpreter's lock and waits for gloo's thread, which may be waiting for that lock to free the tensors of its last
# reduction. So they are kept, and the process ends without freeing them.
KEPT: list[DistillationTrainer] = []


def parts() -> tuple:
    """Student, teacher, rows and tokenizer."""
    torch.set_num_threads(1)
    backend = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>")
    config = small_llama()
    torch.manual_seed(0)
    student, teacher = (AutoModelForCausalLM.from_config(config) for _ in range(2))
    rows = []
    for length, labelled in ((12, 4), (5, 1), (9, 8), (4, 0), (3, 3), (11, 5), (6, 1), (8, 7)):
        ids = torch.randint(3, 64, (length,)).tolist()
        labels = [-100] * (length - labelled) + ids[length - labelled :]
        rows.append({"input_ids": ids, "attention_mask": [1] * length, "labels": labels})
    return student, teacher, rows, tokenizer


def one_step(**options) -> dict | None:
    """Gradients, first log record and evaluation metrics; `None` in all processes but the first."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    student, teacher, rows, tokenizer = parts()
    saved = {}

    class Save(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            saved.update({name: p.grad.clone() for name, p in model.named_parameters()})

    trainer = DistillationTrainer(
        model=student,
        teacher_model=teacher,
        args=DistillationConfig(
            output_dir=tempfile.mkdtemp(),
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
            max_steps=1,
            allow_full_precision_student=True,
            logging_steps=1,
            max_grad_norm=0.0,
            attention_loss_weight=100.0,
            hidden_loss_weight=3.0,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=4 // processes,
            # Whole batches for each process, so that the mean over batches is the same mean in one process and in two.
            per_device_eval_batch_size=2,
            ddp_backend="gloo" if processes > 1 else None,
            **options,
        ),
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        callbacks=[Save()],
    )
    if processes > 1:
        KEPT.append(trainer)
    trainer.train()
    # Not of whole logits.
    assert trainer._passes.refusal is None
    metrics = trainer.evaluate(rows)
    # The group of processes stays: one that is made anew may wait for the old one's names for ever.
    if trainer.is_world_process_zero():
        return {"gradients": saved, "log": trainer.state.log_history[0], "metrics": metrics}
    return None


def checkpoints(folder: str) -> dict:
    """What became of runs with checkpoints in a folder of both processes: in every process the same."""

    def run(max_steps: int, callbacks: tuple = (), **options) -> DistillationTrainer:
        student, teacher, rows, tokenizer = parts()
        trainer = DistillationTrainer(
            model=student,
            teacher_model=teacher,
            args=DistillationConfig(
                output_dir=folder,
                use_cpu=True,
                report_to=[],
                disable_tqdm=True,
                save_steps=1,
                allow_full_precision_student=True,
                max_steps=max_steps,
                lr_scheduler_type="constant",
                attention_loss_weight=0,
                per_device_train_batch_size=2,
                ddp_backend="gloo",
                **options,
            ),
            train_dataset=rows,
            data_collator=DataCollatorForSeq2Seq(tokenizer),
            callbacks=list(callbacks),
        )
        KEPT.append(trainer)
        return trainer

    class Harm(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2 and args.process_index == 1:
                KEPT[-1].teacher.model.norm.weight.data.fill_(float("nan"))

    first = run(2, save_total_limit=2)
    first.train()
    if first.is_world_process_zero():
        os.truncate(os.path.join(folder, "checkpoint-2", "optimizer.pt"), 10)
    first.accelerator.wait_for_everyone()
    second = run(2)
    found = {"resumed": os.path.basename(second.find_checkpoint(True))}
    second.train(resume_from_checkpoint=True)
    pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
    found["same"] = all(torch.equal(one, other) for one, other in pairs)
    second.save_model()
    for name, attempt in {
        "explicit": lambda: second.train(resume_from_checkpoint=folder + "/checkpoint-7"),
        "teacher": lambda: run(4, [Harm()], nan_patience=1).train(resume_from_checkpoint=True),
    }.items():
        try:
            attempt()
        except (ValueError, FloatingPointError) as error:
            found[name] = f"{type(error).__name__}: {error}"
    if second.args.process_index == 1:
        second.accelerator.unwrap_model(second.model).lm_head.weight.data[0] = float("inf")
    try:
        second.save_model()
    except FloatingPointError as error:
        found["student"] = str(error)
    second.accelerator.wait_for_everyone()
    found["files"] = sorted(os.listdir(folder))
    return found


if __name__ == "__main__":
    result, jsd = one_step(), one_step(**JSD)
    if os.environ.get("WORLD_SIZE"):
        found = checkpoints(sys.argv[1] + ".run")
        torch.save(found, f"{sys.argv[1]}.{os.environ['RANK']}")
    if result:
        torch.save({**result, "jsd": jsd}, sys.argv[1])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
