"""Tiny students, teachers, data and trainers for the tests of distillation."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, DataCollatorForSeq2Seq

from hf_bitdistill.training import DistillationConfig, DistillationTrainer


torch.set_num_threads(1)


@pytest.fixture
def make_model(tiny_llama_config):
    """`make_model(seed, classes=None, **config options)`: a tiny Llama with a causal LM or a classification head."""

    def make(seed=0, classes=None, **options):
        config = type(tiny_llama_config)(**{**tiny_llama_config.to_dict(), **options})
        torch.manual_seed(seed)
        if classes is None:
            return AutoModelForCausalLM.from_config(config)
        config.num_labels = classes
        return AutoModelForSequenceClassification.from_config(config)

    return make


@pytest.fixture
def lm_rows():
    """Eight sequences of different lengths, each with a different number of labels (the last tokens)."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length, labelled in ((12, 4), (5, 1), (9, 8), (7, 2), (3, 3), (11, 5), (6, 1), (8, 7)):
        ids = torch.randint(3, 384, (length,), generator=generator).tolist()
        labels = [-100] * (length - labelled) + ids[length - labelled :]
        rows.append({"input_ids": ids, "attention_mask": [1] * length, "labels": labels})
    return rows


@pytest.fixture
def class_rows():
    generator = torch.Generator().manual_seed(1)
    rows = []
    for index, length in enumerate((12, 5, 9, 7, 3, 11, 6, 8)):
        ids = torch.randint(3, 384, (length,), generator=generator).tolist()
        rows.append({"input_ids": ids, "attention_mask": [1] * length, "labels": index % 3})
    return rows


@pytest.fixture
def make_trainer(tmp_path, tiny_tokenizer):
    """`make_trainer(student, teacher, rows, **options of DistillationConfig or DistillationTrainer)`."""

    def make(student, teacher, rows, name="run", **options):
        trainer_options = {
            key: options.pop(key)
            for key in ("eval_dataset", "compute_metrics", "processing_class", "teacher_processing_class", "callbacks")
            if key in options
        }
        causal = rows is not None and isinstance(rows[0]["labels"], list)
        collator = DataCollatorForSeq2Seq(tiny_tokenizer) if causal else None
        trainer_options.setdefault("processing_class", tiny_tokenizer)
        if teacher is not None and not isinstance(teacher, str):
            trainer_options.setdefault("teacher_processing_class", tiny_tokenizer)
        args = {
            "output_dir": str(tmp_path / name),
            "use_cpu": True,
            "report_to": [],
            "disable_tqdm": True,
            "save_strategy": "no",
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-3,
            "logits_loss_weight": 10.0,
            "attention_loss_weight": 100.0,
            # Most tests are about losses, whatever computes the logits.
            "allow_full_precision_student": True,
            **options,
        }
        return DistillationTrainer(
            model=student,
            teacher_model=teacher,
            args=DistillationConfig(**args),
            train_dataset=rows,
            data_collator=collator,
            **trainer_options,
        )

    return make
