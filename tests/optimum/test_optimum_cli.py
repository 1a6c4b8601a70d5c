"""optimum-cli: registration, and the commands behind it."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from optimum.exporters.tasks import TasksManager

from hf_bitdistill import pack
from hf_bitdistill_cli import COMMANDS
from optimum.commands import optimum_cli
from optimum.commands.register.register_bitnet import BitNetCommand
from students import make_student


def run(monkeypatch, *arguments):
    """The exit status of optimum-cli."""
    monkeypatch.setattr(sys, "argv", ["optimum-cli", *map(str, arguments)])
    try:
        optimum_cli.main()
    except SystemExit as end:
        return end.code or 0
    return 0


def test_its_commands_are_those_of_bitdistill():
    assert {command.name: command.help for command in BitNetCommand.SUBCOMMANDS} == COMMANDS


def test_help(monkeypatch, capsys):
    assert run(monkeypatch, "--help") == 0
    assert "bitnet" in capsys.readouterr().out
    assert run(monkeypatch, "bitnet", "--help") == 0
    assert "benchmark" in capsys.readouterr().out
    assert run(monkeypatch, "bitnet", "distill", "--help") == 0
    assert "--teacher_model_name_or_path" in capsys.readouterr().out


def test_arguments_and_failures_go_through(monkeypatch, capsys):
    assert run(monkeypatch, "bitnet", "evaluate", "--model_name_or_path", "/no/such/folder", "--task", "sst2") == 1
    assert "optimum-cli bitnet evaluate: error: " in capsys.readouterr().err
    assert run(monkeypatch, "bitnet", "env") == 0
    assert '"hf-bitdistill"' in capsys.readouterr().out


@pytest.mark.parametrize("packed", [True, False])
def test_export(monkeypatch, capsys, tmp_path, tiny_tokenizer, packed):
    student = make_student(vocab_size=384)
    (pack(student) if packed else student).save_pretrained(tmp_path / "student")
    tiny_tokenizer.save_pretrained(tmp_path / "student")
    out = tmp_path / "out"
    assert run(monkeypatch, "export", "bitnet", "--model", tmp_path / "student", out) == 0
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= {file.name for file in out.iterdir()}
    pack(student).save_pretrained(tmp_path / "packed")
    names = ("model.safetensors", "config.json")
    assert (out / names[0]).stat().st_size == (tmp_path / "packed" / names[0]).stat().st_size
    assert "| ternary codes |" in capsys.readouterr().out
    options = ("--table_bits", "8", "--dtype", "bfloat16")
    assert run(monkeypatch, "export", "bitnet", "--model", tmp_path / "student", *options, tmp_path / "int8") == 0
    config = json.loads((tmp_path / "int8" / "config.json").read_text())
    assert config["quantization_config"]["table_bits"] == 8 and config["dtype"] == "bfloat16"
    capsys.readouterr()
    assert run(monkeypatch, "export", "bitnet", "--model", tmp_path / "none", out) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_tasks_manager():
    import optimum.bitnet.export  # noqa: F401 (registers)

    tasks = TasksManager.get_supported_tasks_for_model_type("qwen3", "bitnet", library_name="transformers")
    assert set(tasks) == {"text-generation", "text-generation-with-past", "text-classification"}
    assert tasks["text-generation-with-past"](None).use_past


def test_registration_imports_nothing_heavy():
    code = (
        "import time, sys; import optimum.commands.optimum_cli; before = set(sys.modules); start = time.perf_counter();"
        "import optimum.commands.register.register_bitnet; print(time.perf_counter() - start);"
        "print([m for m in set(sys.modules) - before if m.split('.')[0] in ('torch', 'transformers', 'hf_bitdistill')])"
    )
    times = []
    for _ in range(3):  # the best of three: the machine may be busy
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split(
            "\n"
        )
        assert out[1] == "[]"
        times.append(float(out[0]))
        time.sleep(0.05)
    assert min(times) < 0.1, times


def test_optimum_stays_a_namespace():
    """An `__init__.py` of ours would hide the installed optimum."""
    source = Path(__file__).resolve().parents[2] / "src" / "optimum"
    for folder in (source, source / "commands", source / "commands" / "register"):
        assert folder.is_dir() and not (folder / "__init__.py").exists()
