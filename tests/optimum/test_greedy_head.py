"""Greedy decoding with an 8-bit head, which reads half of it for most rows, chooses the tokens that the whole head gives."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_bitdistill import BitNetConfig, apply_bitnet, pack
from hf_bitdistill.runtime import matrices
from hf_bitdistill.runtime.native_decoder import load_library
from optimum.bitnet import BitNetModelForCausalLM
from students import make_student


pytestmark = pytest.mark.usefixtures("native_decoder")

ALL = {"output_logits": True, "return_dict_in_generate": True}


@pytest.fixture(autouse=True)
def small_heads_are_split_too(monkeypatch):
    monkeypatch.setattr(matrices, "SPLIT_FROM", 0)


@pytest.fixture
def native(pair, tmp_path):
    def make(**overrides):
        sizes = {"hidden_size": 128, "vocab_size": 1500, "max_position_embeddings": 96, **overrides}
        pair(sizes.pop("model_type", "llama"), **sizes)
        return BitNetModelForCausalLM.from_pretrained(next(tmp_path.iterdir()), head_bits=8)

    return make


@pytest.fixture
def seen(monkeypatch):
    """Whether each pass asked for the greatest alone, and its logits."""
    passes = []
    forward = BitNetModelForCausalLM.forward

    def spy(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        passes.append((kwargs.get("only_greatest", False), output.logits.clone()))  # (processors may write into them)
        return output

    monkeypatch.setattr(BitNetModelForCausalLM, "forward", spy)
    return passes


def prompts(rows, length=6, vocab=1500):
    return torch.randint(3, vocab, (rows, length), generator=torch.Generator().manual_seed(rows))


@pytest.mark.parametrize("rows", [1, 3, 20])
@pytest.mark.parametrize("tied", [True, False])
def test_tokens_are_those_of_the_whole_head(native, seen, rows, tied):
    model = native(tie_word_embeddings=tied)
    library = load_library()
    try:
        for isa in library.supported_isas:
            library.set_isa(isa)
            found = model.generate(prompts(rows), max_new_tokens=6, do_sample=False)
            assert seen and all(only for only, _ in seen)
            seen.clear()
            expected = model.generate(prompts(rows), max_new_tokens=6, do_sample=False, **ALL)
            assert torch.equal(found, expected.sequences)
            assert seen and not any(only for only, _ in seen)
            assert all(torch.isfinite(logits).all() for logits in expected.logits)
            seen.clear()
    finally:
        library.set_isa(library.supported_isas[0])


@pytest.mark.parametrize("candidates", [1, 4, 9, 20])
def test_prompt_lookup_reads_what_it_needs(native, seen, candidates):
    model = native(max_position_embeddings=192)
    tokens = prompts(1, 7).repeat(1, 8)  # there is something to look up
    options = {"max_new_tokens": 60, "do_sample": False, "eos_token_id": None}
    expected = model.generate(tokens, **options, **ALL).sequences
    library = load_library()
    try:
        for isa in library.supported_isas:
            library.set_isa(isa)
            seen.clear()
            found = model.generate(tokens, prompt_lookup_num_tokens=candidates, **options)
            assert torch.equal(found, expected)
            assert all(only for only, _ in seen)
            assert any(logits.shape[1] > 1 for _, logits in seen)
    finally:
        library.set_isa(library.supported_isas[0])


def test_a_model_that_drafts_is_not_asked_for_the_greatest(native, pair, seen):
    model = native()
    packed, _ = pair("qwen2", hidden_size=128, vocab_size=1500, max_position_embeddings=96)  # in transformers
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    expected = model.generate(prompts(1), **options, **ALL).sequences
    assert torch.equal(model.generate(prompts(1), assistant_model=packed, **options), expected)


def test_a_head_that_is_stored_in_8_bits(tmp_path, seen):
    student = make_student("llama", hidden_size=128, vocab_size=1500, max_position_embeddings=96)
    pack(student, table_bits=8).save_pretrained(tmp_path)
    model = BitNetModelForCausalLM.from_pretrained(tmp_path)
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    found = model.generate(prompts(3), **options)
    assert all(only for only, _ in seen)
    assert torch.equal(found, model.generate(prompts(3), **options, **ALL).sequences)


def test_small_heads_stay_whole(native, seen, monkeypatch):
    monkeypatch.setattr(matrices, "SPLIT_FROM", 1 << 20)
    native().generate(prompts(1), max_new_tokens=3, do_sample=False)
    assert all(only and torch.isfinite(logits).all() for only, logits in seen)


@torch.no_grad()
def test_what_is_given_is_what_it_is(native):
    model = native()
    tokens = prompts(1, 40)
    whole, part = model(tokens).logits, model(tokens, logits_to_keep=1, only_greatest=True).logits
    kept = part != -math.inf
    assert torch.equal(part[kept], whole[:, -1:][kept])
    assert torch.equal(part.argmax(-1), whole[:, -1:].argmax(-1))
    labels = tokens.clone()
    assert torch.equal(model(tokens, labels=labels, only_greatest=True).loss, model(tokens, labels=labels).loss)


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "top_k": 5},
        {"do_sample": True, "top_p": 0.5, "top_k": 0},
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2},
        {"suppress_tokens": [5]},
        {"num_beams": 2},
        {"output_scores": True, "return_dict_in_generate": True},
        {"prompt_lookup_num_tokens": 2, "repetition_penalty": 1.3},
        {"prompt_lookup_num_tokens": 2, "do_sample": True},
        {"prompt_lookup_num_tokens": 2, "output_logits": True, "return_dict_in_generate": True},
    ],
    ids=lambda options: " ".join(options),
)
def test_whatever_looks_at_logits_sees_all(native, seen, options):
    native().generate(prompts(1), max_new_tokens=5, **{"do_sample": False, **options})
    assert seen
    assert all(not only and torch.isfinite(logits).all() for only, logits in seen)


def test_a_cap_may_make_logits_equal(native, seen):
    model = native(model_type="gemma2", final_logit_softcapping=1e-3)
    found = model.generate(prompts(2), max_new_tokens=8, do_sample=False)
    assert all(torch.isfinite(logits).all() for _, logits in seen)
    assert torch.equal(found, model.generate(prompts(2), max_new_tokens=8, do_sample=False, **ALL).sequences)


def test_a_trained_model(shared_dir, tmp_path, seen):
    student = apply_bitnet(AutoModelForCausalLM.from_pretrained(shared_dir / "models" / "stories260K"), BitNetConfig())
    pack(student).save_pretrained(tmp_path)
    model = BitNetModelForCausalLM.from_pretrained(tmp_path, head_bits=8)
    tokens = prompts(4, 4, student.config.vocab_size)
    options = {"max_new_tokens": 200, "do_sample": False, "eos_token_id": None}
    found = model.generate(tokens, **options)
    assert any((logits == -math.inf).any() for _, logits in seen)
    expected = model.generate(tokens, **options, **ALL).sequences
    assert torch.equal(found, expected)
    for row, text in zip(tokens, expected, strict=True):
        seen.clear()
        assert torch.equal(model.generate(row[None], prompt_lookup_num_tokens=5, **options)[0], text)
        assert any(logits.shape[1] > 1 and (logits == -math.inf).any() for _, logits in seen)
