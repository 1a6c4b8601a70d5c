import pytest
import torch

from hf_bitdistill import pack
from students import make_student


@pytest.fixture
def pair(tmp_path):
    """A packed student in transformers and the same one on the native decoder, both exact to float32."""
    from optimum.bitnet import BitNetModelForCausalLM

    def make(model_type="llama", **kwargs):
        packed = pack(make_student(model_type, **kwargs), table_bits=32)
        packed.generation_config.eos_token_id = None  # so that all continuations are of full length
        folder = tmp_path / model_type
        packed.save_pretrained(folder)
        native = BitNetModelForCausalLM.from_pretrained(folder, head_bits=32, kv_dtype="float32")
        assert native.backend == "native"
        return packed, native

    return make


@pytest.fixture
def uncompiled():
    """transformers compiles its own unpacking of ternary weights; what it computes is the same without."""
    with torch._dynamo.config.patch(disable=True):
        yield
