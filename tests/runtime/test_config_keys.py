"""Which keys of a `config.json` count: those that transformers' modelling file of the architecture reads, and no others."""

import ast
import dataclasses
import inspect
import json
import textwrap

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from architectures import random_tokens, tiny_config, tiny_model
from hf_bitdistill.architectures import NATIVE
from hf_bitdistill.runtime import UnsupportedModelError, describe, load_decoder
from students import assert_close, make_student, open_student


# What families have in common, and what a change of another key is seen from: options that switch on what it belongs to.
_START = {
    "mistral": {"sliding_window": 5},
    "phi3": {"sliding_window": 5},
    "mixtral": {"sliding_window": 5},
    "qwen2": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "qwen3": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "qwen3_moe": {"use_sliding_window": True, "sliding_window": 5, "mlp_only_layers": [0]},
    "smollm3": {"use_sliding_window": True, "sliding_window": 5, "no_rope_layer_interval": 2},
    "gemma2": {"sliding_window": 5},
    "gemma3_text": {"sliding_window": 5, "sliding_window_pattern": 2},
}

# Another value of every key that changes the result of a family that has it.
_CHANGED = {
    "attention_bias": True,
    "attn_logit_softcapping": 0.3,
    "decoder_sparse_step": 3,
    "final_logit_softcapping": 0.3,
    "head_dim": 20,
    "hidden_act": "relu",
    "hidden_activation": "relu",
    "layer_types": ["sliding_attention", "sliding_attention"],
    "max_window_layers": 0,
    "mlp_bias": True,
    "mlp_only_layers": [1],
    "no_rope_layer_interval": 1,
    "no_rope_layers": [0, 1],
    "norm_topk_prob": True,
    "num_experts_per_tok": 3,
    "query_pre_attn_scalar": 2,
    "rms_norm_eps": 0.5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 50.0},
    "sliding_window": 3,
    "tie_word_embeddings": None,  # the opposite
    "use_bidirectional_attention": True,
    "use_sliding_window": False,
}

# The same of what only changes shapes, together: one that is not read does not fit the others.
_SHAPES = {
    "hidden_size": 72,
    "intermediate_size": 56,
    "moe_intermediate_size": 24,
    "num_attention_heads": 6,
    "num_experts": 5,
    "num_hidden_layers": 3,
    "num_key_value_heads": 3,
    "num_local_experts": 5,
    "vocab_size": 100,
}

# Of every key that changes nothing where no gradient is needed.
_WITHOUT_EFFECT = {
    "attention_dropout": 0.5,
    "bos_token_id": 5,
    "embd_pdrop": 0.5,
    "eos_token_id": 7,
    "initializer_range": 0.02,
    "max_position_embeddings": 50,
    "original_max_position_embeddings": 30,  # of rotary embeddings that are refused
    "output_router_logits": True,
    "pad_token_id": 9,
    "pretraining_tp": 2,
    "resid_pdrop": 0.5,
    "router_aux_loss_coef": 0.5,
    "router_jitter_noise": 0.5,
    "use_cache": False,
}

# Of other architectures, on their way into a config.json by a conversion.
_OF_OTHERS = {
    "attention_chunk_size": 4,
    "attention_multiplier": 0.3,
    "clip_qkv": 0.1,
    "embedding_multiplier": 3.0,
    "hidden_function": "relu",
    "layer_norm_eps": 0.5,
    "logit_scale": 0.2,
    "logits_scaling": 4.0,
    "n_group": 2,
    "num_kv_shared_layers": 1,
    "parallel_attn": True,
    "qk_layernorm": True,
    "qkv_bias": True,
    "residual_multiplier": 0.3,
    "routed_scaling_factor": 2.0,
    "scale_attn_weights": False,
    "scale_emb": 3.0,
    "scoring_func": "sigmoid",
    "use_parallel_residual": True,
    "use_qk_norm": True,
    "use_rope": False,
}

# Ways to write the same things that every architecture's config understands.
_UNDERSTOOD_BY_ALL = {"rope_parameters", "head_dim"}


def own_keys(model_type):
    shared = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    return {field.name for field in dataclasses.fields(type(tiny_config(model_type)))} - shared


def native_logits(folder, tokens):
    decoder = load_decoder(open_student(folder), head_bits=32, kv_dtype="float32")
    return decoder.forward(decoder.new_cache(1), tokens[0], torch.zeros_like(tokens[0]), torch.arange(tokens.shape[1]))


@pytest.mark.parametrize("model_type", sorted(NATIVE))
@torch.no_grad()
def test_keys_of_other_architectures_count_for_nothing(saved, native_decoder, model_type):
    _, folder = saved(model_type, packed=False, **_START.get(model_type, {}))
    tokens = random_tokens(1, 23)
    before = native_logits(folder, tokens)
    others = {key: value for key, value in _CHANGED.items() if key not in _UNDERSTOOD_BY_ALL and value is not None}
    foreign = {key: value for key, value in (others | _SHAPES | _OF_OTHERS).items() if key not in own_keys(model_type)}
    for pair in tiny_config(model_type).attribute_map.items():  # two names of one thing
        for name in pair:
            foreign.pop(name, None)
    if model_type == "mistral":  # transformers calls it another architecture then, which is refused
        del foreign["layer_types"]
    file = folder / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | foreign))
    assert torch.equal(native_logits(folder, tokens), before)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert all(getattr(model.config, key) == value for key, value in foreign.items())
    # Its cache would forget what is behind a window that the model does not have.
    assert_close(before, model(tokens, use_cache=False).logits[0])


@pytest.mark.parametrize("model_type", sorted(NATIVE))
@torch.no_grad()
def test_every_own_key_is_honoured_or_refused(saved, native_decoder, model_type):
    start, tokens = _START.get(model_type, {}), random_tokens(1, 23)
    first, folder = saved(model_type, packed=False, **start)
    unchanged, config = first(tokens).logits[0], first.config
    keys = own_keys(model_type)
    unknown = keys - set(_CHANGED) - set(_SHAPES) - set(_WITHOUT_EFFECT)
    assert not unknown, f"what do these keys of {model_type} do? {unknown}"
    for key in sorted(keys & set(_CHANGED)):
        value = _CHANGED[key] if _CHANGED[key] is not None else not config.tie_word_embeddings
        if key == "rope_parameters" and model_type == "gemma3_text":
            value = dict.fromkeys(("full_attention", "sliding_attention"), value)
        if key == "use_bidirectional_attention":
            with pytest.raises(UnsupportedModelError, match="bidirectional"):
                describe(make_student(model_type, **start, **{key: value}))
            continue
        student, folder = saved(model_type, packed=False, **{**start, key: value})
        expected = student(tokens).logits[0]
        ignored = (model_type, key) == ("gemma3_text", "attn_logit_softcapping")  # an option it has and does not use
        assert (expected.shape == unchanged.shape and torch.equal(expected, unchanged)) == ignored, key
        assert_close(native_logits(folder, tokens), expected)
    shapes = {key: value for key, value in _SHAPES.items() if key in keys}
    student, folder = saved(model_type, packed=False, **start, **shapes)
    assert_close(native_logits(folder, tokens), student(tokens).logits[0])
    without = {key: value for key, value in _WITHOUT_EFFECT.items() if key in keys}
    student = make_student(model_type, **start, **without)
    student.load_state_dict(first.state_dict())  # a random row of the embedding is zero for the sake of pad_token_id
    student.save_pretrained(folder)
    assert torch.equal(student(tokens).logits[0], unchanged)
    assert_close(native_logits(folder, tokens), unchanged)


@pytest.mark.parametrize(
    "message, model_type, options",
    [
        ("bidirectional", "llama", {"is_causal": False}),
        ("bidirectional", "gemma2", {"use_bidirectional_attention": True}),
        ("sliding_window=0", "mistral", {"sliding_window": 0}),
        ("sliding_window=None", "qwen2", {"layer_types": ["sliding_attention"] * 2}),
        ("attn_logit_softcapping=0.0", "gemma2", {"attn_logit_softcapping": 0.0}),
        ("final_logit_softcapping=0.0", "gemma3_text", {"final_logit_softcapping": 0.0}),
    ],
)
def test_values_that_are_not_understood_are_refused(message, model_type, options):
    with pytest.raises(UnsupportedModelError, match=message):
        describe(make_student(model_type, **options))


# ---- what is read, against the source -----------------------------------------------------------------------------

# Read by the modelling file and rightly not by us, beside what has no effect: it shows in the model itself, which is on the meta device.
_SEEN_IN_THE_MODEL = {
    "_attn_implementation",
    "_experts_implementation",
    "attention_bias",
    "decoder_sparse_step",
    "mlp_bias",
    "mlp_only_layers",
    "moe_intermediate_size",
    "num_experts",
    "num_local_experts",
    "rope_parameters",
}
# smollm3's layers have a window wherever the masks have one; Gemma 3's attention is given the limit and does not use it.
_SETTLED_OTHERWISE = {"use_sliding_window", "attn_logit_softcapping"}
# Read for all architectures, in transformers' configs, masks and rotary embeddings.
_COMMON = {"is_causal", "is_heterogeneous", "model_type", "per_layer_config"}


def is_config(node):
    return (isinstance(node, ast.Name) and node.id == "config") or (
        isinstance(node, ast.Attribute) and node.attr == "config"
    )


def keys_in_source(model):
    """Keys of the config that the code of a model's modules names."""
    classes = {kind for module in model.modules() for kind in type(module).__mro__}
    keys = set()
    for kind in classes:
        if not kind.__module__.startswith("transformers.models."):
            continue
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(kind)))):
            if isinstance(node, ast.Attribute) and is_config(node.value):
                keys.add(node.attr)
            called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            if called in ("getattr", "hasattr") and is_config(node.args[0]):
                keys.add(ast.literal_eval(node.args[1]))
    return keys


class Recorder:
    """A config that remembers what it was asked for."""

    def __init__(self, config):
        self.__dict__.update(_config=config, keys=set())

    def __getattr__(self, name):
        if not callable(getattr(self._config, name, None)):
            self.keys.add(name)
        return getattr(self._config, name)


@pytest.mark.parametrize("model_type", sorted(NATIVE))
def test_what_is_read_is_what_the_modelling_file_reads(model_type):
    start = _START.get(model_type, {})
    theirs = keys_in_source(tiny_model(model_type, **start))
    assert {"hidden_size", "rms_norm_eps", "head_dim"} <= theirs
    student = make_student(model_type, **start)
    student.config = recorder = Recorder(student.config)
    describe(student)
    assert recorder.keys <= theirs | _COMMON, recorder.keys - theirs - _COMMON
    unread = theirs - recorder.keys - _SEEN_IN_THE_MODEL - _SETTLED_OTHERWISE - set(_WITHOUT_EFFECT)
    unread = {key for key in unread if not callable(getattr(student.config._config, key, None))}
    assert not unread, unread
