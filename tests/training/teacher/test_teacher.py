"""Teachers: loading by name, freezing, tokenizers that differ."""

import os

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from architectures import random_tokens, tiny_model
from hf_bitdistill.training import check_same_tokenizer, load_teacher


def other_tokenizer(tokenizer, **special):
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", **special}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def test_same_tokenizers_pass(tiny_tokenizer):
    check_same_tokenizer(tiny_tokenizer, other_tokenizer(tiny_tokenizer))
    check_same_tokenizer(tiny_tokenizer, other_tokenizer(tiny_tokenizer, pad_token="</s>"))

    class Processor:
        tokenizer = tiny_tokenizer

    check_same_tokenizer(Processor(), tiny_tokenizer)


def test_different_tokenizers_are_refused_by_token(tiny_tokenizer):
    swapped = tiny_tokenizer.backend_tokenizer.to_str()
    a, b = (tiny_tokenizer.convert_ids_to_tokens(i) for i in (300, 301))
    import json

    data = json.loads(swapped)
    data["model"]["vocab"][a], data["model"]["vocab"][b] = 301, 300
    teacher = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(data)), pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    assert len(teacher) == len(tiny_tokenizer)  # equal size proves nothing
    with pytest.raises(ValueError) as error:
        check_same_tokenizer(tiny_tokenizer, teacher)
    message = str(error.value)
    assert "2 ids differ" in message and f"id 300: student {a!r}, teacher {b!r}" in message
    assert "\n" not in message

    longer = other_tokenizer(tiny_tokenizer)
    longer.add_tokens(["<extra>"])
    with pytest.raises(ValueError, match=r"1 ids differ\): id \d+: student None, teacher '<extra>'"):
        check_same_tokenizer(tiny_tokenizer, longer)
    with pytest.raises(ValueError, match="differ in eos_token_id: 2 and 1"):
        check_same_tokenizer(tiny_tokenizer, other_tokenizer(tiny_tokenizer, eos_token="<s>"))


@pytest.mark.parametrize("classes", [None, 3])
def test_teacher_by_path(classes, make_model, make_trainer, lm_rows, class_rows, tiny_tokenizer, tmp_path):
    path = tmp_path / "teacher"
    original = make_model(1, classes)
    original.save_pretrained(path)
    tiny_tokenizer.save_pretrained(path)
    trainer = make_trainer(
        make_model(0, classes),
        None,
        class_rows if classes else lm_rows,
        teacher_model_name_or_path=str(path),
        teacher_model_init_kwargs={"dtype": "bfloat16"},
    )
    teacher = trainer.teacher
    assert type(teacher) is type(original)
    assert next(teacher.parameters()).dtype == torch.bfloat16
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    assert trainer.teacher_name == str(path)
    trainer.train_dataset = trainer.train_dataset[:2]
    trainer.args.max_steps = 1
    trainer.train()
    assert not teacher.training

    other = other_tokenizer(tiny_tokenizer)
    other.add_tokens(["<extra>"])
    other.save_pretrained(path)
    with pytest.raises(ValueError, match="different tokenizers"):
        make_trainer(make_model(0, classes), str(path), class_rows if classes else lm_rows)


def test_load_teacher_refuses(make_model, tmp_path):
    with pytest.raises(ValueError, match="apply to a teacher given by name"):
        load_teacher(make_model(0), "causal_lm", {"dtype": "bfloat16"})
    with pytest.raises(OSError):
        load_teacher(str(tmp_path / "nowhere"), "causal_lm")


def test_a_teacher_is_loaded_whole_on_every_process(make_model, tmp_path, monkeypatch):
    # Where the launcher asks for FSDP's frugal loading, only one process would get the weights.
    make_model(0).save_pretrained(tmp_path)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    seen = []
    load = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        AutoModelForCausalLM,
        "from_pretrained",
        lambda *args, **kwargs: seen.append(os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"]) or load(*args, **kwargs),
    )
    load_teacher(str(tmp_path), "causal_lm")
    assert seen == ["false"] and os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "true"


def test_an_adapter_is_a_teacher(tmp_path):
    """A `PeftModel`, or the folder of an adapter: transformers finds its base model."""
    from peft import LoraConfig, get_peft_model

    tiny_model("llama").save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    adapted = get_peft_model(base, LoraConfig(target_modules="all-linear", init_lora_weights=False)).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    tokens = random_tokens()
    expected = adapted(tokens).logits.detach()
    for teacher in (adapted, str(tmp_path / "adapter")):
        loaded = load_teacher(teacher, "causal_lm")
        assert torch.equal(loaded(tokens).logits, expected)
        assert not any(parameter.requires_grad for parameter in loaded.parameters())
