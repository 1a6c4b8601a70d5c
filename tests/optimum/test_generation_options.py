"""Every option of the installed transformers' `generate`: it works as there, or it is refused by name."""

import copy
import inspect

import pytest
import torch
from transformers import (
    CompileConfig,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    MaxLengthCriteria,
    MinLengthLogitsProcessor,
    StoppingCriteriaList,
    WatermarkingConfig,
)

from architectures import random_tokens
from hf_bitdistill import pack
from optimum.bitnet import BitNetModelForCausalLM, pipeline
from students import make_student


pytestmark = pytest.mark.usefixtures("native_decoder")

KNOWN = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
KNOWN |= set(inspect.signature(GenerationMixin.generate).parameters)
PROMPT = random_tokens(1, 7)


@pytest.fixture(scope="module")
def models(tmp_path_factory, _tiny_backend):
    """A packed student in transformers, the same one on the native decoder, and a tokenizer."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_tiny_backend), pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    packed = pack(make_student("llama", vocab_size=384))
    packed.generation_config.eos_token_id = None
    folder = tmp_path_factory.mktemp("options") / "packed"
    packed.save_pretrained(folder)
    native = BitNetModelForCausalLM.from_pretrained(folder, head_bits=32, kv_dtype="float32")
    return packed, native, tokenizer


def generate(model, **options):
    torch.manual_seed(3)
    return model.generate(PROMPT, **{"max_new_tokens": 12, "do_sample": False, **options})


BEAMS = {"num_beams": 3}
DRAWN = {"do_sample": True, "return_dict_in_generate": True, "output_scores": True}  # transformers' own random numbers
SCORES = {"return_dict_in_generate": True}

# option -> what to call with; "tokens" stands for those that greedy decoding gives, "tokenizer" for the tokenizer.
WORKS = {
    "max_length": [{"max_new_tokens": None, "max_length": 11}],
    "max_new_tokens": [{"max_new_tokens": 3}],
    "min_length": [{"min_length": 12, "eos_token_id": "token"}],
    "min_new_tokens": [{"min_new_tokens": 6, "eos_token_id": "token"}],
    "early_stopping": [{**BEAMS, "early_stopping": True, "eos_token_id": "token"}],
    "max_time": [{"max_time": 1000.0}],
    "stop_strings": [
        {"stop_strings": "text", "tokenizer": "tokenizer"},
        {"stop_strings": ["text"], "tokenizer": "tokenizer", **BEAMS},
        {"stop_strings": ["text"], "tokenizer": "tokenizer", "prompt_lookup_num_tokens": 2},
    ],
    "do_sample": [DRAWN],
    "num_beams": [BEAMS, {**BEAMS, "do_sample": True}],
    "use_cache": [{"use_cache": False}, {"use_cache": False, **BEAMS}],
    "cache_implementation": [{"cache_implementation": "dynamic"}],
    "cache_config": [{"cache_config": {}}],
    "max_cache_len": [{"max_cache_len": 30}],
    "temperature": [{**DRAWN, "temperature": 0.7}],
    "top_k": [{**DRAWN, "top_k": 3}],
    "top_p": [{**DRAWN, "top_p": 0.6}],
    "min_p": [{**DRAWN, "min_p": 0.4}],
    "top_h": [{**DRAWN, "top_h": 0.5}],
    "typical_p": [{**DRAWN, "typical_p": 0.5}],
    "epsilon_cutoff": [{**DRAWN, "epsilon_cutoff": 2e-3}],
    "eta_cutoff": [{**DRAWN, "eta_cutoff": 2e-3}],
    "repetition_penalty": [{"repetition_penalty": 1.5}, {"repetition_penalty": 1.5, **BEAMS}],
    "encoder_repetition_penalty": [{"encoder_repetition_penalty": 1.5}],
    "length_penalty": [{**BEAMS, "length_penalty": 3.0, "eos_token_id": "token"}],
    "no_repeat_ngram_size": [{"no_repeat_ngram_size": 2}],
    "encoder_no_repeat_ngram_size": [{"encoder_no_repeat_ngram_size": 2}],
    "bad_words_ids": [{"bad_words_ids": [["token"]]}],
    "renormalize_logits": [{**BEAMS, "renormalize_logits": True}],
    "forced_bos_token_id": [{"forced_bos_token_id": 5}],
    "forced_eos_token_id": [{"forced_eos_token_id": 5}],
    "remove_invalid_values": [{"remove_invalid_values": True}],
    "exponential_decay_length_penalty": [{"exponential_decay_length_penalty": (2, 1.5), "eos_token_id": 9}],
    "suppress_tokens": [{"suppress_tokens": ["token"]}],
    "begin_suppress_tokens": [{"begin_suppress_tokens": ["token"]}],
    "sequence_bias": [{"sequence_bias": [[["token"], -5.0]]}],
    "token_healing": [{"token_healing": True, "tokenizer": "tokenizer"}],
    "guidance_scale": [
        {"guidance_scale": 2.0},
        {"guidance_scale": 2.0, "negative_prompt_ids": random_tokens(1, 3, seed=4)},
    ],
    "watermarking_config": [{"watermarking_config": WatermarkingConfig()}],
    "num_return_sequences": [{**BEAMS, "num_return_sequences": 2}, {**DRAWN, "num_return_sequences": 2}],
    "output_scores": [{**SCORES, "output_scores": True}],
    "output_logits": [{**SCORES, "output_logits": True}, {**SCORES, **BEAMS, "output_logits": True}],
    "return_dict_in_generate": [SCORES],
    "pad_token_id": [{"pad_token_id": 5, "eos_token_id": "token"}],
    "bos_token_id": [{"bos_token_id": 5}],
    "eos_token_id": [{"eos_token_id": "token"}, {"eos_token_id": ["token", 5], **BEAMS}],
    "decoder_start_token_id": [{"decoder_start_token_id": 5}],
    "num_assistant_tokens": [{"num_assistant_tokens": 2, "assistant_model": "packed"}],
    "num_assistant_tokens_schedule": [
        {"num_assistant_tokens_schedule": "constant", "assistant_model": "native"},
        {"num_assistant_tokens_schedule": "heuristic", "prompt_lookup_num_tokens": 10},
    ],
    "assistant_confidence_threshold": [{"assistant_confidence_threshold": 0.1, "assistant_model": "native"}],
    "prompt_lookup_num_tokens": [{"prompt_lookup_num_tokens": 3}],
    "max_matching_ngram_size": [{"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1}],
    "assistant_lookbehind": [{"assistant_lookbehind": 5}],
    "target_lookbehind": [{"target_lookbehind": 5}],
    "assistant_ensemble_weight": [{"assistant_ensemble_weight": 0.3, "assistant_model": "packed"}],
    "compile_config": [{"compile_config": CompileConfig()}],
    "disable_compile": [{"disable_compile": True}],
    "continuous_batching_config": [{"continuous_batching_config": {}}],
    "low_memory": [{"low_memory": True}],
    "diversity_penalty": [{"diversity_penalty": 0.0}],
    "num_beam_groups": [{"num_beam_groups": 1}],
    "prefill_chunk_size": [{"prefill_chunk_size": 3}],
    # Of `generate` itself:
    "generation_config": [{"generation_config": GenerationConfig(max_new_tokens=5), "max_new_tokens": None}],
    "logits_processor": [
        {"logits_processor": LogitsProcessorList([MinLengthLogitsProcessor(20, 5)]), "eos_token_id": None}
    ],
    "stopping_criteria": [{"stopping_criteria": StoppingCriteriaList([MaxLengthCriteria(9)])}],
    "prefix_allowed_tokens_fn": [
        {"prefix_allowed_tokens_fn": lambda row, ids: [5, 6, 7], **more} for more in ({}, BEAMS)
    ],
    "synced_gpus": [{"synced_gpus": False}],
    "assistant_model": [{"assistant_model": "packed"}, {"assistant_model": "native"}],
    "negative_prompt_ids": [{"negative_prompt_ids": random_tokens(1, 3, seed=4)}],
    "negative_prompt_attention_mask": [
        {
            "guidance_scale": 2.0,
            "negative_prompt_ids": random_tokens(1, 3, seed=4),
            "negative_prompt_attention_mask": torch.tensor([[0, 1, 1]]),
        }
    ],
    "custom_generate": [{"custom_generate": lambda model, input_ids, **rest: model._sample(input_ids, **rest)}],
    "tokenizer": [{"tokenizer": "tokenizer"}, {"tokenizer": "tokenizer", **BEAMS}],
    "assistant_tokenizer": [{"assistant_tokenizer": "tokenizer"}],
    "attention_mask": [{"attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1, 1]])}],
    "position_ids": [{"position_ids": torch.arange(7)[None]}],
}

# option -> what is refused, and what the error says.
REFUSED = {
    "cache_implementation": [
        ({"cache_implementation": kind}, f"cache_implementation='{kind}'")
        for kind in ("static", "offloaded", "quantized", "paged")
    ],
    "output_attentions": [({**SCORES, "output_attentions": True}, "output_attentions")],
    "output_hidden_states": [({**SCORES, "output_hidden_states": True}, "output_hidden_states")],
    "assistant_early_exit": [({"assistant_early_exit": 1}, "assistant_early_exit=1")],
    "use_mtp": [({"use_mtp": True}, "use_mtp")],
    "speculation_type": [({"speculation_type": "dflash"}, "speculation_type='dflash'")],
    "is_assistant": [({"is_assistant": True}, "is_assistant")],
    "penalty_alpha": [({"penalty_alpha": 0.5, "top_k": 4}, "penalty_alpha=0.5")],
    "dola_layers": [({"dola_layers": "high"}, "dola_layers='high'")],
    "stop_strings": [({"stop_strings": ["x"]}, "stop strings")],
    "token_healing": [({"token_healing": True}, "token healing")],
    # Moved out of transformers, which says so.
    "num_beam_groups": [({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}, "Group Beam Search")],
    "constraints": [({**BEAMS, "constraints": [object()]}, "Constrained Beam Search")],
    "force_words_ids": [({**BEAMS, "force_words_ids": [[5]]}, "Constrained Beam Search")],
    "inputs_embeds": [({"inputs_embeds": torch.zeros(1, 7, 48)}, "inputs_embeds")],
    "streamer": [({**BEAMS, "streamer": object()}, "streamer")],
    "a typo": [({"max_new_token": 3}, "max_new_token")],
}
# Tested in test_generation.py (streamer); the input itself; what arrives as other arguments.
ELSEWHERE = {"streamer", "inputs", "kwargs", "self", "transformers_version"}


def fill(value, models, tokens):
    packed, native, tokenizer = models
    names = {"tokenizer": tokenizer, "packed": packed, "native": native, "token": tokens[4]}
    if isinstance(value, str) and value == "text":
        return tokenizer.decode(tokens[3:5])
    if isinstance(value, str):
        return names.get(value, value)
    return [fill(part, models, tokens) for part in value] if type(value) is list else value


def test_every_option_is_tested():
    assert not KNOWN - set(WORKS) - set(REFUSED) - ELSEWHERE


@pytest.mark.parametrize("name", WORKS)
def test_it_works_as_in_transformers(models, name):
    if name not in KNOWN | {"tokenizer", "assistant_tokenizer", "attention_mask", "position_ids"}:
        pytest.skip("the installed transformers does not have it")
    packed, native, _ = models
    tokens = generate(packed)[0, 7:].tolist()
    for options in WORKS[name]:
        options = {key: fill(value, models, tokens) for key, value in options.items()}
        ours, theirs = generate(native, **options), generate(packed, **options)
        if isinstance(theirs, dict):
            assert set(ours) == set(theirs)
            for part in ("scores", "logits"):
                for a, b in zip(ours.get(part) or (), theirs.get(part) or (), strict=True):
                    torch.testing.assert_close(a, b, rtol=0, atol=2e-2)
            ours, theirs = ours.sequences, theirs.sequences
        assert ours.tolist() == theirs.tolist(), options


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_by_name(models, name):
    for options, message in REFUSED[name]:
        with pytest.raises(ValueError, match=message):
            generate(models[1], **options)


def test_assistants_with_a_tokenizer_of_their_own(models, tmp_path):
    packed, native, tokenizer = models
    helper = pack(make_student("qwen2", vocab_size=400))
    helper.save_pretrained(tmp_path / "helper")
    native_helper = BitNetModelForCausalLM.from_pretrained(tmp_path / "helper")
    expected = generate(packed).tolist()
    with pytest.raises(ValueError, match="assistant_tokenizer"):
        generate(native, assistant_model=helper)
    for assistant in (helper, native_helper):
        options = {"assistant_model": assistant, "tokenizer": tokenizer, "assistant_tokenizer": tokenizer}
        assert generate(native, **options).tolist() == expected
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["something else"])  # the assistant's head would lose it
    options["assistant_tokenizer"] = other
    for model in (native, packed):
        with pytest.raises(ValueError, match="do_sample=True transformers replaces that of an assistant"):
            generate(model, do_sample=True, **options)


def test_continuous_batching_is_refused(models):
    _, native, _ = models
    for name in ("generate_batch", "init_continuous_batching", "continuous_batching_context_manager"):
        with pytest.raises(ValueError, match=name):
            getattr(native, name)([[5, 6]])


def test_options_from_the_checkpoint_are_checked_too(models):
    _, native, _ = models
    config = GenerationConfig(cache_implementation="static")
    with pytest.raises(ValueError, match="cache_implementation='static'"):
        generate(native, generation_config=config)


def test_pipelines_stop_at_a_sequence(models):
    packed, native, tokenizer = models
    text = "the little robot"
    inputs = tokenizer(text, return_tensors="pt")["input_ids"]
    out = packed.generate(inputs, max_new_tokens=12, do_sample=False)[0, inputs.shape[1] :]
    pipe = pipeline("text-generation", native, tokenizer)
    stop = tokenizer.decode(out[3:5])
    options = {"max_new_tokens": 12, "do_sample": False, "return_full_text": False}
    whole = pipe(text, **options)[0]["generated_text"]
    cut = pipe(text, stop_sequence=stop, **options)[0]["generated_text"]
    assert whole.startswith(cut) and stop in cut and len(cut) < len(whole)


def test_the_configuration_of_a_model_in_transformers(tmp_path):
    pack(make_student("llama", options={"activation_bits": None})).save_pretrained(tmp_path)
    model = BitNetModelForCausalLM.from_pretrained(tmp_path)
    model.generation_config = GenerationConfig(max_new_tokens=3)
    assert model.generation_config is model.model.generation_config
    assert model.generate(PROMPT).shape[1] == PROMPT.shape[1] + 3


def test_negative_prompts_are_padded_on_the_left(models):
    _, native, _ = models
    options = {"guidance_scale": 3.0, "negative_prompt_ids": torch.tensor([[5, 6, 7, 0, 0]])}
    with pytest.raises(ValueError, match="must be padded on the left"):
        native.generate(PROMPT, negative_prompt_attention_mask=torch.tensor([[1, 1, 1, 0, 0]]), **options)
