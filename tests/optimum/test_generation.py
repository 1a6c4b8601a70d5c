"""`generate` on the native decoder against the same packed student in transformers."""

import threading

import pytest
import torch
from transformers import (
    DynamicCache,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)
from transformers.generation.streamers import BaseStreamer

from architectures import random_tokens
from hf_bitdistill.architectures import NATIVE
from hf_bitdistill.modeling.cache_name import CACHE_NAME
from hf_bitdistill.runtime import ContextLengthError
from hf_bitdistill.runtime.c_structures import DecoderHandle
from optimum.bitnet import BitNetCache, BitNetModelForCausalLM


pytestmark = pytest.mark.usefixtures("native_decoder")

# Two prompts of 9 and 5 tokens.
LENGTHS = (9, 5)


def prompts(side):
    tokens, mask = torch.zeros(2, 9, dtype=torch.int64), torch.zeros(2, 9, dtype=torch.int64)
    for row, length in enumerate(LENGTHS):
        columns = slice(9 - length, 9) if side == "left" else slice(0, length)
        tokens[row, columns] = random_tokens(1, length, seed=length)[0]
        mask[row, columns] = 1
    return tokens, mask


@pytest.mark.parametrize("model_type", sorted(NATIVE))
def test_greedy(pair, model_type):
    packed, native = pair(model_type)
    tokens = random_tokens(1, 7)
    expected = packed.generate(tokens, max_new_tokens=20, do_sample=False)
    assert native.generate(tokens, max_new_tokens=20, do_sample=False).tolist() == expected.tolist()
    without = native.generate(tokens, max_new_tokens=8, do_sample=False, use_cache=False)
    assert without.tolist() == expected[:, :15].tolist()


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_batches_with_padding_on_the_left(pair, model_type):
    packed, native = pair(model_type)
    tokens, mask = prompts("left")
    options = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False}
    assert native.generate(tokens, **options).tolist() == packed.generate(tokens, **options).tolist()


def test_batches_with_padding_on_the_right(pair):
    _, native = pair()
    tokens, mask = prompts("right")
    out = native.generate(tokens, attention_mask=mask, max_new_tokens=12, do_sample=False)
    for row, length in enumerate(LENGTHS):
        alone = native.generate(tokens[row : row + 1, :length], max_new_tokens=12, do_sample=False)
        assert out[row, 9:].tolist() == alone[0, length:].tolist()


def test_beams(pair):
    packed, native = pair()
    tokens, mask = prompts("left")
    options = {"attention_mask": mask, "max_new_tokens": 10, "num_beams": 4, "num_return_sequences": 2}
    assert native.generate(tokens, **options).tolist() == packed.generate(tokens, **options).tolist()


def test_sampling_with_a_seed(pair):
    packed, native = pair()
    tokens = random_tokens(2, 6)
    options = {"do_sample": True, "temperature": 0.9, "top_k": 20, "top_p": 0.95, "max_new_tokens": 12}
    options |= {"num_return_sequences": 2, "repetition_penalty": 1.1}

    def sample(model, **more):
        torch.manual_seed(7)
        return model.generate(tokens, **options, **more)

    assert sample(native).tolist() == sample(native).tolist()
    # The random numbers are transformers' own where its scores are asked for.
    more = {"return_dict_in_generate": True, "output_scores": True}
    assert sample(native, **more).sequences.tolist() == sample(packed).tolist()


def test_dictionary_of_results(pair):
    packed, native = pair()
    tokens = random_tokens(2, 6)
    options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_scores": True}
    options["output_logits"] = True
    ours, theirs = native.generate(tokens, **options), packed.generate(tokens, **options)
    assert ours.sequences.tolist() == theirs.sequences.tolist()
    torch.testing.assert_close(torch.stack(ours.logits), torch.stack(theirs.logits), rtol=0, atol=2e-2)
    cache = ours[CACHE_NAME]
    assert isinstance(cache, BitNetCache) and cache.get_seq_length() == 9 and cache.is_linear == [False, False]
    # Generation goes on from the cache.
    more = native.generate(ours.sequences, max_new_tokens=4, do_sample=False, **{CACHE_NAME: cache})
    assert more.tolist() == packed.generate(tokens, max_new_tokens=8, do_sample=False).tolist()


class Collect(BaseStreamer):
    def __init__(self):
        self.tokens, self.ended = [], False

    def put(self, value):
        self.tokens += value.reshape(-1).tolist()

    def end(self):
        self.ended = True


class AfterThree(StoppingCriteria):
    def __init__(self):
        self.calls = 0

    def __call__(self, input_ids, scores, **kwargs):
        self.calls += 1
        return torch.full((input_ids.shape[0],), self.calls >= 3)


class Only(LogitsProcessor):
    def __init__(self, token):
        self.token = token

    def __call__(self, input_ids, scores):
        scores[:, : self.token] = scores[:, self.token + 1 :] = -float("inf")
        return scores


def test_streamers_criteria_and_processors(pair):
    _, native = pair()
    tokens = random_tokens(1, 6)
    streamer = Collect()
    out = native.generate(tokens, max_new_tokens=6, do_sample=False, streamer=streamer)
    assert streamer.tokens == out[0].tolist() and streamer.ended
    criteria = StoppingCriteriaList([AfterThree(), MaxLengthCriteria(100)])
    assert native.generate(tokens, max_new_tokens=20, stopping_criteria=criteria).shape == (1, 9)
    processors = LogitsProcessorList([Only(42)])
    assert native.generate(tokens, max_new_tokens=3, logits_processor=processors)[0, 6:].tolist() == [42] * 3
    first = native.generate(tokens, max_new_tokens=3, do_sample=False)[0, 6].item()
    assert native.generate(tokens, max_new_tokens=9, do_sample=False, eos_token_id=first).shape == (1, 7)


def test_a_streamer_in_another_thread(pair, tiny_tokenizer):
    _, native = pair(vocab_size=384)
    inputs = tiny_tokenizer("the little robot", return_tensors="pt")
    streamer = TextIteratorStreamer(tiny_tokenizer, skip_prompt=True, timeout=20)
    options = {"input_ids": inputs["input_ids"], "max_new_tokens": 5, "do_sample": False, "streamer": streamer}
    thread = threading.Thread(target=native.generate, kwargs=options, daemon=True)
    thread.start()
    text = "".join(streamer)
    thread.join()
    out = native.generate(inputs["input_ids"], max_new_tokens=5, do_sample=False)
    assert text == tiny_tokenizer.decode(out[0, inputs["input_ids"].shape[1] :])


@pytest.mark.parametrize("assistant", ["native", "transformers", "prompt lookup"])
def test_assisted_generation(pair, tmp_path, assistant):
    packed, native = pair()
    tokens = random_tokens(1, 8)
    expected = packed.generate(tokens, max_new_tokens=20, do_sample=False)
    if assistant == "prompt lookup":
        options = {"prompt_lookup_num_tokens": 3}
    else:
        helper_packed, helper = pair("qwen2")
        options = {"assistant_model": helper if assistant == "native" else helper_packed}
    out = native.generate(tokens, max_new_tokens=20, do_sample=False, **options)
    assert out.tolist() == expected.tolist()


def test_prompt_lookup_at_the_end_of_the_context(pair):
    packed, native = pair()
    tokens = torch.tensor([[7, 8, 9, 10] * 15])
    options = {"max_length": 64, "do_sample": False}
    expected = packed.generate(tokens, **options)
    assert expected.shape == (1, 64)  # all positions of the model
    out = native.generate(tokens, prompt_lookup_num_tokens=10, **options)
    assert out.tolist() == expected.tolist()


@pytest.mark.parametrize("side", ["left", "right"])
def test_prefill_in_chunks(pair, side):
    _, native = pair()
    tokens, mask = prompts(side)
    options = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False}
    expected = native.generate(tokens, **options)
    assert native.generate(tokens, prefill_chunk_size=4, **options).tolist() == expected.tolist()


def test_an_interrupted_generation(pair):
    _, native = pair()
    tokens = random_tokens(1, 6)
    expected = native.generate(tokens, max_new_tokens=8, do_sample=False)
    cache = BitNetCache(native.decoder)

    class Interrupt(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            if input_ids.shape[1] == 9:
                raise KeyboardInterrupt
            return torch.zeros(input_ids.shape[0], dtype=torch.bool)

    with pytest.raises(KeyboardInterrupt):
        criteria = StoppingCriteriaList([Interrupt()])
        native.generate(tokens, max_new_tokens=8, do_sample=False, stopping_criteria=criteria, **{CACHE_NAME: cache})
    assert native.generate(tokens, max_new_tokens=8, do_sample=False).tolist() == expected.tolist()
    # The cache of the interrupted call is whole: what it holds can be continued.
    assert cache.get_seq_length() == 8
    out = native.generate(expected[:, :9], max_new_tokens=5, do_sample=False, **{CACHE_NAME: cache})
    assert out.tolist() == expected.tolist()


@pytest.fixture
def computed(monkeypatch):
    """Counts the calls of the native library that computed something."""
    calls, forward = [], DecoderHandle.forward

    def count(*args):
        status = forward(*args)
        calls.extend([status] * (status == 0))
        return status

    monkeypatch.setattr(DecoderHandle, "forward", count)
    return calls


def test_a_prompt_that_is_too_long_is_refused_before_it_is_computed(pair, computed):
    _, native = pair()
    with pytest.raises(ContextLengthError, match="would have 65 tokens, but the model has 64 positions"):
        native.generate(random_tokens(1, 65), max_new_tokens=1)
    mask = torch.ones(2, 70, dtype=torch.int64)
    mask[0, :40] = 0
    with pytest.raises(ContextLengthError, match="sequence 1 would have 70 tokens, but the model has 64 positions"):
        native.generate(random_tokens(2, 70), attention_mask=mask, max_new_tokens=1)
    with pytest.raises(ContextLengthError, match="would have 600 tokens"):  # two calls of the library
        native(random_tokens(1, 600))
    assert not computed


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 5}, {"do_sample": True}, {"assistant": True}]
)
def test_an_output_ends_with_the_context(pair, options, caplog):
    packed, native = pair()
    if options.pop("assistant", False):
        options = {"assistant_model": pair("qwen2")[1]}
    tokens, mask = random_tokens(1, 60), torch.ones(1, 60, dtype=torch.int64)
    mask[0, :4] = 0  # takes no position
    out = native.generate(tokens, attention_mask=mask, max_new_tokens=20, **{"do_sample": False, **options})
    assert out.shape == (1, 69)  # 56 tokens of the prompt, and 9 new ones of which the last is not read
    (message,) = {record.message for record in caplog.records if record.name.startswith("optimum.bitnet")}
    assert message == (
        "20 new tokens are asked for, but the prompt has 56 tokens and the model 64 positions (max_position_embeddings): "
        "the output ends after 9 new tokens."
    )
    if not options:
        assert out[:, 60:].tolist() == packed.generate(tokens, attention_mask=mask, max_new_tokens=9)[:, 60:].tolist()
    caplog.clear()
    assert native.generate(tokens, max_new_tokens=5, do_sample=False).shape == (1, 65)
    assert not caplog.records


def test_empty_prompts_are_refused(pair, computed):
    _, native = pair()
    tokens, mask = prompts("left")
    mask[1] = 0
    with pytest.raises(ValueError, match="row 1 of the prompts is empty"):
        native.generate(tokens, attention_mask=mask, max_new_tokens=2)
    with pytest.raises(ValueError, match="empty"):
        native.generate(torch.zeros(1, 0, dtype=torch.int64), max_new_tokens=2)
    assert not computed


@pytest.mark.parametrize("head_bits", [32, 16, 8, 4])
@pytest.mark.parametrize("token", [-1, 96, 2**40])
def test_a_token_out_of_range(pair, tmp_path, computed, head_bits, token):
    pair()
    native = BitNetModelForCausalLM.from_pretrained(tmp_path / "llama", head_bits=head_bits)
    tokens, mask = prompts("left")
    tokens[1, 6] = token  # the third of its row
    message = rf"token id {token} \(position 2 of sequence 1\) is not in the vocabulary of 96 tokens"
    with pytest.raises(IndexError, match=message):
        native(tokens, attention_mask=mask)
    for options in ({}, {"prompt_lookup_num_tokens": 2}, {"repetition_penalty": 1.1}, {"guidance_scale": 2.0}):
        with pytest.raises(IndexError, match=rf"token id {token} \(position 2 of sequence 0"):
            native.generate(tokens[1:], max_new_tokens=2, do_sample=False, **options)
    assert not computed
    # What the mask hides is no token.
    tokens[1, 6], tokens[1, 0] = 5, token
    assert native(tokens, attention_mask=mask).logits.isfinite().all()


def test_a_cache_of_another_kind_is_refused(pair):
    _, native = pair()
    with pytest.raises(TypeError, match="DynamicCache"):
        native.generate(random_tokens(1, 6), max_new_tokens=2, **{CACHE_NAME: DynamicCache()})


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.skipif(not __import__("os").path.exists("/proc/self/statm"), reason="needs /proc")
def test_memory_stays_flat_over_many_generations(pair):
    _, native = pair()
    tokens, mask = prompts("left")

    def generate(times):
        for _ in range(times):
            native.generate(tokens, attention_mask=mask, max_new_tokens=3, do_sample=False)

    generate(100)
    before = resident_bytes()
    generate(900)
    assert resident_bytes() - before < 4 << 20
