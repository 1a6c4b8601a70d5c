"""Students that are exported, of shapes that need every type."""

import pytest
import torch

from hf_bitdistill import pack
from hf_bitdistill.nn import TernaryLinear
from students import make_student


@pytest.fixture
def save_student(tmp_path, tiny_tokenizer):
    """Makes a tiny student with a tokenizer; returns its folder. Rows of 256 and of 320. `exact`: its floats have 8 bits, and
    its scales 11 when it is packed, so that a file can hold them as they are."""

    def save(model_type="llama", options=None, packed=True, exact=True, **overrides):
        shape = {"hidden_size": 256, "intermediate_size": 320, "num_attention_heads": 4, "num_key_value_heads": 2}
        student = make_student(model_type, options=options, **{**shape, "vocab_size": 384, **overrides})
        folder = tmp_path / "student"
        if exact:
            student.to(torch.bfloat16).float()
        if packed:
            student = pack(student, dtype="float32", table_bits=32)
            for layer in student.modules():
                if exact and isinstance(layer, TernaryLinear):
                    layer.weight_scale = layer.weight_scale.half().float()
        student.save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def tokens():
    return torch.randint(3, 384, (24,), generator=torch.Generator().manual_seed(3)).tolist()
