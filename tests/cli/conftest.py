"""A full-precision model for the commands."""

import pytest
import torch
from transformers import LlamaForCausalLM


@pytest.fixture
def teacher(tmp_path, tiny_llama_config, tiny_tokenizer):
    torch.manual_seed(0)
    LlamaForCausalLM(tiny_llama_config).save_pretrained(tmp_path / "teacher")
    tiny_tokenizer.save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"
