"""`bitdistill benchmark` on tiny models."""

import json
from dataclasses import replace

import pytest

from architectures import tiny_model
from hf_bitdistill import pack
from hf_bitdistill.cli.main import main
from hf_bitdistill.evaluation.speed import Measurement, System, format_table, measure, save_plot
from hf_bitdistill.ops import status
from students import make_student


SHORT = ["--prompt_tokens", "8", "--new_tokens", "4", "--repeats", "1", "--threads", "1"]


def test_benchmark(tmp_path, capsys, warm_measure):
    """(Processes that are started as outside of tests: tests/benchmarks/test_bench_decode.py.)"""
    pack(make_student()).save_pretrained(tmp_path / "packed")
    tiny_model("llama").save_pretrained(tmp_path / "base")
    result, plot = tmp_path / "result.json", tmp_path / "plot.png"
    models = [str(tmp_path / "packed"), "--kv_bits", "8", "--baseline", str(tmp_path / "base")]
    assert main(["benchmark", *models, *SHORT, "--output_file", str(result), "--plot", str(plot)]) == 0
    table = capsys.readouterr().out
    # (Libraries print when they are imported, and only then.)
    assert "decode tok/s" in table and len([line for line in table.splitlines() if "|" in line]) == 4
    native, base = json.loads(result.read_text())["measurements"]
    assert native["backend"] == ("native" if status()["loaded"] else "transformers")
    assert base["backend"] == "transformers, float32"
    for measured in (native, base):
        assert measured["decode_tokens_per_second"] > 0 and measured["time_to_first_token"] > 0
        assert measured["peak_rss_bytes"] >= measured["base_rss_bytes"] > 0
    assert native["file_bytes"] < base["file_bytes"]
    assert plot.read_bytes()[:4] == b"\x89PNG"


def test_failures_are_one_line(tmp_path, capsys, warm_measure):
    tiny_model("llama").save_pretrained(tmp_path / "base")
    model = str(tmp_path / "base")
    cases = {
        "--new_tokens must be at least 1": [model, "--new_tokens", "0"],
        "there is no GGUF file": [model, "--gguf", str(tmp_path / "no.gguf")],
        "there is no model folder": [str(tmp_path / "none")],
        "full precision": [model],
    }
    for message, arguments in cases.items():
        assert main(["benchmark", *arguments]) == 1
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bitdistill benchmark")]
        assert len(lines) == 1 and message in lines[0], (message, lines)


def test_too_long_for_the_model(tmp_path, warm_measure):
    pack(make_student()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="128 \\+ 32 tokens are more than the model's 64"):
        measure(System("native", str(tmp_path)))


def test_report(tmp_path):
    one = Measurement("native", "/a/b", "native", 8, 4, 2, 0.5, 100.0, 50.0, 0.08, 2_000_000, 1_000_000, 5_000_000)
    table = format_table([one, replace(one, model="other", backend="llama.cpp")])
    assert "b (native)" in table and "other (llama.cpp)" in table and "| 50.0" in table
    save_plot([one], tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
