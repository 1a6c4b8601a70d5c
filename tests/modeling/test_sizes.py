"""What the bytes of a checkpoint are spent on."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from architectures import tiny_model
from hf_bitdistill import pack
from hf_bitdistill.files.tensor_headers import CheckpointError
from hf_bitdistill.modeling.sizes import KINDS, bytes_by_kind
from students import make_student


TIED = {"tie_word_embeddings": True}


@pytest.mark.parametrize(
    ("model_type", "options"), [("llama", TIED), ("gemma3_text", {}), ("gpt2", {}), ("qwen3", {"vocab_size": 97})]
)
@pytest.mark.parametrize(("bits", "dtype"), [(16, "bfloat16"), (8, "float32"), (4, "bfloat16")])
def test_every_byte_has_a_kind(model_type, options, bits, dtype, tmp_path):
    student = make_student(model_type, **options)
    # (Of five weights in a byte, headers say their number to four more.)
    pack(student, dtype=dtype, table_bits=bits, weight_bits=2).save_pretrained(tmp_path, max_shard_size="30KB")
    sizes = bytes_by_kind(tmp_path)
    tensors = {}
    for file in tmp_path.glob("*.safetensors"):
        tensors |= load_file(file)
    assert sizes.total == sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    assert sum(sizes.kinds.values()) == sum(t.nbytes for t in tensors.values())
    tables = [
        t for name, t in tensors.items() if name.startswith(("model.embed_tokens", "transformer.wte", "lm_head"))
    ]
    assert sizes.kinds["tables"] == sum(t.nbytes for t in tables)
    codes = [
        t
        for name, t in tensors.items()
        if (t.dtype == torch.uint8 and "layers" in name) or (".h." in name and t.dtype == torch.uint8)
    ]
    assert sizes.kinds["ternary codes"] == sum(t.nbytes for t in codes) > 0
    norms = [t for name, t in tensors.items() if "norm" in name or ".ln_" in name]
    assert sizes.kinds["norms"] == sum(t.nbytes for t in norms)
    # The tiny models' rows are multiples of 4, so what the original takes is known exactly.
    original = tiny_model(model_type, **options)
    assert sizes.original == 2 * sum(p.numel() for p in original.parameters())


def test_the_table(tmp_path):
    pack(make_student("llama", **TIED), table_bits=8).save_pretrained(tmp_path)
    sizes = bytes_by_kind(tmp_path)
    text = sizes.markdown()
    for line in ("| ternary codes |", "| tables |", "| norms |", "| in all |", "| the original in bfloat16 |"):
        assert line in text
    assert "| other |" not in text  # there is nothing else
    content = sizes.to_dict()
    assert set(content["bytes"]) == {*KINDS, "headers", "total"} and content["bytes"]["total"] == sizes.total
    assert content["ratio"] == pytest.approx(sizes.original / sizes.total, abs=0.01)


def test_refusals(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        bytes_by_kind(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="no safetensors"):
        bytes_by_kind(tmp_path)
    save_file({"a": torch.zeros(3)}, tmp_path / "model.safetensors")
    assert bytes_by_kind(tmp_path).kinds["other"] == 12
