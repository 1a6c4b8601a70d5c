"""Layers whose weight is read past their own forward."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.pytorch_utils import Conv1D

from architectures import ARCHITECTURES, random_tokens, tiny_model
from hf_bitdistill import BitNetConfig, SurgeryError, apply_bitnet
from hf_bitdistill.modeling import placement
from hf_bitdistill.modeling.direct_reads import find_direct_reads
from hf_bitdistill.nn import BitLinear


class Block(nn.Module):
    """Every way of reading a weight, and of not reading one."""

    def __init__(self, degree=1):
        super().__init__()
        self.degree = degree
        for name in ("plain", "asked", "alias", "guarded", "other", "harmless", "written"):
            self.add_module(name, nn.Linear(4, 4))
        self.listed = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(2))
        self.numbered = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.written.weight.data.zero_()

    def _init_weights(self):
        self.harmless.weight.data.zero_()

    def helper(self, x):
        return F.linear(x, self.asked.weight)

    def forward(self, x):
        x = self.plain(x.to(self.harmless.weight.dtype))
        assert isinstance(self.harmless.weight, torch.Tensor)
        layer = self.alias
        x = x @ layer.weight
        if self.degree > 1:
            x = F.linear(x, self.guarded.weight)
        else:
            x = F.linear(x, self.other.weight)
        for _, element in enumerate(self.listed):
            x = x @ element[0].weight
        return x @ self.numbered[0].weight


@pytest.mark.parametrize("degree", [1, 2])
def test_what_is_found(degree):
    model = nn.ModuleDict({"a": Block(degree)})
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    found = find_direct_reads(model, names)
    expected = {
        "asked",
        "alias",
        "guarded" if degree > 1 else "other",
        "listed.0.0",
        "listed.1.0",
        "numbered.0",
        "numbered.1",
    }
    assert {name.removeprefix("a.") for name in found} == expected
    assert found["a.asked"] == "Block.helper"


def bloom(**options):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "n_layer": 1, "n_head": 4, "vocab_size": 96, "pad_token_id": 0}
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING["bloom"](**sizes, **options)).eval()


def test_bloom_reads_weights_only_in_slices(monkeypatch):
    warnings: list[str] = []
    monkeypatch.setattr(placement.logger, "warning", warnings.append)
    sliced = {"pretraining_tp": 2, "slow_but_exact": True}
    assert sum(isinstance(m, BitLinear) for m in apply_bitnet(bloom()).modules()) == 4 and not warnings
    with pytest.raises(
        SurgeryError, match=r"transformer\.h\.\*\.self_attention\.dense \(in BloomAttention\.forward\)"
    ):
        apply_bitnet(bloom(**sliced), BitNetConfig(projections={"self_attention.dense": "output"}))
    model = apply_bitnet(bloom(**sliced), BitNetConfig(sub_norm="none"))
    assert sum(isinstance(module, BitLinear) for module in model.modules()) == 2
    assert "dense_4h_to_h (in BloomMLP.forward)" in warnings[0] and len(warnings) == 1
    model(random_tokens())


def test_what_reads_all_output_projections_is_refused():
    with pytest.raises(SurgeryError, match=r"sub_norm='none'"):
        apply_bitnet(bloom(pretraining_tp=2, slow_but_exact=True))


@pytest.mark.parametrize(
    ("model_type", "read", "others"),
    [
        ("mamba", ["mixer.dt_proj", "mixer.x_proj", "mixer.out_proj"], ["mixer.in_proj"]),
        ("jamba", ["mamba.dt_proj"], ["mamba.in_proj", "self_attn.o_proj"]),
        ("rwkv", ["attention.output", "feed_forward.value"], ["attention.key", "attention.receptance"]),
        ("mamba2", ["mixer.out_proj"], ["mixer.in_proj"]),
    ],
)
def test_state_space_models(model_type, read, others):
    options = {
        "hidden_size": 32,
        "num_hidden_layers": 8,
        "vocab_size": 96,
        "pad_token_id": 0,
        "use_mamba_kernels": False,
    }
    options |= {"num_heads": 8, "head_dim": 8, "n_groups": 1} if model_type == "mamba2" else {}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**options))
    for suffix in read:
        with pytest.raises(SurgeryError, match=suffix.rpartition(".")[2]):
            placement.find_projections(model, BitNetConfig(projections={suffix: "output"}))
    told = BitNetConfig(projections=dict.fromkeys(others, "input"), sub_norm="none")
    names = {projection.name for projection in placement.find_projections(model, told)}
    assert all(any(name.endswith(suffix) for name in names) for suffix in others)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_nothing_is_found_where_nothing_is_read(model_type):
    model = tiny_model(model_type)
    names = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
    assert find_direct_reads(model, names) == {}
