"""LoRA adapters in the native decoder, against PEFT on packed layers in transformers."""

import copy
import json
import pickle
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapter_helpers import draw
from architectures import random_tokens
from hf_bitdistill import pack
from hf_bitdistill.adapters.adapter_files import AdapterError
from students import assert_close, make_student


pytestmark = pytest.mark.usefixtures("native_decoder")


@pytest.fixture
def adapter(tmp_path):
    """Saves an adapter of a model, as if trained; returns the `PeftModel` and its folder."""
    from peft import LoraConfig, get_peft_model

    def make(base, name="adapter", seed=0, **options):
        config = LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": "all-linear", **options})
        adapted = get_peft_model(copy.deepcopy(base), config)
        draw(adapted, seed=seed)
        adapted.save_pretrained(tmp_path / name)
        return adapted.eval(), tmp_path / name

    return make


@torch.no_grad()
def logits(model, length=17):
    return model(input_ids=random_tokens(1, length)).logits[0]


@pytest.mark.parametrize(
    "model_type, student, options",
    [
        ("llama", {"mlp_bias": True}, {}),
        ("qwen3", {"options": {"sub_norm": "all"}}, {"use_rslora": True, "rank_pattern": {"o_proj": 7}}),
        ("phi3", {}, {"alpha_pattern": {"qkv_proj": 1}, "target_modules": ["qkv_proj", "down_proj"]}),
        ("gemma2", {"options": {"weight_granularity": "group", "group_size": 64}}, {}),
        ("bitnet", {}, {"target_modules": ["o_proj", "down_proj"]}),
        ("qwen2", {"options": {"modules_to_not_convert": ["q_proj", "layers.1.mlp.down_proj"]}}, {}),
        ("qwen3_moe", {}, {"target_modules": ["q_proj", "o_proj"]}),
    ],
)
def test_logits(pair, adapter, model_type, student, options):
    packed, native = pair(model_type, **student)
    before = logits(native)
    adapted, folder = adapter(packed, **options)
    native.load_adapter(folder)
    expected = logits(adapted)
    assert_close(logits(native), expected)
    assert (expected - logits(packed)).abs().max() > 0.1 * expected.std()
    native.disable_adapters()
    assert torch.equal(logits(native), before)
    native.enable_adapters()
    assert_close(logits(native), expected)


def test_one_base_serves_many_tasks(pair, adapter):
    packed, native = pair()
    base, memory = logits(native), native.decoder.weight_bytes
    first, one = adapter(packed, "one", 1)
    second, two = adapter(packed, "two", 2, r=2, target_modules=["q_proj", "down_proj"])
    native.load_adapter(one, "one")
    native.load_adapter(two, "two")
    assert native.active_adapters() == ["two"] and native.decoder.weight_bytes == memory
    assert_close(logits(native), logits(second))
    native.set_adapter("one")
    assert_close(logits(native), logits(first))
    prompt = random_tokens(1, 5)
    options = {"max_new_tokens": 12, "do_sample": False}
    assert torch.equal(native.generate(prompt, **options), first.generate(input_ids=prompt, **options))
    # A cache belongs to the adapters that it was filled with.
    cache = native(input_ids=prompt).past_key_values
    native.set_adapter(["one", "two"])
    with pytest.raises(ValueError, match="cache of another model"):
        native(input_ids=prompt[:, :1], past_key_values=cache)
    first.load_adapter(two, "two")
    first.base_model.set_adapter(["default", "two"])
    assert_close(logits(native), logits(first))
    native.set_adapter("one")
    native(input_ids=prompt[:, :1], past_key_values=cache)
    native.delete_adapter("one")
    assert native.active_adapters() == [] and torch.equal(logits(native), base)
    for call in (lambda: native.set_adapter("one"), lambda: native.delete_adapter("one")):
        with pytest.raises(ValueError, match=r"no adapter 'one' was loaded; there are: \['two'\]"):
            call()
    with pytest.raises(ValueError, match="an adapter 'two' already"):
        native.load_adapter(two, "two")


def test_from_pretrained_and_save(pair, adapter, tmp_path, caplog):
    from optimum.bitnet import BitNetModelForCausalLM

    packed, native = pair()
    adapted, folder = adapter(packed)
    loaded = BitNetModelForCausalLM.from_pretrained(tmp_path / "llama", kv_dtype="float32", adapter=folder)
    assert_close(logits(loaded), logits(adapted), 2e-2)  # (tables in 16 bits)
    loaded.save_pretrained(tmp_path / "base")  # the base: an adapter is a file of its own
    assert "gets the base model: the adapters in use (default)" in caplog.text
    again = BitNetModelForCausalLM.from_pretrained(tmp_path / "base", head_bits=32, kv_dtype="float32")
    assert torch.equal(logits(again), logits(native))


def test_what_a_copy_takes_over(pair, adapter):
    packed, native = pair()
    for name, seed in (("one", 1), ("two", 2)):
        native.load_adapter(adapter(packed, name, seed)[1], name)
    two = logits(native)
    native.set_adapter("one")
    for again in (copy.deepcopy(native), pickle.loads(pickle.dumps(native))):
        assert again.active_adapters() == ["one"] and torch.equal(logits(again), logits(native))
        again.set_adapter("two")
        assert torch.equal(logits(again), two)
    with pytest.raises(ValueError, match="disable_adapters"):
        native.dequantize()
    # Around the same weights: what is active is each one's own.
    shallow = copy.copy(native)
    shallow.set_adapter("two")
    assert native.active_adapters() == ["one"] and torch.equal(logits(shallow), two)
    assert not torch.equal(logits(native), two)


def test_on_packed_layers_in_transformers(adapter, tmp_path):
    """Where the native decoder cannot compute the model, PEFT applies the adapter."""
    from optimum.bitnet import BitNetModelForCausalLM

    packed = pack(make_student("olmo2", options={"activation_bits": None}), table_bits=32)
    packed.save_pretrained(tmp_path / "base")
    first, one = adapter(packed, "one", 1)
    second, two = adapter(packed, "two", 2)
    model = BitNetModelForCausalLM.from_pretrained(tmp_path / "base", adapter=one)
    assert model.backend == "transformers" and torch.equal(logits(model), logits(first))
    model.load_adapter(two, "two")
    assert torch.equal(logits(model), logits(second))
    model.set_adapter("default")
    assert torch.equal(logits(model), logits(first))
    model.disable_adapters()
    assert torch.equal(logits(model), logits(packed))
    model.delete_adapter("two")
    model.enable_adapters()
    assert torch.equal(logits(model), logits(first))


@pytest.mark.parametrize("model_type", ["llama", "qwen3_moe"])
@torch.no_grad()
def test_rows_do_not_depend_on_what_is_beside_them(pair, adapter, model_type):
    packed, native = pair(model_type, hidden_size=96, max_position_embeddings=160)
    targets = "all-linear" if model_type == "llama" else ["q_proj", "o_proj"]
    native.load_adapter(adapter(packed, r=17, target_modules=targets)[1])
    decoder = native.decoder
    rows = [random_tokens(1, count, seed=count)[0] for count in (70, 130, 9)]
    sequences = torch.repeat_interleave(torch.arange(3), torch.tensor([len(row) for row in rows]))
    tokens = torch.cat(rows)
    decoder.num_threads = 1
    steps = []
    for row in rows:
        cache = decoder.new_cache(1)
        zero = torch.zeros(1, dtype=torch.int64)
        steps += [decoder.forward(cache, token[None], zero, zero) for token in row]
    for threads in (1, 3):
        decoder.num_threads = threads
        together = decoder.forward(decoder.new_cache(3), tokens, sequences, torch.arange(len(tokens)))
        assert torch.equal(together, torch.cat(steps)), threads


def test_threads_with_adapters_of_their_own(pair, adapter):
    """Decoders of one base are made and used at the same time."""
    packed, native = pair()
    parts = [native.decoder.adapted(load(adapter(packed, str(seed), seed)[1], native)) for seed in (1, 2)]
    tokens = random_tokens(1, 9)[0]

    def run(decoder):
        return decoder.forward(decoder.new_cache(1), tokens, torch.zeros_like(tokens), torch.arange(9))

    expected = [run(decoder) for decoder in parts]
    results = {}

    def work(number):
        low_rank = load(packed_folders[number], native)
        results[number] = [run(native.decoder.adapted(low_rank)) for _ in range(20)]

    packed_folders = [adapter(packed, str(seed), seed)[1] for seed in (1, 2)]
    workers = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(torch.equal(out, expected[number]) for number, outs in results.items() for out in outs)
    assert len(results) == 2


def load(folder, native):
    from hf_bitdistill.adapters.adapter_files import load_low_rank

    modules = native._student.model
    names = {p.module for layer in native.decoder.spec.layers for p in layer.projections}
    layers = {name: modules.get_submodule(name) for name in names}
    return load_low_rank(folder, {name: (layer.out_features, layer.in_features) for name, layer in layers.items()})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"use_dora": True}, "cannot apply an adapter with use_dora=True"),
        ({"modules_to_save": ["lm_head"]}, r"cannot apply an adapter with modules_to_save=\['lm_head'\]"),
        ({"bias": "all"}, "cannot apply an adapter with bias='all'"),
        ({"lora_bias": True}, "cannot apply an adapter with lora_bias=True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"r": 3}, r"q_proj' are \[4, 48\] and \[48, 4\], not \[3, 48\] and \[48, 3\]"),
        ({"peft_type": "IA3"}, "is a .*IA3 adapter"),
    ],
)
def test_configs_that_are_refused(pair, adapter, change, message):
    packed, native = pair()
    _, folder = adapter(packed, target_modules=["q_proj"])
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    before = logits(native)
    with pytest.raises(AdapterError, match=message):
        native.load_adapter(folder)
    assert native.active_adapters() == [] and torch.equal(logits(native), before)


def test_tensors_that_are_refused(pair, adapter, tmp_path):
    packed, native = pair()
    _, folder = adapter(packed, target_modules=["q_proj"])
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_{}.weight"
    cases = [
        ({name.format("A"): None}, "there is no tensor 'base_model.*layers.1.self_attn.q_proj.lora_A.weight'"),
        ({name.format("B"): torch.full((48, 4), torch.nan)}, "q_proj.lora_B.weight' is not finite"),
        ({name.format("B"): torch.zeros(40, 4)}, "adapter of another model"),
        ({"base_model.model.lm_head.lora_A.weight": torch.zeros(4, 48)}, "'lm_head' is no projection of this model"),
        ({"base_model.model.model.norm.weight": torch.zeros(48)}, "no place for the tensor"),
    ]
    for change, message in cases:
        changed = {key: tensor for key, tensor in {**tensors, **change}.items() if tensor is not None}
        save_file(changed, file)
        with pytest.raises(AdapterError, match=message):
            native.load_adapter(folder)
    with pytest.raises(AdapterError, match="no adapter that can be read"):
        native.load_adapter(tmp_path / "nothing")
