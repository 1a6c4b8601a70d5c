"""The checks before a model is built: what they let pass. (What they refuse: `tests/fuzz/test_attacks.py`.)"""

import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from architectures import ARCHITECTURES, tiny_config, tiny_model
from hf_bitdistill import BitNetConfig, apply_bitnet, pack
from hf_bitdistill.files.tensor_headers import CheckpointError
from hf_bitdistill.files.weight_files import local_weight_files
from hf_bitdistill.modeling.preflight import Contents, check_built, check_claims, check_sizes, read_contents


def test_sizes_of_every_architecture_of_transformers():
    """The defaults of all causal LMs, per-layer attributes and zeros that stand for something else among them."""
    checked = 0
    for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                config = CONFIG_MAPPING[model_type]()
        except Exception:  # a composite that has no defaults, or needs a package
            continue
        check_sizes(config, model_type)
        checked += 1
    assert checked > 100


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_claims_of_every_tested_architecture(model_type, tmp_path, monkeypatch):
    """Exactly, without the slack: full precision, online and packed, experts one by one and fused."""
    monkeypatch.setattr("hf_bitdistill.modeling.preflight._FEW_LAYERS", 0)
    monkeypatch.setattr("hf_bitdistill.modeling.preflight._FEW_EXPERTS", 0)
    model = tiny_model(model_type)
    kept = BitNetConfig(modules_to_not_convert=["mlp.experts"]) if hasattr(model.config, "num_local_experts") else None
    models = {"full": model, "online": apply_bitnet(tiny_model(model_type))}
    models |= {"packed": pack(models["online"])}
    if kept is not None:
        models["kept"] = apply_bitnet(tiny_model(model_type), kept)
    for name, student in models.items():
        student.save_pretrained(tmp_path / name)
        contents = read_contents(local_weight_files(tmp_path / name))
        check_claims(tiny_config(model_type), contents, "the config")
        check_claims(tiny_config(model_type), contents, "the config", tmp_path / name / "config.json")
        check_built(tiny_model(model_type), list(contents.files))


def test_parts_of_a_config():
    """A composite's parts are claims as well."""
    config = CONFIG_MAPPING["qwen3_5"]()
    few = Contents(("a.safetensors",), 300, 300_000, 1 << 20)
    check_claims(config, few, "c.json")
    config.text_config.num_hidden_layers = 10**6
    with pytest.raises(CheckpointError, match=r"a\.safetensors.*1000000 layers"):
        check_claims(config, few, "c.json")


def test_a_mixture_with_experts_in_full_precision_loads(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_bitdistill.modeling.preflight._FEW_EXPERTS", 0)
    student = apply_bitnet(tiny_model("qwen3_moe"), BitNetConfig(modules_to_not_convert=["mlp.experts"]))
    student.save_pretrained(tmp_path)
    AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_dtype_given_by_name(tmp_path):
    """As `from_pretrained` of transformers takes it."""
    tiny_model("llama").save_pretrained(tmp_path)
    student = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=BitNetConfig(), dtype="float32")
    assert student.dtype == torch.float32
    config = tiny_config("llama")
    for name in ("int8", "no_such_type"):
        config.dtype = name
        with pytest.raises(CheckpointError, match="must be a floating-point type"):
            check_sizes(config, "here")
