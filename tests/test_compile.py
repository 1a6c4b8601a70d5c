"""Students in training and packed models under `torch.compile`: one graph, equal results."""

import shutil

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from architectures import random_tokens, tiny_model
from hf_bitdistill import BitNetConfig, apply_bitnet, pack, quantize_head
from hf_bitdistill.layers import (
    QuantizedEmbedding,
    QuantizedHead,
    QuantizedTable,
    set_dead_zone_leak,
    set_quantization_share,
)
from hf_bitdistill.ops import native


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
        monkeypatch.setattr(native, "library", lambda: None)
    elif native.load()[0] is None:
        pytest.skip(native.load()[1])
    model = pack(apply_bitnet(tiny_model("llama", num_hidden_layers=1)))
    if head_bits != 16:
        quantize_head(model, head_bits)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with context():
        for length in (1, 11):
            tokens = random_tokens(length=length)
            expected = model(input_ids=tokens, use_cache=False).logits
            assert torch.equal(compiled(input_ids=tokens, use_cache=False).logits, expected)


@pytest.mark.parametrize("granularity", ["tensor", "row"])
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
