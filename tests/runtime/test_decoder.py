"""The native decoder against the online student in torch (float32)."""

import sys
import threading

import pytest
import torch

import warm
from architectures import random_tokens
from hf_bitdistill.architectures import NATIVE
from hf_bitdistill.runtime import ContextLengthError, LowRank, UnsupportedModelError, load_decoder
from hf_bitdistill.runtime import native_decoder as decoder_module
from students import VARIANTS, assert_close, open_student


pytestmark = pytest.mark.usefixtures("native_decoder")


def run(decoder, cache, rows, hidden=False):
    """Append `rows` (lists of token ids) to the sequences; outputs of every token, by row."""
    tokens = torch.cat([torch.as_tensor(row) for row in rows])
    sequences = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(row) for row in rows]))
    out = decoder.forward(cache, tokens, sequences, torch.arange(len(tokens)), hidden)
    return out.split([len(row) for row in rows])


@pytest.mark.parametrize("model_type, options", VARIANTS)
@torch.no_grad()
def test_logits(saved, model_type, options):
    student, folder = saved(model_type, **options)
    decoder = load_decoder(open_student(folder), head_bits=32, kv_dtype="float32")
    tokens = random_tokens(1, 23)
    expected = student(tokens).logits[0]
    assert_close(run(decoder, decoder.new_cache(1), [tokens[0]])[0], expected)
    # In pieces, then token by token.
    cache = decoder.new_cache(1)
    pieces = [run(decoder, cache, [piece])[0] for piece in tokens[0].split([9, 6, *[1] * 8])]
    assert_close(torch.cat(pieces), expected)
    assert cache.lengths == [23] and cache.nbytes > 0


@pytest.mark.parametrize(
    "options",
    [
        {"sub_norm": "all"},
        {"sub_norm": "none", "weight_granularity": "row"},
        {"weight_granularity": "group", "group_size": 64},
        {"modules_without_sub_norm": ["layers.1.mlp.down_proj"]},
        {"modules_to_not_convert": ["layers.0.mlp.down_proj", "layers.1.self_attn.k_proj", "layers.1.mlp.gate_proj"]},
    ],
)
@torch.no_grad()
def test_options_of_students(saved, options):
    student, folder = saved("qwen2", options=options, hidden_size=96, intermediate_size=150)
    decoder = load_decoder(open_student(folder), head_bits=32, kv_dtype="float32")
    tokens = random_tokens(1, 17)
    assert_close(run(decoder, decoder.new_cache(1), [tokens[0]])[0], student(tokens).logits[0])


@pytest.mark.parametrize(
    "model_type, kept",
    [
        ("phi3", "mlp.gate_up_proj"),
        ("bitnet", "mlp.down_proj"),
        ("gemma2", "self_attn.q_proj"),
        ("llama", "layers.0"),
        ("qwen3_moe", "experts.2"),
    ],
)
@torch.no_grad()
def test_projections_in_full_precision(saved, model_type, kept):
    student, folder = saved(model_type, options={"modules_to_not_convert": [kept]})
    decoder = load_decoder(open_student(folder), head_bits=32, kv_dtype="float32")
    assert not all(p.ternary for layer in decoder.spec.layers for p in layer.projections)
    tokens = random_tokens(1, 17)
    assert_close(run(decoder, decoder.new_cache(1), [tokens[0]])[0], student(tokens).logits[0])


@torch.no_grad()
def test_projections_in_full_precision_stay_as_stored(saved):
    """In 16 bits, whatever becomes of the head."""
    kept = {"modules_to_not_convert": ["layers.1.mlp.down_proj"]}
    sizes = {}
    for dtype in (torch.float32, torch.bfloat16):
        student, folder = saved(dtype=dtype, options=kept, mlp_bias=True)
        decoder = load_decoder(open_student(folder), head_bits=8, kv_dtype="float32")
        sizes[dtype] = decoder.weight_bytes
        weight = student.get_submodule("model.layers.1.mlp.down_proj").weight
        tokens = random_tokens(1, 17)
        assert_close(run(decoder, decoder.new_cache(1), [tokens[0]])[0], student.float()(tokens).logits[0], 0.05)
    assert sizes[torch.float32] - sizes[torch.bfloat16] == 2 * weight.numel()


def test_bytes_that_a_token_reads(saved, monkeypatch):
    monkeypatch.setenv("HF_BITDISTILL_DENSE", "0")
    sizes = {}
    for chosen in (1, 4):
        _, folder = saved("mixtral", num_experts_per_tok=chosen, intermediate_size=640)
        decoder = load_decoder(open_student(folder), head_bits=32)
        sizes[chosen] = decoder.weight_bytes, decoder.bytes_per_token
    assert sizes[4][0] == sizes[4][1] == sizes[1][0]
    # Three of four experts in two layers, 3 matrices of 640 * 48 weights in 2 bits each, a little more with scales.
    assert 1 <= (sizes[1][0] - sizes[1][1]) / (3 * 2 * 3 * 640 * 48 / 4) < 1.1


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
@torch.no_grad()
def test_keys_and_values_in_float16(saved, model_type):
    student, folder = saved(model_type)
    decoder = load_decoder(open_student(folder), head_bits=32, kv_dtype="float16")
    tokens = random_tokens(1, 17)
    assert_close(run(decoder, decoder.new_cache(1), [tokens[0]])[0], student(tokens).logits[0], 2e-2)


@torch.no_grad()
def test_ragged_batches(saved):
    student, folder = saved("smollm3")
    decoder = load_decoder(open_student(folder), head_bits=32, kv_dtype="float32")
    rows = [random_tokens(1, n, seed=n)[0] for n in (7, 1, 12)]
    cache = decoder.new_cache(3)
    first = run(decoder, cache, [row[:n] for row, n in zip(rows, (3, 0, 12), strict=True)])
    second = run(decoder, cache, [row[n:] for row, n in zip(rows, (3, 0, 12), strict=True)])
    assert cache.lengths == [7, 1, 12]
    for row, a, b in zip(rows, first, second, strict=True):
        assert_close(torch.cat([a, b]), student(row[None]).logits[0])


@torch.no_grad()
def test_truncate_and_reorder(saved):
    student, folder = saved()
    decoder = load_decoder(open_student(folder), head_bits=32, kv_dtype="float32")
    rows = [random_tokens(1, 9, seed=n)[0] for n in (1, 2)]
    cache = decoder.new_cache(2)
    run(decoder, cache, rows)
    cache.truncate(0, 4)
    cache.reorder([1, 0, 0])
    assert cache.lengths == [9, 4, 4] and cache.sequences == 3
    more = [random_tokens(1, n, seed=n)[0] for n in (3, 5, 6)]
    out = run(decoder, cache, more)
    starts = [rows[1], rows[0][:4], rows[0][:4]]
    for start, new, logits in zip(starts, more, out, strict=True):
        assert_close(logits, student(torch.cat([start, new])[None]).logits[0, len(start) :])


@torch.no_grad()
def test_hidden_states(saved):
    student, folder = saved()
    decoder = load_decoder(open_student(folder), head_bits=32, kv_dtype="float32")
    tokens = random_tokens(1, 9)
    expected = student.model(tokens).last_hidden_state[0]
    assert_close(run(decoder, decoder.new_cache(1), [tokens[0]], hidden=True)[0], expected)


@pytest.mark.parametrize("chunk", [1, 4, 512])
@torch.no_grad()
def test_chunks(saved, chunk, monkeypatch):
    _, folder = saved()
    decoder = load_decoder(open_student(folder), head_bits=32, kv_dtype="float32")
    tokens = torch.cat([random_tokens(1, 9)[0], random_tokens(1, 5)[0]])
    sequences = torch.tensor([0] * 9 + [1] * 5)
    index = torch.tensor([0, 3, 4, 8, 9, 13])
    expected = decoder.forward(decoder.new_cache(2), tokens, sequences, index)
    monkeypatch.setattr(decoder_module, "CHUNK", chunk)
    assert torch.equal(decoder.forward(decoder.new_cache(2), tokens, sequences, index), expected)


def test_a_failure_leaves_the_sequences_as_they_were(saved, monkeypatch):
    _, folder = saved()
    decoder = load_decoder(open_student(folder))
    cache = decoder.new_cache(2)
    run(decoder, cache, [[5, 6, 7], [8]])
    monkeypatch.setattr(decoder_module, "CHUNK", 4)
    forward, computed = type(decoder._handle).forward, []
    monkeypatch.setattr(type(decoder._handle), "forward", lambda *args: computed.append(0) or forward(*args))
    with pytest.raises(IndexError, match=r"token id 96 \(position 2 of sequence 1\) is not in the vocabulary of 96"):
        run(decoder, cache, [[5, 6, 7, 8, 9], [8, 96]])
    assert not computed  # although the first call would have had no fault
    with pytest.raises(IndexError, match="token id -1"):
        run(decoder, cache, [[5], [-1]])
    with pytest.raises(ContextLengthError, match="sequence 1 would have 65 tokens, but the model has 64"):
        run(decoder, cache, [[5] * 5, [6] * 64])

    calls = []

    def interrupted(self, *args):
        calls.append(0)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return forward(self, *args)

    monkeypatch.setattr(type(decoder._handle), "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(decoder, cache, [[5] * 9, [6] * 9])
    assert cache.lengths == [3, 1]


@torch.no_grad()
def test_several_threads_and_two_models(saved):
    loaded = []
    for model_type in ("llama", "gemma2"):
        _, folder = saved(model_type)
        tokens = random_tokens(1, 20)
        decoder = load_decoder(open_student(folder), head_bits=32, kv_dtype="float32", num_threads=2)
        loaded.append((decoder, tokens[0], run(decoder, decoder.new_cache(1), [tokens[0]])[0]))
    problems = []

    def work(decoder, tokens, expected):
        for _ in range(10):
            cache = decoder.new_cache(1)
            out = torch.cat([run(decoder, cache, [piece])[0] for piece in tokens.split(7)])
            if not torch.equal(out, expected):
                problems.append((out - expected).abs().max())

    threads = [threading.Thread(target=work, args=loaded[i % 2]) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems


def test_a_cache_outlives_the_name_of_its_decoder(saved):
    _, folder = saved()
    decoder = load_decoder(open_student(folder))
    cache = decoder.new_cache(1)
    run(decoder, cache, [[5, 6]])
    del decoder
    assert cache.lengths == [2]


def test_nothing_is_destroyed_when_the_process_ends(saved):
    # A daemon thread may be computing with it then.
    _, folder = saved()
    script = """
import sys
from hf_bitdistill.runtime import c_structures as native
from optimum.bitnet import BitNetModelForCausalLM
native._destroy = lambda library, name, *rest: print(name)
first, second = (BitNetModelForCausalLM.from_pretrained(sys.argv[1]) for _ in range(2))
cache = first.decoder.new_cache(1)
del second
print("end")
"""
    done = warm.run([sys.executable, "-c", script, folder], ends=True)
    assert (done.returncode, done.stdout.split()) == (0, ["decoder_destroy", "end"]), done.stderr


def test_options_are_checked(saved):
    _, folder = saved()
    with pytest.raises(ValueError, match="head_bits=5"):
        load_decoder(open_student(folder), head_bits=5)
    with pytest.raises(ValueError, match="kv_dtype='int4'"):
        load_decoder(open_student(folder), kv_dtype="int4")
    with pytest.raises(ValueError, match="num_threads=0"):
        load_decoder(open_student(folder), num_threads=0)


def test_every_family_is_tested():
    assert {name for name, _ in VARIANTS} == set(NATIVE)


@torch.no_grad()
def test_decoders_with_adapters_share_the_weights(saved):
    _, folder = saved()
    decoder = load_decoder(open_student(folder), head_bits=32, kv_dtype="float32")
    tokens = random_tokens(1, 9)[0]
    before = run(decoder, decoder.new_cache(1), [tokens])[0]
    name = "model.layers.1.mlp.down_proj"
    low_rank = LowRank(torch.randn(2, 88), torch.randn(2, 48))
    adapted = decoder.adapted({name: low_rank})
    assert adapted.weight_bytes == decoder.weight_bytes and adapted.spec is decoder.spec
    assert not torch.equal(run(adapted, adapted.new_cache(1), [tokens])[0], before)
    for plain in (decoder, adapted.adapted({})):
        assert torch.equal(run(plain, plain.new_cache(1), [tokens])[0], before)
    # A change of zero is none.
    zero = decoder.adapted({name: LowRank(low_rank.a, torch.zeros(2, 48))})
    assert torch.equal(run(zero, zero.new_cache(1), [tokens])[0], before)
    with pytest.raises(KeyError, match="embed_tokens"):
        decoder.adapted({"model.embed_tokens": low_rank})
    with pytest.raises(ValueError, match="contiguous float32"):
        decoder.adapted({name: LowRank(low_rank.a.double(), low_rank.b)})
    with pytest.raises(UnsupportedModelError, match="refuses"):
        decoder.adapted({name: LowRank(low_rank.a, low_rank.b[:, :40].contiguous())})
    assert torch.equal(run(decoder, decoder.new_cache(1), [tokens])[0], before)
