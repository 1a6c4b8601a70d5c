"""Q, K, V capture: the same logits, the right states, on every architecture; clear errors where it cannot work."""

import copy
import sys
import threading

import pytest
import torch
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.llama import modeling_llama

from architectures import ARCHITECTURES, HYBRID, random_tokens, tiny_config, tiny_model
from hf_bitdistill.training import AttentionStateCapture
from hf_bitdistill.training.losses.attention_states import attention_layers


torch.set_num_threads(1)

CAPTURED = sorted(set(ARCHITECTURES) - {"falcon"} - HYBRID)


def padded_batch(length=11):
    ids = random_tokens(2, length)
    mask = torch.ones_like(ids)
    mask[1, -3:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", CAPTURED)
def test_logits_are_identical_and_shapes_right(model_type, implementation):
    model = tiny_model(model_type)
    if implementation == "sdpa" and not model._supports_sdpa:
        pytest.skip("the architecture has no sdpa")
    model.set_attn_implementation(implementation)
    batch = padded_batch()
    config = model.config
    with torch.no_grad():
        expected = model(**batch, use_cache=False).logits
        with AttentionStateCapture(model, [1, 0]) as capture:
            actual = model(**batch, use_cache=False).logits
    assert torch.equal(actual, expected)
    assert config._attn_implementation == implementation
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    assert capture.layers == [1, 0]
    assert len(capture.states) == 2
    for query, key, value in capture.states:
        assert query.shape == (2, heads, 11, head_dim)
        assert key.shape == value.shape == (2, kv_heads, 11, head_dim)
    assert not torch.equal(capture.states[0].query, capture.states[1].query)


def test_llama_states_are_after_rotary_embedding():
    model = tiny_model("llama")
    batch = padded_batch()
    with torch.no_grad(), AttentionStateCapture(model, [0]) as capture:
        model(**batch, use_cache=False)
    query, key, value = capture.states[0]
    layer = model.model.layers[0]
    heads, kv_heads, d = 4, 2, 12
    with torch.no_grad():
        x = layer.input_layernorm(model.model.embed_tokens(batch["input_ids"]))
        flat = [p(x) for p in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)]
    plain = [t.view(2, 11, n, d).transpose(1, 2) for t, n in zip(flat, (heads, kv_heads, kv_heads), strict=True)]
    # Rotation in pairs (i, i + d/2) by the angle position / theta^(2i/d), written out.
    theta = model.config.rope_parameters["rope_theta"]
    rotated = [torch.empty_like(t) for t in plain[:2]]
    for position in range(11):
        for i in range(d // 2):
            angle = torch.tensor(position / theta ** (2 * i / d))
            for source, target in zip(plain[:2], rotated, strict=True):
                a, b = source[:, :, position, i], source[:, :, position, i + d // 2]
                target[:, :, position, i] = a * angle.cos() - b * angle.sin()
                target[:, :, position, i + d // 2] = b * angle.cos() + a * angle.sin()
    torch.testing.assert_close(query, rotated[0])
    torch.testing.assert_close(key, rotated[1])
    torch.testing.assert_close(value, plain[2])
    assert not torch.allclose(query, plain[0], atol=1e-3)


@pytest.mark.parametrize("model_type", ["falcon", "bloom", "mpt", "gptj", "codegen"])
def test_architectures_outside_the_interface_are_refused(model_type):
    """Newer releases of transformers bring one after another to the interface: there it must be captured."""
    options = {
        "falcon": ARCHITECTURES["falcon"],
        "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2},
        "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 2},
        "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 8},
        "codegen": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4},
    }[model_type]
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](vocab_size=64, **options))
    if hasattr(sys.modules[type(model).__module__], "ALL_ATTENTION_FUNCTIONS"):
        tokens = random_tokens(2, 11) % 64
        with torch.no_grad():
            expected = model.eval()(tokens).logits
            with AttentionStateCapture(model, [0]) as capture:
                assert torch.equal(model(tokens).logits, expected)
        heads = model.config.num_attention_heads
        assert {state.shape for state in capture.states[0]} == {(2, heads, 11, model.config.hidden_size // heads)}
        return
    with pytest.raises(ValueError, match=rf'model type "{model_type}".*AttentionInterface.*attention_loss_weight=0'):
        AttentionStateCapture(model, [0])


def test_a_hybrid_has_attention_in_some_layers():
    model, batch = tiny_model("qwen3_5_text"), padded_batch()
    assert attention_layers(model) == {1}
    with torch.no_grad():
        expected = model(**batch, use_cache=False).logits
        with AttentionStateCapture(model, [-1]) as capture:
            assert torch.equal(model(**batch, use_cache=False).logits, expected)
    assert [tuple(state.shape) for state in capture.states[0]] == [(2, 4, 11, 16), (2, 2, 11, 16), (2, 2, 11, 16)]
    with pytest.raises(ValueError, match=r"no attention in layer\(s\) \[0\]; layers with attention: \[1\]"):
        AttentionStateCapture(model, [0])


def test_a_modelling_file_without_the_interface_is_refused(monkeypatch):
    monkeypatch.delattr(modeling_llama, "ALL_ATTENTION_FUNCTIONS")
    with pytest.raises(ValueError, match=r'model type "llama".*AttentionInterface.*attention_loss_weight=0'):
        AttentionStateCapture(tiny_model("llama"), [0])


def test_a_layer_that_records_nothing_is_an_error():
    model = tiny_model("llama")
    capture = AttentionStateCapture(model, [1])
    with pytest.raises(RuntimeError, match=r"layer\(s\) \[1\] ran no attention"):
        with capture:
            pass
    assert model.config._attn_implementation == "sdpa"
    # an implementation that is forced behind the interface's back
    with pytest.raises(RuntimeError, match=r"LlamaForCausalLM .*ran no attention"):
        with capture:
            model.config._attn_implementation_internal = "sdpa"
            model(**padded_batch())


def test_two_forward_passes_in_one_capture_are_an_error():
    model = tiny_model("llama")
    with pytest.raises(RuntimeError, match="more than once"):
        with AttentionStateCapture(model, [1]):
            model(**padded_batch())
            model(**padded_batch())
    assert model.config._attn_implementation == "sdpa"


def test_errors_about_layers():
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="layer 2 does not exist in a model of 2 layers"):
        AttentionStateCapture(model, [2])
    with pytest.raises(ValueError, match="layer -3"):
        AttentionStateCapture(model, [-3])
    with pytest.raises(ValueError, match="twice"):
        AttentionStateCapture(model, [1, -1])
    assert AttentionStateCapture(model, [-1, 0]).layers == [1, 0]
    with pytest.raises(ValueError, match="no transformers config"):
        AttentionStateCapture(torch.nn.Linear(2, 2), [0])


def test_an_exception_inside_restores_the_model():
    model = tiny_model("llama")
    capture = AttentionStateCapture(model, [0])
    with pytest.raises(ZeroDivisionError):
        with capture:
            model(**padded_batch())
            raise ZeroDivisionError
    assert model.config._attn_implementation == "sdpa"
    with capture:
        model(**padded_batch())
    assert len(capture.release()) == 1 and capture.states == []


def test_nested_captures_of_models_that_share_a_config():
    config = tiny_config("llama")
    a, b = (AutoModelForCausalLM.from_config(config).eval() for _ in range(2))
    # from_config copies; make it the same object
    for module in b.modules():
        if hasattr(module, "config"):
            module.config = a.config
    batch = padded_batch()
    with torch.no_grad():
        with AttentionStateCapture(a, [0]) as first, AttentionStateCapture(b, [0]) as second:
            a(**batch)
            b(**batch)
        with AttentionStateCapture(a, [0]) as alone:
            a(**batch)
    assert torch.equal(first.states[0].query, alone.states[0].query)
    assert not torch.equal(first.states[0].query, second.states[0].query)
    assert a.config._attn_implementation == "sdpa"


def test_a_function_that_reads_its_own_name_finds_it():
    # As flash attention does, to load the package it calls.
    names = []

    def named(module, *args, **kwargs):
        names.append(module.config._attn_implementation)
        return sdpa_attention_forward(module, *args, **kwargs)

    AttentionInterface.register("named_attention", named)
    AttentionMaskInterface.register("named_attention", AttentionMaskInterface._global_mapping["sdpa"])
    model = tiny_model("llama")
    with torch.no_grad():
        expected = model(**padded_batch()).logits
        model.set_attn_implementation("named_attention")
        with AttentionStateCapture(model, [0]) as capture:
            assert torch.equal(model(**padded_batch()).logits, expected)
            assert model.config._attn_implementation != "named_attention"  # still capturing
    assert set(names) == {"named_attention"} and len(names) == model.config.num_hidden_layers
    assert len(capture.states) == 1 and model.config._attn_implementation == "named_attention"


def test_another_thread_records_nothing_here():
    model = tiny_model("llama")
    other = padded_batch(7)
    with torch.no_grad(), AttentionStateCapture(model, [0]) as capture:
        thread = threading.Thread(target=lambda: model(**other))
        thread.start()
        thread.join()
        model(**padded_batch())
    assert capture.states[0].query.shape[2] == 11


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2"])
def test_gradients_through_gradient_checkpointing(model_type):
    model = tiny_model(model_type).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.config.attention_dropout = 0.0
    implementation = model.config._attn_implementation
    batch = padded_batch()

    def gradients(reentrant=None):
        model.zero_grad()
        if reentrant is not None:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        with AttentionStateCapture(model, [1]) as capture:
            logits = model(**batch, use_cache=False).logits
        query, key, value = capture.states[0]
        (logits.square().mean() + query.square().mean() + key.sum() + value.sum()).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    expected = gradients()
    actual = gradients(reentrant=False)
    assert actual.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(actual[name], grad)
    with pytest.raises(RuntimeError, match="non-reentrant activation checkpointing"):
        gradients(reentrant=True)
    assert model.config._attn_implementation == implementation


def test_autocast_records_the_dtype_of_the_attention():
    model = tiny_model("llama")
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model(**padded_batch(), use_cache=False).logits
        with AttentionStateCapture(model, [0]) as capture:
            actual = model(**padded_batch(), use_cache=False).logits
    assert torch.equal(actual, expected)
    assert capture.states[0].value.dtype == torch.bfloat16


def test_wrapped_models():
    from peft import LoraConfig, get_peft_model

    model = tiny_model("llama")
    batch = padded_batch()
    with torch.no_grad():
        expected = model(**batch).logits
    wrapped = get_peft_model(copy.deepcopy(model), LoraConfig(target_modules=["q_proj"]))

    class Wrapper(torch.nn.Module):  # what DistributedDataParallel looks like from outside
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, **kwargs):
            return self.module(**kwargs)

    for wrapper in (wrapped, Wrapper(model), Wrapper(wrapped)):
        with torch.no_grad(), AttentionStateCapture(wrapper, [-1]) as capture:
            torch.testing.assert_close(wrapper(**batch).logits, expected)
        assert capture.layers == [1] and capture.states[0].query.shape == (2, 4, 11, 12)


def test_classification_models():
    model = AutoModelForSequenceClassification.from_config(tiny_config("qwen2", num_labels=3)).eval()
    with torch.no_grad(), AttentionStateCapture(model, [1]) as capture:
        assert model(**padded_batch()).logits.shape == (2, 3)
    assert capture.states[0].key.shape == (2, 2, 11, 12)


def test_gpt2_upcasting_eager_attention_is_refused():
    model = tiny_model("gpt2", reorder_and_upcast_attn=True)
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="reorder_and_upcast_attn"):
        with AttentionStateCapture(model, [0]):
            pass
    assert model.config._attn_implementation == "eager"
