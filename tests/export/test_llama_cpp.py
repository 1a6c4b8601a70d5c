"""Mainline llama.cpp reads what is written, cuts text into the same tokens and computes nearly the same."""

import numpy as np
import pytest
import torch
from tokenizers import Regex, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_bitdistill.export import export_gguf


llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python (the extra `interop`)")

TEXTS = [
    "the little robot waters 1234 plants, doesn't it?",
    "  two  spaces\nand lines\n\n\tand a tab ",
    "Ünïcode: naïve café ✓ 日本語 — “quotes” 12,5 %",
]


def load(file, context=64):
    return llama_cpp.Llama(str(file), n_ctx=context, n_batch=context, logits_all=True, verbose=False, n_threads=1)


STUDENTS = {
    "bitnet": ("llama", {"weight_granularity": "row"}, {}, "tq2_0"),
    "bitnet, tq1_0": ("llama", {}, {}, "tq1_0"),
    "bitnet, another epsilon, a projection kept": (
        "llama",
        {"sub_norm_eps": 1e-3, "modules_to_not_convert": ["layers.1.mlp.down_proj"]},
        {},
        "q2_0",
    ),
    "bitnet, groups": ("llama", {"weight_granularity": "group", "group_size": 128}, {}, "tq2_0"),
    "llama": ("llama", {"sub_norm": "none", "weight_granularity": "row"}, {"tie_word_embeddings": False}, "tq2_0"),
    "rows of 96": ("llama", {}, {"hidden_size": 96, "intermediate_size": 160}, "tq2_0"),
    "qwen2": ("qwen2", {"sub_norm": "none"}, {"vocab_size": 390}, "tq2_0"),
    "qwen3": ("qwen3", {"sub_norm": "none"}, {"head_dim": 64}, "f16"),
}


@pytest.mark.parametrize("case", STUDENTS)
def test_logits(case, save_student, tokens, tmp_path):
    """Activations are rounded in other groups there: logits differ by about as much as rounding changes them."""
    model_type, options, overrides, kind = STUDENTS[case]
    folder = save_student(model_type, options, **overrides)
    model = load(export_gguf(folder, tmp_path / "out.gguf", kind, "f16").path)
    model.eval(tokens)
    found = torch.from_numpy(np.array(model.scores[: len(tokens)]))
    student = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = student(torch.tensor([tokens])).logits[0]
    difference = (found - expected).abs() / expected.std()
    assert difference.median() < 0.05, difference.median()
    assert (found.argmax(-1) == expected.argmax(-1)).float().mean() > 0.7


def test_a_text(save_student, tmp_path):
    folder = save_student()
    model = load(export_gguf(folder, tmp_path / "out.gguf").path)
    answer = model.create_completion("the little robot", max_tokens=8, temperature=0.0)
    count = len(AutoTokenizer.from_pretrained(folder)("the little robot")["input_ids"])
    assert answer["usage"] == {"prompt_tokens": count, "completion_tokens": 8, "total_tokens": count + 8}


def test_tokens(save_student, tmp_path):
    folder = save_student()
    model = load(export_gguf(folder, tmp_path / "out.gguf").path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert model.tokenize(text.encode(), add_bos=False) == tokenizer(text)["input_ids"], text


@pytest.mark.parametrize("digits", ["1", "1,3"])
def test_tokens_of_other_pre_tokenizers(digits, save_student, tmp_path):
    """Those of Qwen2 and of Llama 3 (which takes whole pieces)."""
    folder = save_student()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    number = r"\p{N}" if digits == "1" else r"\p{N}{1,3}"
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBER| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ).replace("NUMBER", number)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.backend_tokenizer.model.ignore_merges = digits == "1,3"
    tokenizer.save_pretrained(folder)
    model = load(export_gguf(folder, tmp_path / "out.gguf").path)
    assert model.metadata["tokenizer.ggml.pre"] == ("qwen2" if digits == "1" else "llama-bpe")
    for text in TEXTS:
        assert model.tokenize(text.encode(), add_bos=False) == tokenizer(text)["input_ids"], text


def test_tokens_of_pieces(save_student, tmp_path, shared_dir):
    """A real tokenizer of SentencePiece's kind, with a student as large as it needs."""
    folder = save_student(vocab_size=512)
    tokenizer = AutoTokenizer.from_pretrained(shared_dir / "models/stories260K")
    tokenizer.save_pretrained(folder)
    model = load(export_gguf(folder, tmp_path / "out.gguf").path)
    for text in [*TEXTS, "Once upon a time, there was a little girl named Lily."]:
        assert model.tokenize(text.encode(), add_bos=True) == tokenizer(text)["input_ids"], text
