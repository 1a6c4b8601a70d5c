"""What users of other trainers expect: a student by its name, datasets of conversations, and no silence about a forgotten config."""

import logging

import pytest
import torch
from datasets import Dataset

from hf_bitdistill import BitNetConfig, apply_bitnet, pack
from hf_bitdistill.modeling.surgery import is_student
from hf_bitdistill.training import DistillationConfig, DistillationTrainer


TEMPLATE = (
    "{% for message in messages %}{{ '<s>' + message['role'] + ':' + message['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant:' }}{% endif %}"
)
OFF = {"logits_loss_weight": 0, "attention_loss_weight": 0}
CHATS = [
    [{"role": "user", "content": "a plant ?"}, {"role": "assistant", "content": "near the window ."}],
    [{"role": "user", "content": "who ?"}, {"role": "assistant", "content": "nobody remembers ."}],
]


@pytest.fixture
def train(tmp_path, tiny_tokenizer):
    """`train(model, teacher=None, **options)`: a `DistillationTrainer` with nothing but what is given."""

    def make(
        model, teacher=None, rows=None, eval_dataset=None, processing_class=tiny_tokenizer, collator=None, **options
    ):
        args = {
            "use_cpu": True,
            "report_to": [],
            "disable_tqdm": True,
            "save_strategy": "no",
            "max_steps": 1,
            **options,
        }
        return DistillationTrainer(
            model,
            teacher,
            DistillationConfig(str(tmp_path / "run"), **args),
            train_dataset=rows,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=collator,
        )

    return make


@pytest.fixture
def warnings(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("hf_bitdistill"), "propagate", True)
    caplog.set_level(logging.WARNING)
    return lambda: " ".join(record.getMessage() for record in caplog.records)


def test_full_precision_student_of_a_teacher_is_refused(make_model, train, lm_rows, warnings):
    with pytest.raises(ValueError, match=r"LlamaForCausalLM is in full precision.*allow_full_precision_student=True"):
        train(make_model(0), make_model(1), lm_rows)
    train(make_model(0), make_model(1), lm_rows, allow_full_precision_student=True)
    train(apply_bitnet(make_model(0), BitNetConfig()), make_model(1), lm_rows)
    assert "full precision" not in warnings()
    # Fine-tuning alone is the way to a teacher.
    train(make_model(0), None, lm_rows, **OFF)
    assert "is in full precision" in warnings()


def test_student_by_name(make_model, train, lm_rows, tmp_path, tiny_tokenizer, warnings):
    base = tmp_path / "base"
    make_model(0).save_pretrained(base)
    tiny_tokenizer.save_pretrained(base)
    trainer = train(str(base), make_model(1), lm_rows, processing_class=None, attention_loss_weight=0)
    assert is_student(trainer.model) and "it becomes a ternary student" in warnings()
    assert trainer.processing_class.get_vocab() == tiny_tokenizer.get_vocab()
    assert trainer.model.lm_head.weight.dtype == torch.float32
    trainer.train()
    trainer.save_model(tmp_path / "student")
    again = train(tmp_path / "student", make_model(1), lm_rows, attention_loss_weight=0)
    for one, other in zip(again.model.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(one, other)
    pack(trainer.model).save_pretrained(tmp_path / "packed")
    with pytest.raises(ValueError, match="packed and cannot be trained"):
        train(tmp_path / "packed", make_model(1), lm_rows)
    with pytest.raises(OSError):
        train(str(tmp_path / "nothing"), make_model(1), lm_rows)


def test_classifier_by_name(make_model, train, class_rows, tmp_path):
    make_model(0, classes=3).save_pretrained(tmp_path / "base")
    trainer = train(tmp_path / "base", None, class_rows, **OFF)
    assert trainer.head == "sequence_classification" and is_student(trainer.model)


@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_conversations(column, make_model, train, tiny_tokenizer):
    tiny_tokenizer.chat_template = TEMPLATE
    student = apply_bitnet(make_model(0), BitNetConfig())
    dataset = Dataset.from_dict({column: CHATS})
    trainer = train(student, make_model(1), dataset, eval_dataset={"chats": dataset}, attention_loss_weight=0)
    row = trainer.train_dataset[0]
    learned = [token for token in row["labels"] if token != -100]
    assert tiny_tokenizer.decode(learned) == "near the window .</s>"
    assert tiny_tokenizer.decode(row["input_ids"]) == "<s>user:a plant ?</s><s>assistant:near the window .</s>"
    trainer.train()
    assert trainer.state.log_history[-1]["train_loss"] > 0 and "eval_chats_loss" in trainer.evaluate()


def test_prompts_and_completions(make_model, train, tiny_tokenizer, warnings):
    student = apply_bitnet(make_model(0), BitNetConfig())
    rows = [{"prompt": "a warm", "completion": " film ."}, {"prompt": "no", "completion": " ideas " * 30}]
    trainer = train(student, make_model(1), rows, attention_loss_weight=0, max_sequence_length=20)
    (row,) = trainer.train_dataset
    assert tiny_tokenizer.decode([token for token in row["labels"] if token != -100]) == " film .</s>"
    assert (
        "train_dataset: 1 of 2 rows are left out (1 longer than max_length; max_sequence_length is 20)" in warnings()
    )
    trainer.train()


def test_conversations_that_cannot_be_encoded(make_model, train, lm_rows, tiny_tokenizer):
    student = apply_bitnet(make_model(0), BitNetConfig())
    dataset = Dataset.from_dict({"messages": CHATS})
    with pytest.raises(ValueError, match="no chat template"):
        train(student, None, dataset, **OFF)
    with pytest.raises(ValueError, match="train_dataset has messages: pass processing_class"):
        train(student, None, dataset, processing_class=None, **OFF)
    tiny_tokenizer.chat_template = TEMPLATE
    with pytest.raises(ValueError, match="is streamed: encode it before"):
        train(student, None, dataset.to_iterable_dataset(), **OFF)
    # A collator that reads the columns itself gets them.
    seen = []

    def collator(rows):
        seen.extend(row["messages"] for row in rows)
        ids = torch.tensor([lm_rows[0]["input_ids"]] * len(rows))
        return {"input_ids": ids, "labels": ids}

    trainer = train(student, None, dataset, collator=collator, remove_unused_columns=False, **OFF)
    trainer.train()
    assert seen and "input_ids" not in trainer.train_dataset.column_names
