import pytest
import torch

from architectures import random_tokens, tiny_model
from hf_bitdistill import BitNetConfig, apply_bitnet, find_massive_projections
from hf_bitdistill.nn import BitLinear


@pytest.fixture
def batches():
    batches = [random_tokens(batch=4, length=32, seed=seed) for seed in range(2)]
    for tokens in batches:
        tokens[:, 0] = 3
    return [{"input_ids": tokens} for tokens in batches]


def plant(model, tokens):
    """A neuron of the second layer that fires at the first token and writes a huge value."""
    mlp = model.model.layers[1].mlp
    seen = []
    handle = mlp.register_forward_hook(lambda _, args, __: seen.append(args[0][0, 0]))
    with torch.no_grad():
        model(tokens)
        handle.remove()
        direction = seen[0] / seen[0].norm()
        mlp.gate_proj.weight[0] = 5 * direction
        mlp.up_proj.weight[0] = 5 * direction
        mlp.down_proj.weight[:, 0] = 10


def test_the_projection_that_writes_a_massive_activation_is_found(batches):
    model = tiny_model("llama")
    assert find_massive_projections(model, batches) == []
    plant(model, batches[0]["input_ids"])
    found = find_massive_projections(model.train(), batches)
    assert found == ["model.layers.1.mlp.down_proj"] and model.training
    assert find_massive_projections(model, batches, ratio=1e9) == []
    # Nothing is left on the model, and what is found can be given to the student as it is.
    assert not any(module._forward_hooks for module in model.modules())
    student = apply_bitnet(model, BitNetConfig(modules_to_not_convert=found))
    mlp = student.model.layers[1].mlp
    assert type(mlp.down_proj) is torch.nn.Linear and isinstance(mlp.up_proj, BitLinear)


def test_padding_is_left_out(batches):
    model = tiny_model("llama")
    plant(model, batches[0]["input_ids"])
    assert find_massive_projections(model, batches, ratio=1000) == ["model.layers.1.mlp.down_proj"]
    for batch in batches:
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        batch["attention_mask"][:, 0] = 0
    assert find_massive_projections(model, batches, ratio=1000) == []


def test_refusals(batches):
    with pytest.raises(ValueError, match="at least one batch"):
        find_massive_projections(tiny_model("llama"), [])
    with pytest.raises(ValueError, match="ratio must be above 1"):
        find_massive_projections(tiny_model("llama"), batches, ratio=1)
    with pytest.raises(ValueError, match="not at its student"):
        find_massive_projections(apply_bitnet(tiny_model("llama")), batches)
