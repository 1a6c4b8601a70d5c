"""Continual pre-training with the stock `Trainer`: it learns, saves, and resumes exactly."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig, MixtralConfig, Trainer, TrainingArguments, set_seed

from hf_bitdistill import BitNetConfig, apply_bitnet, pack_corpus
from hf_bitdistill.data import collate


@pytest.fixture
def blocks(tiny_tokenizer):
    from datasets import Dataset

    texts = [f"the little robot waters plant number {i} near the window ." for i in range(60)]
    return pack_corpus(Dataset.from_dict({"text": texts}), tiny_tokenizer, block_size=32)


def make_trainer(folder, blocks, tokenizer, config, steps, **options):
    set_seed(0)
    arguments = TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=4, learning_rate=3e-3, lr_scheduler_type="constant",
        logging_steps=1, save_steps=3, report_to=[], disable_tqdm=True, use_cpu=True, seed=0, **options,
    )  # fmt: skip
    # A model keeps the config it is given, and apply_bitnet writes into it.
    model = apply_bitnet(AutoModelForCausalLM.from_config(copy.deepcopy(config)), BitNetConfig())
    return Trainer(
        model, arguments, train_dataset=blocks, data_collator=collate(tokenizer), processing_class=tokenizer
    )


def losses(trainer):
    return {row["step"]: row["loss"] for row in trainer.state.log_history if "loss" in row}


SIZES = {
    "vocab_size": 384, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 256, "pad_token_id": 0,
}  # fmt: skip
# Their weights have other names in files of transformers: GPT-NeoX's head, Mixtral's experts, which are fused in memory too.
OTHERS = [GPTNeoXConfig(**SIZES), MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=4)]


@pytest.mark.parametrize("config", [None, *OTHERS], ids=["llama", "gpt_neox", "mixtral"])
def test_it_learns_and_resumes_exactly(config, tmp_path, blocks, tiny_tokenizer, tiny_llama_config):
    config = config or tiny_llama_config
    whole = make_trainer(tmp_path / "whole", blocks, tiny_tokenizer, config, steps=6)
    whole.train()
    assert losses(whole)[6] < losses(whole)[1]

    make_trainer(tmp_path / "parts", blocks, tiny_tokenizer, config, steps=3).train()
    resumed = make_trainer(tmp_path / "parts", blocks, tiny_tokenizer, config, steps=6)
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


def stream(tokenizer, documents, **options):
    """Blocks packed while they are trained on; from two shards, and a few documents at a time."""
    from datasets import IterableDataset

    dataset = IterableDataset.from_generator(documents, gen_kwargs={"shards": ["green", "dry"]})
    return pack_corpus(dataset, tokenizer, block_size=32, batch_size=2, **options)


def test_streaming_resumes_exactly(tmp_path, tiny_tokenizer, tiny_llama_config):
    def documents(shards):
        for kind in shards:
            for index in range(9):
                yield {"text": f"the little robot waters {kind} plant number {index} near the window ."}

    blocks = stream(tiny_tokenizer, documents)
    number = len(list(blocks))
    # Six steps of four blocks: through both shards and into the second epoch; the checkpoint is in the first.
    assert 4 * 3 < number < 4 * 6

    def train(folder, steps, resume=None):
        trainer = make_trainer(tmp_path / folder, blocks, tiny_tokenizer, tiny_llama_config, steps=steps)
        assert trainer.args.dataloader_num_workers == 0
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = train("whole", 6)
    assert losses(whole)[6] < losses(whole)[1]
    train("parts", 3)
    resumed = train("parts", 6, resume=True)
    assert resumed.state.epoch == whole.state.epoch > 1
    assert len(losses(whole)) == 6 and losses(resumed) == losses(whole)
    for (name, first), second in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(first, second), name


def test_streaming_reads_no_more_than_it_needs(tmp_path, tiny_tokenizer, tiny_llama_config):
    """A corpus that never ends."""
    text, read = "the little robot waters a green plant near the window .", []

    def documents(shards):
        while True:
            read.append(text)
            yield {"text": text}

    trainer = make_trainer(tmp_path, stream(tiny_tokenizer, documents), tiny_tokenizer, tiny_llama_config, steps=3)
    trainer.train()
    assert losses(trainer)[3] < losses(trainer)[1]
    needed = 3 * 4 * 32 / (len(tiny_tokenizer.encode(text)) + 1)
    # Trainer fetches a step in advance, to know when an epoch ends.
    assert needed <= len(read) <= 2 * needed
