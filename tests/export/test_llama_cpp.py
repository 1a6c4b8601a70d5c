"""Mainline llama.cpp reads what is written, cuts text into the same tokens and computes nearly the same."""

import numpy as np
import pytest
import torch
from tokenizers import Regex, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_bitdistill import BitNetConfig, pack
from hf_bitdistill.export import export_gguf
from hf_bitdistill.quickstart import TEACHER_FOLDER
from hf_bitdistill.quickstart.corpus import STANDARD_LIBRARY, extract, split_texts


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


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The quickstart's base model as a student, trained for seconds on docstrings; its folder, and tokens of docstrings that were held out."""
    tokenizer = AutoTokenizer.from_pretrained(TEACHER_FOLDER)
    documents = extract([STANDARD_LIBRARY], max_bytes=4_000_000)
    text, held_out = (
        tokenizer("\n\n".join(split_texts(documents, split)))["input_ids"] for split in ("train", "test")
    )
    torch.manual_seed(0)
    config = BitNetConfig(weight_granularity="row")
    student = AutoModelForCausalLM.from_pretrained(
        TEACHER_FOLDER, quantization_config=config, dtype=torch.float32
    ).train()
    optimizer = torch.optim.AdamW(student.parameters(), 1e-3)
    for batch in torch.tensor(text[: 60 * 512]).view(60, 4, 128):
        student(batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("trained")
    pack(student).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, held_out


@torch.no_grad()
def test_a_trained_student(trained, tmp_path):
    """What is promised: at 90 % of the positions of greedy texts of 64 tokens the same choice, and a perplexity within 1 %."""
    folder, held_out = trained
    ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs = load(export_gguf(folder, tmp_path / "out.gguf").path, 256)

    def scores(tokens):
        theirs.reset()
        theirs.eval(tokens)
        return torch.from_numpy(np.array(theirs.scores[: len(tokens)]))

    same = []
    for start in range(0, 4 * 100, 100):
        prompt = torch.tensor([held_out[start : start + 16]])
        text = ours.generate(prompt, max_new_tokens=64, do_sample=False, eos_token_id=None)[0]
        same.append(scores(text.tolist())[15:-1].argmax(-1) == text[16:])
    assert len(torch.cat(same)) == 4 * 64
    assert torch.cat(same).float().mean() >= 0.9, torch.cat(same).float().mean()

    losses = []
    for window in torch.tensor(held_out[: 8 * 256]).view(8, 256):
        logits = torch.stack([ours(window[None]).logits[0], scores(window.tolist())])[:, :-1]
        losses.append(
            torch.nn.functional.cross_entropy(logits.transpose(1, 2), window[1:].expand(2, -1), reduction="none").mean(
                1
            )
        )
    mine, other = torch.stack(losses).mean(0).exp()
    assert mine < 100  # (of 2048 for one that knows nothing)
    assert abs(other / mine - 1) < 0.01, (mine, other)
