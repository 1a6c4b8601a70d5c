"""What is printed of a file that was written."""

from pathlib import Path

import pytest

from hf_bitdistill.export import ExportedFile
from hf_bitdistill.export.exported_file import compact_names


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        ([f"blk.{layer}.attn_q.weight" for layer in range(12)], ["blk.*.attn_q"]),
        ([f"blk.{layer}.ffn_down.weight" for layer in (2, 11)], ["blk.{2,11}.ffn_down"]),
        (["blk.3.ffn_down.weight", "blk.3.ffn_up.weight"], ["blk.3.ffn_down", "blk.3.ffn_up"]),
        (["token_embd.weight", "blk.0.attn_k.weight"], ["token_embd", "blk.0.attn_k"]),
    ],
)
def test_names_in_short(names, shown):
    assert compact_names(names, 12) == shown


def test_tensors_that_have_another_type_are_named():
    reason = "rows of 576 are no multiple of 256"
    fallbacks = {
        f"blk.{layer}.{name}.weight": ("Q2_0", reason) for layer in range(30) for name in ("attn_q", "ffn_up")
    }
    fallbacks["blk.2.ffn_down.weight"] = ("BF16", "kept in full precision")
    text = ExportedFile(Path("out.gguf"), "bitnet", 1, [("Q2_0", 60, 1, reason)], fallbacks, layers=30).text()
    assert f"\nQ2_0, because {reason}: blk.*.attn_q, blk.*.ffn_up.\n" in text
    assert "\nBF16, because kept in full precision: blk.2.ffn_down.\n" in text
    assert ", because" not in ExportedFile(Path("out.gguf"), "bitnet", 1, []).text()
