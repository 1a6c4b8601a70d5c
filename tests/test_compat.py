"""What is private in other libraries: each function of `_compat.py` does what it says with the installed versions."""

import ast
import copy
import functools
import importlib
import importlib.util
import inspect
import re
import textwrap
from types import MethodType

import pytest
import torch
from torch import nn
from transformers import GPT2Config
from transformers.utils import cached_file
from transformers.utils.hub import cached_files

from architectures import random_tokens, tiny_config, tiny_model
from hf_bitdistill import _compat
from hf_bitdistill._compat import IN_SUBCLASSES
from private_names import SOURCE


def test_every_function_is_used_and_tested():
    functions = [
        name for name, f in vars(_compat).items() if inspect.isfunction(f) and f.__module__ == _compat.__name__
    ]
    tested = inspect.getsource(importlib.import_module(__name__))
    sources = [path.read_text() for path in SOURCE.rglob("*.py") if path.name != "_compat.py"]
    assert len(functions) > 25
    for name in functions:
        assert f"_compat.{name}(" in tested, f"{name} has no test"
        # (One is for others in the same file too.)
        assert any(f"{name}(" in source for source in sources), f"{name} is not used"
        assert getattr(_compat, name).__doc__


# ---- transformers: files ----


def test_files_that_are_not_there(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    assert _compat.cached_file_or_none(tmp_path, "a.json") == str(tmp_path / "a.json")
    assert _compat.cached_file_or_none(tmp_path, "b.json") is None
    # (The tests are offline.)
    assert _compat.cached_file_or_none("nobody/nothing", "a.json", offline=True) is None
    with pytest.raises(OSError):
        cached_file("nobody/nothing", "a.json")
    quiet = {name for name in inspect.signature(cached_files).parameters if name.startswith("_raise")}
    source = inspect.getsource(_compat.cached_file_or_none)
    assert len(quiet & set(re.findall(r"_raise\w+", source))) == 2


def test_the_commit_of_a_config():
    assert _compat.commit_of(GPT2Config()) is None
    assert _compat.commit_of(GPT2Config(_commit_hash="abc")) in ("abc", None)  # newer versions do not note it
    assert "commit_hash" in inspect.getsource(importlib.import_module("transformers.configuration_utils"))


# ---- transformers: models ----


def test_what_was_loaded_is_marked(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    marked = []

    class Watching(type(tiny_model("llama"))):
        def tie_weights(self, *args, **kwargs):
            # (The marks are taken off in the end.)
            marked.append({name for name, p in self.named_parameters() if _compat.is_initialized(p)})
            return super().tie_weights(*args, **kwargs)

    model = Watching.from_pretrained(tmp_path)
    assert set().union(*marked) >= {"model.layers.0.self_attn.q_proj.weight", "model.norm.weight"}
    assert not _compat.is_initialized(torch.zeros(1))
    assert _compat.weight_conversions(tiny_model("llama")) is None
    conversions = _compat.weight_conversions(model)
    assert conversions is None or isinstance(conversions, list)


def test_conversions_are_reverted_when_saved(tmp_path):
    from safetensors.torch import load_file
    from transformers.core_model_loading import WeightRenaming

    model = tiny_model("llama")
    _compat.set_weight_conversions(model, [WeightRenaming("model.other", "model.norm")])
    assert len(_compat.weight_conversions(model)) == 1
    model.save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors")
    assert "model.other.weight" in names and "model.norm.weight" not in names


def test_a_model_that_was_quantised_is_not_any_more():
    model = tiny_model("llama")
    model.config._is_quantized = True
    _compat.forget_quantization(model)
    assert not hasattr(model.config, "_is_quantized")
    source = inspect.getsource(importlib.import_module("transformers.modeling_utils"))
    assert "_is_quantized" in source or "_is_quantized" in inspect.getsource(
        importlib.import_module("transformers.configuration_utils")
    )


def test_names_that_may_be_missing(tmp_path, monkeypatch):
    from safetensors.torch import load_file, save_file

    tiny_model("llama").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    kind = type(tiny_model("llama"))
    told = kind.from_pretrained(tmp_path, output_loading_info=True)[1]["missing_keys"]
    assert set(told) == {"model.norm.weight"}

    class Without(kind):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            _compat.add_optional_names(self, [r"model\.norm\.weight"])
            assert r"model\.norm\.weight" in _compat.optional_names(self)

    assert not Without.from_pretrained(tmp_path, output_loading_info=True)[1]["missing_keys"]


def test_names_that_stay_in_float32(tmp_path):
    model = tiny_model("llama")
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert _compat.names_in_float32(model, dtype) == set()
    kind = type(model)

    class Kept(kind):
        _keep_in_fp32_modules = ["norm"]
        _keep_in_fp32_modules_strict = ["down_proj"]

    expected = {torch.float32: set(), torch.float16: {"norm", "down_proj"}, torch.bfloat16: {"down_proj"}}
    model.save_pretrained(tmp_path)
    for dtype, names in expected.items():
        loaded = Kept.from_pretrained(tmp_path, dtype=dtype)
        assert _compat.names_in_float32(loaded, dtype) == names
        if dtype != torch.float32:  # as transformers does
            assert (loaded.model.norm.weight.dtype == torch.float32) == ("norm" in names)
            assert loaded.model.layers[0].mlp.down_proj.weight.dtype == torch.float32


def test_classes_of_layers():
    assert _compat.undivided_classes(tiny_model("llama")) == {"LlamaDecoderLayer"}
    assert _compat.undivided_classes(nn.Linear(2, 2)) == set()


def test_names_of_tied_tensors():
    model = tiny_model("llama")
    before = model.get_expanded_tied_weights_keys(all_submodels=True)
    assert before
    _compat.forget_tied_names(model)
    assert not model.get_expanded_tied_weights_keys(all_submodels=True)
    _compat.restore_tied_names(model)
    assert model.get_expanded_tied_weights_keys(all_submodels=True) == before


def test_adapters_that_transformers_injects():
    model = tiny_model("llama")
    assert not _compat.has_injected_adapters(model) and not _compat.has_injected_adapters(nn.Linear(2, 2))
    # (`add_adapter` itself asks for a version of PEFT that need not be there.)
    (name,) = set(re.findall(r"self\.(_\w*loaded) = True", inspect.getsource(type(model).add_adapter)))
    setattr(model, name, True)
    assert _compat.has_injected_adapters(model)


@torch.no_grad()
def test_the_activation_of_fused_experts():
    fused = tiny_model("qwen3_moe").model.layers[0].mlp.experts
    both = torch.randn(3, 2 * 40)
    expected = nn.functional.silu(both[:, :40]) * both[:, 40:]
    torch.testing.assert_close(_compat.gated_activation(fused)(fused, both), expected)


def test_a_cache_of_the_caller():
    from transformers import DynamicCache
    from transformers.generation import utils

    cache = DynamicCache()
    _compat.mark_as_given(cache)
    (name,) = vars(cache).keys() - vars(DynamicCache()).keys()
    assert f'"{name}"' in inspect.getsource(utils)


# ---- transformers: attention ----


@torch.no_grad()
def test_the_function_that_computes_attention():
    from transformers import AttentionInterface

    model, tokens, called = tiny_model("llama"), random_tokens(), []
    sdpa = AttentionInterface()["sdpa"]

    def watched(*args, **kwargs):
        called.append(True)
        return sdpa(*args, **kwargs)

    assert _compat.has_attention_implementation(model.config) and not _compat.has_attention_implementation(None)
    before, expected = _compat.attention_implementation(model.config), model(tokens).logits
    assert before == "sdpa" and _compat.attention_implementation(nn.Identity()) is None
    AttentionInterface.register("watched", watched)
    _compat.set_attention_implementation(model.config, "watched")
    assert _compat.attention_implementation(model.config) == "watched"
    model(tokens)
    assert len(called) == model.config.num_hidden_layers
    _compat.set_attention_implementation(model.config, before)
    assert torch.equal(model(tokens).logits, expected)
    assert len(called) == model.config.num_hidden_layers


def test_other_configs_keep_their_attention():
    config = tiny_config("gemma3_text")
    outer = type("Outer", (), {"text_config": config})()
    _compat.set_attention_implementation(outer, "eager")
    assert _compat.attention_implementation(config) != "eager"


# ---- transformers: its server ----


def test_parts_of_the_server():
    serve = pytest.importorskip("transformers.cli.serve")
    utils = importlib.import_module("transformers.cli.serving.utils")
    assert "self._thread" in inspect.getsource(serve.Serve)
    thread = object()
    assert _compat.server_thread(type("Serve", (), {"_thread": thread})()) is thread
    known = set(inspect.signature(utils.GenerationState.__init__).parameters) - {"self"}
    state = utils.GenerationState(**{name: name for name in known})
    options = _compat.generation_options(state)
    assert options == {name: name for name in ("continuous_batching", "compile", "cb_config")}
    assert set(options) <= known


# ---- accelerate, datasets, huggingface_hub ----


def test_a_model_that_accelerate_has_prepared():
    from accelerate import Accelerator

    accelerator, model, other = Accelerator(cpu=True), nn.Linear(2, 2), nn.Linear(2, 2)
    prepared, kept = accelerator.prepare(model), accelerator.prepare(other)
    assert len(accelerator._models) == 2 and prepared._is_accelerate_prepared
    _compat.take_out(accelerator, prepared)
    assert accelerator._models == [kept]
    _compat.forget_prepared(accelerator, model)
    assert not getattr(model, "_is_accelerate_prepared", False)
    _compat.forget_prepared(accelerator, model)  # nothing is left to do
    # `unwrap_model` puts a forward back that was noted.
    _compat.set_original_forward(other, other.forward)
    other.forward = MethodType(functools.wraps(nn.Linear.forward)(lambda self, x: x), other)
    assert accelerator.unwrap_model(other, keep_fp32_wrapper=False).forward.__func__ is nn.Linear.forward


def test_the_part_of_a_stream():
    from datasets import Dataset
    from datasets.distributed import split_dataset_by_node

    stream = Dataset.from_dict({"a": list(range(8))}).to_iterable_dataset(num_shards=2)
    assert not _compat.is_split_by_process(stream) and not _compat.is_split_by_process([1])
    assert _compat.is_split_by_process(split_dataset_by_node(stream, rank=0, world_size=2))


def test_a_file_that_the_hub_does_not_have(tmp_path):
    from huggingface_hub import try_to_load_from_cache

    asked = {"repo_id": "a/b", "filename": "x.json", "cache_dir": tmp_path, "revision": "1" * 40}
    assert not _compat.is_known_to_be_missing(try_to_load_from_cache(**asked))
    folder = tmp_path / "models--a--b"
    (folder / ".no_exist" / ("1" * 40)).mkdir(parents=True)
    (folder / ".no_exist" / ("1" * 40) / "x.json").touch()
    assert _compat.is_known_to_be_missing(try_to_load_from_cache(**asked))


# ---- torch ----


def test_modules_behind_a_compiled_one():
    module = nn.Linear(2, 2)
    assert _compat.uncompiled(torch.compile(module)) is module and _compat.uncompiled(module) is module


def test_versions_of_tensors():
    tensor = torch.zeros(3)
    before = _compat.version_of(tensor)
    tensor[:1].add_(1)
    assert _compat.version_of(tensor) == before + 1
    with _compat.keeps_version(tensor):
        tensor.add_(1)
    assert _compat.version_of(tensor) == before + 1
    with torch.inference_mode():
        made = torch.zeros(1)
    with pytest.raises(RuntimeError):
        _compat.version_of(made)


def test_where_gradients_are_computed():
    seen = []
    x = torch.ones(1, requires_grad=True)
    assert not _compat.is_in_backward() and _compat.backward_pass() == -1
    for _ in range(2):
        y = x * 2
        y.register_hook(lambda gradient: seen.append((_compat.is_in_backward(), _compat.backward_pass())))
        y.backward()
    assert all(inside for inside, _ in seen) and seen[0] != seen[1]
    assert not _compat.is_in_backward() and _compat.backward_pass() == -1


def test_a_subclass_whose_operators_give_ordinary_tensors():
    class Marked(torch.Tensor):
        __torch_function__ = _compat.NO_TORCH_FUNCTION

    marked = torch.ones(2).as_subclass(Marked)
    assert type(marked) is Marked and type(marked + 1) is torch.Tensor


def test_modules_and_their_parameters():
    assert _compat.is_convolution(nn.Conv1d(1, 1, 1)) and _compat.is_convolution(nn.ConvTranspose2d(1, 1, 1))
    assert not _compat.is_convolution(nn.Linear(1, 1))
    module = nn.Linear(2, 2)
    shell = copy.copy(module)
    _compat.forget_parameters(shell)
    assert not list(shell.parameters()) and len(list(module.parameters())) == 2


def test_parts_of_distributed_tensors(tmp_path):
    import torch.distributed as dist
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        spread = distribute_tensor(torch.arange(4.0), init_device_mesh("cpu", (1,)), [Shard(0)])
        local = _compat.local_tensor(spread)
        assert type(local) is torch.Tensor and torch.equal(local, torch.arange(4.0))
        other = torch.ones(4)
        _compat.set_local_tensor(spread, other)
        assert _compat.local_tensor(spread) is other and torch.equal(spread.full_tensor(), other)
    finally:
        dist.destroy_process_group()


def test_operators_and_their_results_are_seen():
    seen = []

    class Watch(_compat.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            seen.extend(
                leaf.shape for leaf in _compat.tree_leaves({"a": [result, 1]}) if isinstance(leaf, torch.Tensor)
            )
            return result

    with Watch():
        torch.ones(3).sum()
    assert seen[0] == (3,) and seen[-1] == ()


def test_computing_without_memory():
    real = torch.ones(2)
    with _compat.fake_tensors():
        product = torch.empty(1 << 40, 2) @ real.unsqueeze(1)
    assert product.shape == (1 << 40, 1)


def test_the_notes_are_for_people():
    """Each function says in a line what for; the versions stand in the head of the file."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(_compat)))
    head = ast.get_docstring(tree)
    assert all(name in head for name in ("transformers 5.20", "accelerate", "datasets", "huggingface_hub", "torch"))
    assert all(entry.why for entry in IN_SUBCLASSES)
