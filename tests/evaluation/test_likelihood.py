import math

import pytest
import torch
from datasets import Dataset
from transformers import LlamaForCausalLM

from hf_bitdistill.data import load_corpus, pack_corpus
from hf_bitdistill.evaluation import perplexity


TEXTS = ["the old stone bridge .", "bread before the sun rises , every morning .", "a robot waters a plant ."] * 3


@pytest.fixture
def model(tiny_llama_config):
    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_llama_config)


def test_perplexity_by_hand(model, tiny_tokenizer):
    stream = [token for text in TEXTS for token in [*tiny_tokenizer(text)["input_ids"], 2]]
    total, count = 0.0, 0
    for start in range(0, len(stream), 16):
        block = stream[start : start + 16]
        for i in range(1, len(block)):
            with torch.no_grad():
                logits = model.eval()(input_ids=torch.tensor([block[:i]])).logits[0, -1]
            total -= logits.log_softmax(-1)[block[i]].item()
            count += 1
    model.train()
    for batch_size in (1, 4):
        result = perplexity(model, tiny_tokenizer, TEXTS, 16, batch_size, progress=False)
        assert result["tokens"] == count
        assert result["nll_per_token"] == pytest.approx(total / count, rel=1e-5)
        assert result["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    assert model.training


def test_texts_rows_and_blocks_agree(model, tiny_tokenizer):
    dataset = Dataset.from_dict({"text": TEXTS})
    expected = perplexity(model, tiny_tokenizer, TEXTS, 16, progress=False)
    packed = pack_corpus(dataset, tiny_tokenizer, 16, drop_remainder=False)
    streaming = pack_corpus(dataset.to_iterable_dataset(), tiny_tokenizer, 16, drop_remainder=False)
    blocks = packed["input_ids"][:]
    for items in (dataset, iter(TEXTS), packed, streaming, packed.with_format("torch"), blocks):
        assert perplexity(model, tiny_tokenizer, items, 16, progress=False) == pytest.approx(expected)
    two = perplexity(model, tiny_tokenizer, TEXTS, 16, max_blocks=2, progress=False)
    assert two["tokens"] == 30


def test_uniform_model_has_the_vocabulary_as_its_perplexity(model, tiny_tokenizer):
    torch.nn.init.zeros_(model.lm_head.weight)
    result = perplexity(model, tiny_tokenizer, "one text only , as a string .", 8, progress=False)
    assert result["perplexity"] == pytest.approx(384, rel=1e-5)


def test_bad_input(model, tiny_tokenizer):
    for nothing in ([], [""], [[5]]):
        with pytest.raises(ValueError, match="no token to score"):
            perplexity(model, tiny_tokenizer, nothing, 8, progress=False)
    with pytest.raises(TypeError, match="not int"):
        perplexity(model, tiny_tokenizer, [3, 4], 8, progress=False)
    with pytest.raises(TypeError, match="rows must have"):
        perplexity(model, tiny_tokenizer, [{"content": "a"}], 8, progress=False)
    with pytest.raises(ValueError, match="block_size"):
        perplexity(model, tiny_tokenizer, TEXTS, 1, progress=False)
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("inf")
    with pytest.raises(FloatingPointError, match="losses are not finite"):
        perplexity(model, tiny_tokenizer, TEXTS, 8, progress=False)


def test_a_real_model_reads_its_own_kind_of_text_best(shared_dir):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shared_dir / "models" / "stories260K"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    story = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    story = tokenizer(f"{tokenizer.bos_token}{story}", add_special_tokens=False)["input_ids"]
    corpus = load_corpus(shared_dir / "data" / "corpus", "validation", streaming=True)
    own = perplexity(model, tokenizer, [story], 64, progress=False)["perplexity"]
    other = perplexity(model, tokenizer, corpus, 64, max_blocks=8, progress=False)["perplexity"]
    assert own < 10 < other


def test_blocks_that_do_not_fit_the_model(model, tiny_tokenizer):
    good = [3] * 10
    with pytest.raises(ValueError, match=r"block 2 has 257 tokens and the model's context is 256"):
        perplexity(model, tiny_tokenizer, [good, good, [3] * 257], batch_size=2, progress=False)
    with pytest.raises(ValueError, match=r"block 1: token 4 is 384, and the embedding has 384 rows"):
        perplexity(model, tiny_tokenizer, [good, [3, 3, 3, 3, 384]], progress=False)
