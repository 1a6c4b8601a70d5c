import importlib.util

import pytest
from transformers.training_args import OptimizerNames

from hf_bitdistill.training import DistillationConfig
from hf_bitdistill.training.optimizers import check_optimizer, knows_no_shards, optimizer_package


BITSANDBYTES = (
    "adamw_bnb_8bit",
    "adamw_8bit",
    "ademamix",
    "ademamix_8bit",
    "lion_8bit",
    "lion_32bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "paged_ademamix_32bit",
    "paged_ademamix_8bit",
    "paged_lion_32bit",
    "paged_lion_8bit",
    "rmsprop_bnb",
    "rmsprop_bnb_8bit",
    "rmsprop_bnb_32bit",
)


def test_which_package_an_optimizer_comes_from():
    found = {name.value: optimizer_package(name) for name in OptimizerNames}
    assert {name for name, package in found.items() if package == "bitsandbytes"} == set(BITSANDBYTES)
    assert {name for name, package in found.items() if package == "torchao"} == {
        "adamw_torch_8bit",
        "adamw_torch_4bit",
    }
    assert all(knows_no_shards(name) for name in BITSANDBYTES) and not knows_no_shards("adamw_torch_8bit")


def test_a_missing_package_is_told_before_anything_is_loaded(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "hf_bitdistill.training.optimizers.find_spec",
        lambda name, *args: None if name in ("bitsandbytes", "torchao") else find(name, *args),
    )
    for name, package in (("paged_adamw_8bit", "bitsandbytes"), ("adamw_torch_8bit", "torchao")):
        with pytest.raises(
            ImportError, match=rf"optim={name} needs {package}.*pip install 'hf-bitdistill\[{package}\]'"
        ):
            DistillationConfig(output_dir=str(tmp_path), use_cpu=True, optim=name)
    check_optimizer("adamw_torch")
