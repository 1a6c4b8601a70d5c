"""What users of torch and transformers ask a native model."""

import pytest
import torch

from hf_bitdistill import pack
from optimum.bitnet import BitNetModelForCausalLM
from students import make_student


pytestmark = pytest.mark.usefixtures("native_decoder")


def test_parameters_are_the_float_tables(pair, tmp_path):
    packed, native = pair("qwen3")
    names = [name for name, _ in native.named_parameters()]
    assert names == ["model.embed_tokens.weight", "lm_head.weight"]
    assert torch.equal(next(native.parameters()), packed.get_input_embeddings().weight)
    assert not any(parameter.requires_grad for parameter in native.parameters())
    packed, tied = pair("llama")
    assert len(list(tied.parameters())) == 1
    small = BitNetModelForCausalLM.from_pretrained(tmp_path / "llama", head_bits=8)
    assert list(small.parameters()) == []
    assert small.num_parameters() == tied.num_parameters() == packed.num_parameters()
    assert tied.num_parameters(exclude_embeddings=True) == packed.num_parameters(exclude_embeddings=True)
    assert tied.num_parameters(only_trainable=True) == 0
    assert small.get_memory_footprint() < tied.get_memory_footprint() == tied.decoder.weight_bytes


@pytest.mark.parametrize("options", [{"table_bits": 8}, {"table_bits": 4}])
def test_tables_that_are_stored_in_integers_are_counted(tmp_path, options):
    student = make_student()
    pack(student, **options).save_pretrained(tmp_path)
    assert BitNetModelForCausalLM.from_pretrained(tmp_path).num_parameters() == student.num_parameters()


def test_to(pair):
    _, native = pair()
    for same in (
        native.to("cpu"), native.to(torch.device("cpu"), torch.float32), native.to(dtype=torch.float32), native.to(device="cpu"),
        native.to(torch.zeros(1)), native.to(torch.float32, True), native.cpu(), native.float(),
    ):  # fmt: skip
        assert same is native
    for move in (lambda: native.to("cuda:1"), lambda: native.to(0), native.cuda, lambda: native.to(device="mps")):
        with pytest.raises(ValueError, match=r"computes on the CPU; it cannot move to (cuda|mps).*packed layers"):
            move()
    for convert in (native.half, native.bfloat16, lambda: native.to("cpu", torch.float16)):
        with pytest.raises(ValueError, match=r"computes in float32, not in torch\.\w+, .* head_bits and kv_bits"):
            convert()


def test_where_and_in_what_it_is_loaded(pair, tmp_path):
    _, native = pair()
    for options in (
        {"device_map": "cpu"},
        {"device_map": "auto", "dtype": "auto"},
        {"torch_dtype": torch.float32},
        {"device_map": {"": "cpu"}},
    ):
        loaded = BitNetModelForCausalLM.from_pretrained(tmp_path / "llama", **options)
        assert (loaded.device, loaded.dtype) == (native.device, native.dtype) == (torch.device("cpu"), torch.float32)
    for device_map in ("cuda", {"": 0}, {"model": "cpu", "lm_head": "disk"}):
        with pytest.raises(ValueError, match="computes on the CPU"):
            BitNetModelForCausalLM.from_pretrained(tmp_path / "llama", device_map=device_map)
    with pytest.raises(ValueError, match=r"dtype=torch.bfloat16: .* computes in float32"):
        BitNetModelForCausalLM.from_pretrained(tmp_path / "llama", dtype=torch.bfloat16)


def test_where_transformers_computes(tmp_path):
    """A model that the native decoder does not know: as transformers does it."""
    pack(make_student("phi"), dtype="bfloat16").save_pretrained(tmp_path)
    model = BitNetModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert model.backend == "transformers" and model.dtype == torch.float32
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in model.model.named_parameters()]
    assert model.num_parameters() == model.model.num_parameters()
    assert model.get_memory_footprint() == model.model.get_memory_footprint()
    assert model.bfloat16() is model and model.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="cannot move to cuda"):
        model.to("cuda")
