"""Continual pre-training with the stock `Trainer`: it learns, saves, and resumes exactly."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

from hf_bitdistill import BitNetConfig, apply_bitnet, pack_corpus
from hf_bitdistill.data import collate


@pytest.fixture
def blocks(tiny_tokenizer):
    from datasets import Dataset

    texts = [f"the little robot waters plant number {i} near the window ." for i in range(60)]
    return pack_corpus(Dataset.from_dict({"text": texts}), tiny_tokenizer, block_size=32)


def make_trainer(folder, blocks, tokenizer, config, steps, streaming=False, **options):
    set_seed(0)
    arguments = TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=4, learning_rate=3e-3, lr_scheduler_type="constant",
        logging_steps=1, save_steps=3, report_to=[], disable_tqdm=True, use_cpu=True, seed=0, **options,
    )  # fmt: skip
    # A model keeps the config it is given, and apply_bitnet writes into it.
    model = apply_bitnet(LlamaForCausalLM(copy.deepcopy(config)), BitNetConfig())
    dataset = blocks.to_iterable_dataset() if streaming else blocks
    return Trainer(
        model, arguments, train_dataset=dataset, data_collator=collate(tokenizer), processing_class=tokenizer
    )


def losses(trainer):
    return {row["step"]: row["loss"] for row in trainer.state.log_history if "loss" in row}


def test_it_learns_and_resumes_exactly(tmp_path, blocks, tiny_tokenizer, tiny_llama_config):
    whole = make_trainer(tmp_path / "whole", blocks, tiny_tokenizer, tiny_llama_config, steps=6)
    whole.train()
    assert losses(whole)[6] < losses(whole)[1]

    make_trainer(tmp_path / "parts", blocks, tiny_tokenizer, tiny_llama_config, steps=3).train()
    resumed = make_trainer(tmp_path / "parts", blocks, tiny_tokenizer, tiny_llama_config, steps=6)
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed) == losses(whole)
    for (name, first), second in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(first, second), name

    resumed.save_model(str(tmp_path / "saved"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    tokens = torch.tensor([blocks[0]["input_ids"]])
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, resumed.model.eval()(tokens).logits)


@pytest.mark.parametrize("options", [{"gradient_checkpointing": True}, {"bf16": True}])
def test_checkpointing_and_bfloat16(tmp_path, blocks, tiny_tokenizer, tiny_llama_config, options):
    plain = make_trainer(tmp_path / "plain", blocks, tiny_tokenizer, tiny_llama_config, steps=2)
    plain.train()
    other = make_trainer(tmp_path / "other", blocks, tiny_tokenizer, tiny_llama_config, steps=2, **options)
    other.train()
    assert losses(other)[2] == pytest.approx(losses(plain)[2], rel=1e-5 if "bf16" not in options else 2e-2)


def test_streaming(tmp_path, blocks, tiny_tokenizer, tiny_llama_config):
    trainer = make_trainer(tmp_path, blocks, tiny_tokenizer, tiny_llama_config, steps=3, streaming=True)
    trainer.train()
    assert losses(trainer)[3] < losses(trainer)[1]
