"""Students in training and packed models under `torch.compile`: one graph, equal results."""

import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch._dynamo.testing import CompileCounterWithBackend

from architectures import random_tokens, tiny_model
from hf_bitdistill import BitNetConfig, apply_bitnet, pack, quantize_head
from hf_bitdistill.nn import (
    QuantizedEmbedding,
    QuantizedHead,
    QuantizedTable,
    set_dead_zone_leak,
    set_quantization_share,
)
from hf_bitdistill.ops import binding


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


# Every value of each column once; all combinations would take a minute.
@pytest.mark.parametrize(
    ("backend", "head_bits", "context"),
    [("native", 16, torch.no_grad), ("native", 8, torch.inference_mode), ("torch", 8, torch.enable_grad)],
)
def test_a_model_is_one_graph(monkeypatch, backend, head_bits, context):
    if backend == "torch":
        monkeypatch.setattr(binding, "library", lambda: None)
    elif binding.load()[0] is None:
        pytest.skip(binding.load()[1])
    model = pack(apply_bitnet(tiny_model("llama", num_hidden_layers=1)))
    if head_bits != 16:
        quantize_head(model, head_bits)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with context():
        for length in (1, 11):
            tokens = random_tokens(length=length)
            expected = model(input_ids=tokens, use_cache=False).logits
            assert torch.equal(compiled(input_ids=tokens, use_cache=False).logits, expected)


@pytest.mark.parametrize("granularity", ["tensor", pytest.param("row", marks=pytest.mark.slow)])
def test_training_is_one_graph(granularity):
    model = apply_bitnet(
        tiny_model("llama", num_hidden_layers=1), BitNetConfig(weight_granularity=granularity)
    ).train()
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=graphs)
    tokens = random_tokens(length=11)

    def gradients(forward):
        model.zero_grad()
        forward(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    def compiled_graphs(setting, values):
        for value in values:
            setting(model, value)
            torch.testing.assert_close(gradients(compiled), gradients(model))
        return graphs.frame_count

    compiled_graphs(set_quantization_share, [1.0])
    # A schedule is compiled at its first step, not at every one, and what follows it is compiled already.
    for setting, schedule in (
        (set_quantization_share, (0.25, 0.5, 0.75, 1.0)),
        (set_dead_zone_leak, (0.9, 0.5, 0.1, 0.0)),
    ):
        assert compiled_graphs(setting, schedule[:1]) == compiled_graphs(setting, schedule[1:])


@torch.no_grad()
def test_nothing_breaks_a_graph():
    online = apply_bitnet(tiny_model("qwen3", num_hidden_layers=1)).eval()
    for model in (online, pack(online, table_bits=8)):
        tokens = random_tokens(length=5)
        explained = torch._dynamo.explain(model)(input_ids=tokens, use_cache=False)
        assert (explained.graph_count, explained.graph_break_count) == (1, 0), explained.break_reasons


@torch.no_grad()
def test_an_adapter_breaks_no_graph():
    packed = pack(apply_bitnet(tiny_model("llama", num_hidden_layers=1)), table_bits=8)
    model = get_peft_model(packed, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")).eval()
    explained = torch._dynamo.explain(model)(input_ids=random_tokens(length=5), use_cache=False)
    assert (explained.graph_count, explained.graph_break_count) == (1, 0), explained.break_reasons


# A whole model is traced anew around each break, which takes most of the time: what is around a mixture is in the test of a dense model above.
@pytest.mark.parametrize("part", ["model.layers.0.mlp", pytest.param("", marks=pytest.mark.slow, id="model")])
@torch.no_grad()
def test_a_mixture_is_compiled_in_pieces(part):
    """Which expert computes depends on the values: the compiler breaks there, and nowhere else."""
    # (Each expert is a break, and each break takes the compiler seconds.)
    experts = {"num_experts": 2, "num_experts_per_tok": 1}
    online = apply_bitnet(tiny_model("qwen3_moe", num_hidden_layers=1, **experts)).eval()
    inputs = {
        "hidden_states": torch.randn(2, 5, online.config.hidden_size, generator=torch.Generator().manual_seed(0))
    }
    if not part:
        inputs = {"input_ids": random_tokens(length=5), "use_cache": False}
    explained = torch._dynamo.explain(online.get_submodule(part))(**inputs)
    reasons = [str(reason.reason) for reason in explained.break_reasons]
    assert reasons and all("depends on input Tensor data" in reason for reason in reasons), reasons
    torch.compiler.reset()
    packed = pack(online).get_submodule(part)
    found, expected = torch.compile(packed, backend="eager")(**inputs), packed(**inputs)
    assert torch.equal(found if part else found.logits, expected if part else expected.logits)


def test_layers_without_kernels_are_one_graph():
    """Activations in floats have no kernel: the compiler is shown the torch code, gradient included, as on a GPU."""
    model = tiny_model("llama", num_hidden_layers=1)
    layer = pack(apply_bitnet(model, BitNetConfig(activation_bits=None))).model.layers[0].mlp.down_proj
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph.code)
        return graph

    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    x = torch.randn(3, 88, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with torch.no_grad():
        assert torch.equal(compiled(x), layer(x))
    (expected,) = torch.autograd.grad(layer(x).sum(), x)
    # (The gradient of a SubLN is the native library's where no compiler looks: the same up to rounding.)
    torch.testing.assert_close(torch.autograd.grad(compiled(x).sum(), x)[0], expected, rtol=1e-5, atol=1e-6)
    # (The compiler of torch 2.9 takes whatever it compiles for an export, which holds the operator.)
    exports = torch.compile(lambda x: x + torch.compiler.is_exporting(), backend="eager", fullgraph=True)
    holds_operator = any("hf_bitdistill" in code.replace("hf_bitdistill_", "") for code in graphs)
    assert len(graphs) == 2 and holds_operator == bool(exports(torch.zeros(1)))


@pytest.mark.parametrize("table_bits", [8, 4])
@torch.no_grad()
def test_on_another_device_as_far_as_shapes_go(table_bits):
    model = pack(apply_bitnet(tiny_model("llama", num_hidden_layers=1)), table_bits=table_bits)
    model = model.to(torch.bfloat16).to("meta")
    hidden = model.get_input_embeddings()(random_tokens(length=5).to("meta"))
    logits = model.lm_head(model.model.layers[0].mlp(hidden))
    assert (logits.device.type, logits.shape, logits.dtype) == ("meta", (2, 5, 96), torch.bfloat16)


@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="inductor needs a C++ compiler")
def test_inductor(tmp_path, monkeypatch):
    # Only layers of this package: the rest of a model takes the compiler half a minute and says nothing about them.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    packed = pack(apply_bitnet(tiny_model("llama", num_hidden_layers=1))).model.layers[0].mlp.down_proj
    table = QuantizedTable(torch.randn(20, 88, generator=torch.Generator().manual_seed(0)), 4)
    model = torch.nn.Sequential(QuantizedEmbedding(table, torch.float32), packed)
    tokens = torch.arange(12).view(2, 6)
    head = QuantizedHead(QuantizedTable(torch.randn(9, 48, generator=torch.Generator().manual_seed(1)), 8))
    compiled = torch.compile(lambda ids: head(model(ids)), fullgraph=True, backend="inductor")
    with torch.inference_mode():
        assert torch.equal(compiled(tokens), head(model(tokens)))
