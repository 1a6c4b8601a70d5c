"""Tiny models, rows and trainers of the scripts beside it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from architectures import small_llama
from hf_bitdistill import BitNetConfig, apply_bitnet
from hf_bitdistill.data import collate
from hf_bitdistill.training import DistillationConfig, DistillationTrainer


# Of uneven lengths, and a number that no batch divides.
ROWS = [
    {
        "sentence": " ".join([f"film {row} was"] + ["very"] * (row % 5) + [["dull", "fine"][row % 2]]),
        "label": row % 2,
        "answer": f"number {row}",
    }
    for row in range(11)
]
TASK = 'prompt: "{sentence}\\nTone:"\ntarget: label\nlabels: [bad, good enough]\nmax_length: 96\n'
WORDS = 'prompt: "{sentence}\\nTone:"\ntarget: answer\nmetric: exact_match\nmax_length: 96\nmax_new_tokens: 4\n'


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<pad>": 0, "</s>": 1}
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[letter] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>")


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(folder / "models" / "student")


def make_student(seed: int = 0, kind: type = LlamaForCausalLM):
    torch.manual_seed(seed)
    sizes = {"vocab_size": 258, "intermediate_size": 64, "num_attention_heads": 2, "max_position_embeddings": 256}
    config = small_llama(**sizes, eos_token_id=1, num_labels=2)
    return apply_bitnet(kind(config), BitNetConfig())


def write_inputs(folder: Path) -> None:
    """Models, a task and its rows; in `other` other rows."""
    make_student().save_pretrained(folder / "models" / "student")
    make_tokenizer().save_pretrained(folder / "models" / "student")
    make_student(1, LlamaForSequenceClassification).save_pretrained(folder / "models" / "classifier")
    for name, rows in {"data": ROWS, "other": ROWS[:-1]}.items():
        (folder / name).mkdir()
        for split in ("train", "validation"):
            (folder / name / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "data" / "tone.yaml").write_text(TASK)
    (folder / "data" / "words.yaml").write_text(WORDS)


def task_rows(tokenizer=None) -> Dataset:
    """The rows; with a tokenizer as token ids, the last third of each with labels."""
    if tokenizer is None:
        return Dataset.from_list(ROWS)
    ids = [tokenizer(row["sentence"])["input_ids"] for row in ROWS]
    labels = [[-100] * (2 * len(row) // 3) + row[2 * len(row) // 3 :] for row in ids]
    return Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids], "labels": labels})


def make_trainer(output, rows: int = 8, teacher_seed: int = 0, callbacks=(), **options) -> DistillationTrainer:
    tokenizer = make_tokenizer()
    torch.manual_seed(3)
    teacher = LlamaForCausalLM(make_student().config)
    with torch.no_grad():
        teacher.lm_head.weight[-1, -1] += teacher_seed
    del teacher.config.quantization_config
    defaults = {
        "max_steps": 2, "save_steps": 1, "use_cpu": True, "report_to": [], "disable_tqdm": True, "attention_loss_weight": 0,
        "per_device_train_batch_size": 1, "lr_scheduler_type": "constant", "ddp_backend": "gloo",
    }  # fmt: skip
    return DistillationTrainer(
        model=make_student(5),
        teacher_model=teacher,
        args=DistillationConfig(output_dir=str(output), **{**defaults, **options}),
        train_dataset=task_rows(tokenizer).select(range(rows)),
        data_collator=collate(tokenizer),
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )
