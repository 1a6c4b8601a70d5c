"""Attention over many pages of the cache, and over keys and values of 8 bits."""

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM
from transformers.masking_utils import eager_mask
from transformers.models.llama.modeling_llama import eager_attention_forward

from architectures import random_tokens
from hf_bitdistill import BitNetConfig, apply_bitnet, pack
from hf_bitdistill.runtime import load_decoder
from hf_bitdistill.runtime.native_decoder import load_library
from students import assert_close, open_student


pytestmark = pytest.mark.usefixtures("native_decoder")

# More than one stretch of 512 positions and several pages of 64 in the next.
LONG = {"max_position_embeddings": 1024, "num_hidden_layers": 2, "head_dim": 16}


def logits(decoder, tokens, sizes, cache=None):
    """Of all tokens of one text, given in pieces of these sizes."""
    cache = cache or decoder.new_cache(1)
    pieces = tokens.split(sizes)
    return torch.cat([decoder.forward(cache, p, torch.zeros_like(p), torch.arange(len(p))) for p in pieces])


def rounded(x):
    """`[..., D]` vectors as 8-bit integers times a scale each."""
    scale = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-30) / 127
    return (x / scale).round() * scale


def eight_bit_attention(module, query, key, value, *args, **kwargs):
    return eager_attention_forward(module, rounded(query), rounded(key), rounded(value), *args, **kwargs)


AttentionInterface.register("eight_bit_cache", eight_bit_attention)
AttentionMaskInterface.register("eight_bit_cache", eager_mask)


@torch.no_grad()
def test_many_pages(saved):
    student, folder = saved("qwen3", use_sliding_window=True, sliding_window=515, max_window_layers=1, **LONG)
    decoder = load_decoder(open_student(folder), head_bits=32, kv_dtype="float32")
    tokens = random_tokens(1, 700)
    assert_close(logits(decoder, tokens[0], [700]), student(tokens).logits[0])


@pytest.mark.parametrize(
    "model_type, count, options",
    [
        ("llama", 40, {}),
        ("mistral", 90, {"sliding_window": 17, "head_dim": 20, "max_position_embeddings": 128}),
        ("qwen2", 700, {**LONG, "use_sliding_window": True, "sliding_window": 515, "max_window_layers": 1}),
    ],
)
@torch.no_grad()
def test_eight_bits_are_what_torch_computes_with_rounded_keys_and_values(saved, model_type, count, options):
    student, folder = saved(model_type, **options)
    tokens = random_tokens(1, count)
    exact = student(tokens).logits[0]
    student.set_attn_implementation("eight_bit_cache")
    decoder = load_decoder(open_student(folder), head_bits=32, kv_dtype="int8")
    got = logits(decoder, tokens[0], [count // 2, 1, count - count // 2 - 1])
    wanted = student(tokens).logits[0]

    def distance(expected):
        return ((got - expected).abs().median() / expected.std()).item()

    # Not nothing: an element on the border between two integers may be rounded either way.
    assert distance(wanted) < 1e-2 and distance(exact) < 5e-2
    assert distance(wanted) < distance(exact) / 2


@torch.no_grad()
def test_memory(saved):
    _, folder = saved(**{**LONG, "head_dim": 64})
    sizes = {}
    for kv_dtype in ("float32", "float16", "int8"):
        decoder = load_decoder(open_student(folder), kv_dtype=kv_dtype)
        cache = decoder.new_cache(1)
        logits(decoder, random_tokens(1, 130)[0], [130], cache)
        sizes[kv_dtype] = cache.nbytes
    assert sizes["float32"] == 2 * sizes["float16"]
    assert sizes["int8"] / sizes["float16"] == (64 + 4) / (2 * 64)  # with a float32 scale


@pytest.mark.parametrize("kv_dtype", ["float32", "float16", "int8"])
@torch.no_grad()
def test_a_row_depends_on_its_text_alone(saved, kv_dtype):
    """However the text is cut, whatever is beside it, on any number of threads, behind one stretch of positions and more, with windows that
    begin within one, with every instruction set."""
    options = {"use_sliding_window": True, "sliding_window": 530, "max_window_layers": 1, "num_attention_heads": 6}
    _, folder = saved("qwen2", **{**LONG, "head_dim": 40, "num_key_value_heads": 2}, **options)
    decoder = load_decoder(open_student(folder), kv_dtype=kv_dtype, num_threads=1)
    tokens, other = random_tokens(1, 600)[0], random_tokens(1, 40, seed=3)[0]
    last = torch.tensor([511, 512, 513, 540, 575, 576, 599])
    library = load_library()
    for isa in library.supported_isas:
        library.set_isa(isa)
        try:
            decoder.num_threads = 1
            whole = logits(decoder, tokens, [600])
            # Steps, with threads for their stretches, behind a prompt.
            for threads in (1, 3):
                decoder.num_threads = threads
                steps = logits(decoder, tokens[:580], [500, 3, *[1] * 77])
                assert torch.equal(steps, whole[:580]), (isa, threads)
            # Beside another text.
            cache = decoder.new_cache(2)
            sequences = torch.tensor([0] * 40 + [1] * 600)
            together = decoder.forward(cache, torch.cat([other, tokens]), sequences, 40 + last)
            assert torch.equal(together, whole[last]), isa
            # Cut back into another stretch, and copied.
            cache.truncate(1, 505)
            cache.reorder([1, 0, 1])
            rest = tokens[505:]
            sequences = torch.tensor([0] * 95 + [2] * 95)
            again = decoder.forward(cache, torch.cat([rest, rest]), sequences, torch.arange(190))
            assert torch.equal(again[:95], whole[505:]) and torch.equal(again[95:], whole[505:]), isa
        finally:
            library.set_isa(library.supported_isas[0])


@torch.no_grad()
def test_what_eight_bits_cost_a_trained_model(shared_dir, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(shared_dir / "models" / "stories260K", dtype=torch.float32)
    # All of its weights but one projection's stay as they were trained.
    names = [name for name, module in model.model.named_modules() if isinstance(module, torch.nn.Linear)]
    student = apply_bitnet(model, BitNetConfig(sub_norm="none", modules_to_not_convert=sorted(names)[:-1])).eval()
    pack(student, table_bits=32).save_pretrained(tmp_path)
    torch.manual_seed(0)
    tokens = student.generate(torch.tensor([[1]]), do_sample=True, max_new_tokens=400)[0]
    losses = {}
    for kv_dtype in ("float32", "int8"):
        decoder = load_decoder(open_student(tmp_path), head_bits=32, kv_dtype=kv_dtype)
        rows = logits(decoder, tokens, [len(tokens)])[:-1]
        losses[kv_dtype] = torch.nn.functional.cross_entropy(rows, tokens[1:]).item()
    assert abs(losses["int8"] / losses["float32"] - 1) < 5e-3, losses
