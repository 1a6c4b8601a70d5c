"""The examples around transformers run, on a student made here."""

import os

import pytest
import torch
from test_examples import EXAMPLES, run_example

from hf_bitdistill import pack
from hf_bitdistill.cli.main import main
from students import make_student


@pytest.fixture
def packed(tmp_path, tiny_tokenizer):
    pack(make_student(vocab_size=384)).save_pretrained(tmp_path / "packed")
    tiny_tokenizer.save_pretrained(tmp_path / "packed")
    return tmp_path / "packed"


def test_export_transformers(packed, tmp_path, monkeypatch, capsys):
    with torch._dynamo.config.patch(disable=True):  # (transformers compiles parts of its layers, for minutes)
        run_example("export_transformers.py", monkeypatch, packed, tmp_path / "out", "--prompt", "a dull story")
    first, packed_text, second, dense_text = capsys.readouterr().out.splitlines()
    assert "packed: BitNetForCausalLM" in first and "dense: BitNetForCausalLM" in second
    assert packed_text.startswith("a dull story") and dense_text.startswith("a dull story")


def test_dequantize(packed, monkeypatch, capsys):
    run_example("dequantize.py", monkeypatch, packed)
    sizes, losses, after = capsys.readouterr().out.splitlines()
    assert "million weights" in sizes
    before, floats = (float(words.split()[0]) for words in losses.removeprefix("loss ").split(", "))
    assert abs(before - floats) < 0.01
    assert float(after.split()[1]) < floats


def test_compile_and_export(packed, tmp_path, monkeypatch, capsys):
    arguments = [
        packed,
        tmp_path / "student.pt2",
        "--backend",
        "aot_eager",
        "--prompt",
        "a dull story",
        "--max_new_tokens",
        3,
    ]
    run_example("compile_and_export.py", monkeypatch, *arguments)
    compiled, exported, text = capsys.readouterr().out.splitlines()
    assert compiled == "compiled: largest difference 0"
    assert exported == "exported: largest difference 0"
    assert text.startswith("a dull story") and len(text) > len("a dull story")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a process that replaces itself")
def test_without_import(packed, tmp_path, monkeypatch):
    """By `bitdistill exec`, which really replaces a process: a copy of this one, which has the command imported."""
    for name in [name for name in os.environ if name.startswith("PYTHON")]:
        monkeypatch.delenv(name)
    arguments = ["exec", "--", "python", str(EXAMPLES / "without_import.py"), str(packed), "a dull story"]
    with open(tmp_path / "out", "wb") as out, open(tmp_path / "err", "wb") as err:
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            os._exit(main(arguments))
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, (tmp_path / "err").read_text()
    assert (tmp_path / "out").read_text().startswith("a dull story")
