"""The example writes a file, of a student that was packed here."""

import runpy
import sys
from pathlib import Path

import pytest

from gguf_reader import read_gguf
from hf_bitdistill import pack
from students import make_student


EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "export_gguf.py"


def run_example(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["export_gguf.py", *map(str, arguments)])
    runpy.run_path(str(EXAMPLE), run_name="__main__")


def test_export_gguf(tmp_path, monkeypatch, tiny_tokenizer, capsys):
    assert len(EXAMPLE.read_text().splitlines()) <= 60
    pack(make_student(vocab_size=384, hidden_size=64)).save_pretrained(tmp_path / "student")
    tiny_tokenizer.save_pretrained(tmp_path / "student")
    run_example(monkeypatch, tmp_path / "student", tmp_path / "student.gguf", "--prompt", "the little robot")
    assert (tmp_path / "student.gguf").read_bytes()[:4] == b"GGUF"
    assert "architecture 'bitnet'" in capsys.readouterr().out


def test_i2_s(tmp_path, monkeypatch, tiny_tokenizer, capsys):
    """One scale a matrix; with one a row it says what to do."""
    for granularity in ("tensor", "row"):
        student = make_student(options={"weight_granularity": granularity}, vocab_size=384, hidden_size=128)
        pack(student).save_pretrained(tmp_path / granularity)
        tiny_tokenizer.save_pretrained(tmp_path / granularity)
    run_example(monkeypatch, tmp_path / "tensor", tmp_path / "student.gguf", "--i2_s")
    assert "| I2_S | 12 |" in capsys.readouterr().out
    assert read_gguf(tmp_path / "student.gguf")[1]["blk.0.attn_q.weight"].type == 36
    with pytest.raises(SystemExit, match="weight_granularity='tensor'"):
        run_example(monkeypatch, tmp_path / "row", tmp_path / "row.gguf", "--i2_s")


def test_a_student_that_it_cannot_hold(tmp_path, monkeypatch, tiny_tokenizer):
    pack(make_student("qwen3", vocab_size=384)).save_pretrained(tmp_path / "student")
    tiny_tokenizer.save_pretrained(tmp_path / "student")
    with pytest.raises(SystemExit, match=r"norms of queries and keys.*sub_norm='none'"):
        run_example(monkeypatch, tmp_path / "student", tmp_path / "student.gguf")
