import inspect
from types import SimpleNamespace

import torch
from accelerate.utils import extract_model_from_parallel
from torch.distributed.fsdp import MixedPrecisionPolicy

from architectures import random_tokens, tiny_model
from hf_bitdistill import apply_bitnet
from hf_bitdistill.nn import BitLinear
from hf_bitdistill.training.engines.sharding import prepare_for_shards


HALF = MixedPrecisionPolicy(torch.bfloat16, torch.bfloat16, torch.bfloat16)


def accelerator(is_fsdp2: bool = True, half: bool = True) -> SimpleNamespace:
    return SimpleNamespace(
        is_fsdp2=is_fsdp2,
        native_amp=half,
        state=SimpleNamespace(fsdp_plugin=SimpleNamespace(mixed_precision_policy=HALF if half else None)),
        autocast=lambda: torch.autocast("cpu", torch.bfloat16),
    )


def is_sent_as_codes(model) -> set[bool]:
    return {layer._gather is not None for layer in model.modules() if isinstance(layer, BitLinear)}


def test_mixed_precision_is_autocast_on_float32():
    model, whole, its_accelerator = apply_bitnet(tiny_model("llama")), apply_bitnet(tiny_model("llama")), accelerator()
    signature = inspect.signature(model.forward)
    prepare_for_shards(model, its_accelerator)
    assert its_accelerator.state.fsdp_plugin.mixed_precision_policy == MixedPrecisionPolicy()
    assert is_sent_as_codes(model) == {True} and inspect.signature(model.forward) == signature
    with torch.autocast("cpu", torch.bfloat16):
        expected = whole(random_tokens()).logits
    found = model(random_tokens()).logits
    assert expected.dtype == torch.bfloat16 and found.dtype == torch.float32 and torch.equal(found, expected.float())
    extract_model_from_parallel(model, keep_fp32_wrapper=False)
    assert torch.equal(model(random_tokens()).logits, whole(random_tokens()).logits)


def test_without_mixed_precision_or_shards_it_computes_as_before():
    for its_accelerator, codes in ((accelerator(half=False), True), (accelerator(is_fsdp2=False), False)):
        model = apply_bitnet(tiny_model("llama"))
        prepare_for_shards(model, its_accelerator)
        assert is_sent_as_codes(model) == {codes} and "forward" not in vars(model)
        assert model(random_tokens()).logits.dtype == torch.float32
