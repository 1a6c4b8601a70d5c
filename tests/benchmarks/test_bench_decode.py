"""The record of whole models: other programs' output, the load of others, and one tiny model end to end."""

import importlib
import json
import sys
from pathlib import Path

import pytest


BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

# As llama-bench writes it, shortened.
OUTPUT = """ggml_vulkan: no devices found
[
  {"build_commit": "1a2b3c4", "model_size": 266315840, "n_threads": 2, "n_prompt": 512, "n_gen": 0, "avg_ts": 398.25},
  {"build_commit": "1a2b3c4", "model_size": 266315840, "n_threads": 2, "n_prompt": 0, "n_gen": 128, "avg_ts": 117.5}
]
llama_print_timings: done
"""

PROGRAM = """#!{python}
import json, sys
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert options["-o"] == "json" and options["-r"] == "1" and open(options["-m"]).read() == "GGUF", options
entry = {{"build_commit": "abc", "model_size": 1000}}
rate = float(options.get("-rate", 1))
print(json.dumps([{{**entry, "n_prompt": int(options["-p"]), "n_gen": 0, "avg_ts": 100 * rate}},
                  {{**entry, "n_prompt": 0, "n_gen": int(options["-n"]), "avg_ts": 10 * rate}}]))
"""


@pytest.fixture
def module(monkeypatch):
    """Imports a module of the benchmark; its folder is importable only during the test."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def test_output_of_llama_bench(module):
    parse = module("decode.llama_bench").parse
    rates = parse(OUTPUT)
    assert (rates.prefill, rates.decode, rates.model_bytes, rates.build) == (398.25, 117.5, 266315840, "1a2b3c4")
    with pytest.raises(ValueError, match="no JSON list"):
        parse("usage: llama-bench [options]")
    with pytest.raises(ValueError, match="no entry for generation"):
        parse(json.dumps(json.loads(OUTPUT[OUTPUT.index("[") : OUTPUT.index("]") + 1])[:1]))
    with pytest.raises(ValueError, match="damaged"):
        parse(OUTPUT[: OUTPUT.index("]")])


def test_load_of_others(module):
    other_load = module("decode.other_load")
    ticks = other_load._TICKS
    stat = f"cpu  {5 * ticks} {2 * ticks} {ticks} 900 800 0 0 {ticks} 0 0\ncpu0 1 2 3\n"
    assert other_load.busy_seconds(stat) == 9.0
    fields = ["S", *["0"] * 10, str(3 * ticks), str(ticks), str(2 * ticks), "0", *["7"] * 5]
    assert other_load.process_seconds(f"12 (a (strange) name) {' '.join(fields)}") == 6.0


def test_tiny_model_end_to_end(module, monkeypatch, tmp_path, native_decoder):
    bench, models = module("bench_decode"), module("decode.models")
    monkeypatch.setattr(bench, "READ_BYTES", 1 << 20)
    monkeypatch.setitem(models.SHAPES, "tiny", models.Shape(32, 64, 1, 2, 1, 128, 16))
    program, file = tmp_path / "llama-bench", tmp_path / "tiny.gguf"
    program.write_text(PROGRAM.format(python=sys.executable))
    program.chmod(0o755)
    file.write_text("GGUF")
    output = tmp_path / "decode.json"
    arguments = ["--shapes", "tiny", "--threads", "1", "--head_bits", "8", "--prompt", "8", "--new_tokens", "2"]
    peer = ["--llama_bench", f"other={program}", "--gguf", f"tiny={file}", "--llama_bench_flags=-rate 2"]
    bench.main([*arguments, "--rounds", "1", "--no_peers", *peer, "--output", str(output)])
    rows = json.loads(output.read_text())

    from hf_bitdistill.ops import binding

    supported = binding.load()[0].supported_isas
    ours = [row for row in rows if row["system"] == "hf-bitdistill, 8-bit head"]
    assert [row["isa"] for row in ours] == ([isa for isa in supported if isa != "scalar"] or supported)
    for row in ours:
        assert min(row["decode_tps"], row["prefill_tps"], row["peak_gmacs"], row["read_gbps"]) > 0
        assert row["other_busy_cpus"] is None or row["other_busy_cpus"] >= 0
    (other,) = [row for row in rows if row["system"] == "other"]
    # (The size that the program tells counts a tied embedding twice: what a token reads is no more than the file.)
    assert (other["prefill_tps"], other["decode_tps"], other["bytes_per_token"]) == (200.0, 20.0, len("GGUF"))
    assert (other["isa"], other["build"], other["flags"]) == (None, "abc", "-rate 2")


def test_options_that_belong_to_nothing(module, capsys):
    bench = module("bench_decode")
    with pytest.raises(SystemExit):
        bench.main(["--gguf", __file__, "--output", "unused.json"])
    assert "belongs to a --llama_bench" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        bench.main(["--llama_bench", "name=/no/such/program", "--output", "unused.json"])
    assert "there is no file" in capsys.readouterr().err
