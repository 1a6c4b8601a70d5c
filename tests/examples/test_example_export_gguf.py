"""The example writes a file, of a student that was packed here."""

import runpy
import sys
from pathlib import Path

import pytest

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


def test_a_student_that_it_cannot_hold(tmp_path, monkeypatch, tiny_tokenizer):
    pack(make_student("qwen3", vocab_size=384)).save_pretrained(tmp_path / "student")
    tiny_tokenizer.save_pretrained(tmp_path / "student")
    with pytest.raises(SystemExit, match=r"norms of queries and keys.*sub_norm='none'"):
        run_example(monkeypatch, tmp_path / "student", tmp_path / "student.gguf")
