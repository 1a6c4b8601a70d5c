import copy
import io

import pytest
import torch
from torch import nn

from hf_bitdistill.nn import QuantizedEmbedding, QuantizedHead, QuantizedTable
from hf_bitdistill.ops import binding, pack_table


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def steps(table, bits):
    """The scale of each element, as the format says."""
    if bits == 8:
        return (table.abs().amax(1, keepdim=True) / 127).expand_as(table)
    groups = [part.abs().amax(1, keepdim=True).expand_as(part) / 7 for part in table.split(32, dim=1)]
    return torch.cat(groups, dim=1)


@pytest.fixture(params=["native", "torch"])
def backend(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(binding, "library", lambda: None)
    elif binding.load()[0] is None:
        pytest.skip(binding.load()[1])


@pytest.mark.parametrize("bits", [8, 4])
def test_embedding_and_head_are_within_the_rounding_of_the_float_layers(backend, bits):
    table, bias, x = random(101, 70), random(101, seed=1), random(5, 3, 70, seed=2)
    packed = QuantizedTable(table, bits)
    ids = torch.tensor([[0, 100, 17], [3, 3, 50]])
    rows = QuantizedEmbedding(packed, torch.float32)(ids)
    assert rows.shape == (2, 3, 70)
    rounding = 0.5 * steps(table, bits) * 1.001 + 4e-3 * table.abs() * (bits == 4)
    assert ((rows - table[ids]).abs() <= rounding[ids]).all()

    logits = QuantizedHead(packed, bias)(x)
    expected = nn.functional.linear(x, table, bias)
    # |x W - x' W'| <= |x| |W - W'| + |x - x'| |W'|
    step_of_x = x.abs().amax(-1, keepdim=True) / 127
    bound = x.abs() @ rounding.T + 0.5 * step_of_x * (table.abs() + rounding).sum(1)
    assert ((logits - expected).abs() <= bound + 1e-4).all()
    # A sum of roundings that have no common sign is far below the sum of their bounds.
    assert (logits - expected).std() < (0.02 if bits == 8 else 0.15) * expected.std()


@pytest.mark.parametrize("bits", [8, 4])
def test_fallback_equals_kernels(monkeypatch, bits):
    if binding.load()[0] is None:
        pytest.skip(binding.load()[1])
    table, x, ids = random(65, 45), random(4, 45, seed=1), torch.arange(65)
    results = []
    for library in (binding.library, lambda: None):
        monkeypatch.setattr(binding, "library", library)
        packed = QuantizedTable(table, bits)
        results.append((packed.weight, QuantizedEmbedding(packed, torch.float32)(ids), QuantizedHead(packed)(x)))
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("token", [-1, 20, 2**40])
def test_a_token_out_of_range(backend, bits, token):
    embedding = QuantizedEmbedding(QuantizedTable(random(20, 32), bits), torch.float32)
    with pytest.raises(IndexError, match=rf"token id {token} at \[1, 2\] is not in the vocabulary of 20 tokens"):
        embedding(torch.tensor([[0, 1, 2], [19, 0, token]]))


@pytest.mark.parametrize("bits", [8, 4])
def test_size(bits):
    table = random(1000, 256)
    assert pack_table(table, bits).numel() < table.numel() * (bits + 0.7) / 8


def test_dtypes_scale_and_copies():
    packed = QuantizedTable(random(20, 32), 8)
    embedding, head = QuantizedEmbedding(packed, torch.float32, scale=2.0), QuantizedHead(packed)
    ids = torch.arange(4)
    assert torch.equal(embedding(ids), 2 * QuantizedEmbedding(packed, torch.float32)(ids))
    model = nn.ModuleList([embedding, head])
    clone = copy.deepcopy(model).to(torch.bfloat16)
    assert clone[0].table is clone[1].table and clone[0].table is not packed
    assert clone[0].table.weight.dtype == torch.uint8 and clone[0](ids).dtype == torch.bfloat16
    assert clone[1](torch.ones(1, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    other = nn.ModuleList([QuantizedEmbedding(QuantizedTable(random(20, 32, seed=9), 8), torch.float32, 2.0)])
    file.seek(0)
    other.load_state_dict({k: v for k, v in torch.load(file).items() if k.startswith("0.")})
    assert torch.equal(other[0](ids), embedding(ids))


def test_other_bits_and_devices_are_refused():
    with pytest.raises(ValueError, match="8 or 4"):
        pack_table(random(4, 4), 3)
    with pytest.raises(RuntimeError, match="CPUs only"):
        QuantizedTable(random(4, 4), 8).to("meta")
