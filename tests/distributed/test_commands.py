"""Commands under a launcher: which are of one process, what is printed, and that a run goes on after one of its processes was killed."""

import itertools
import json
import os
import re
import sys
import time
from importlib.util import find_spec

import pytest
from agreement_data import make_student, make_tokenizer, write_inputs
from launching import HERE, run
from safetensors.torch import load_file
from torch.distributed import TCPStore
from transformers import LlamaForCausalLM

from hf_bitdistill.cli import main as cli
from hf_bitdistill.machine import processes
from hf_bitdistill_cli import COMMANDS


SCRIPT = [sys.executable, str(HERE / "command_run.py")]
QUIET = ["--report_to", "none", "--disable_tqdm", "true", "--use_cpu", "true"]


@pytest.fixture
def launched(monkeypatch):
    """Sets what a launcher sets; its store is there."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))

    def launch(rank: int, count: int = 2) -> None:
        monkeypatch.setattr(cli, "_COMMANDS", itertools.count())  # (each process has its own)
        for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "TORCHELASTIC_RUN_ID": "x"}.items():
            monkeypatch.setenv(name, str(value))

    yield launch
    del store


def ran(monkeypatch, command: str, work=lambda: None) -> list:
    """Has a command do `work`. Returns what is called with."""
    import types

    calls = []

    def run(argv, prog):
        calls.append((argv, prog, processes.world_size(), "RANK" in os.environ, "TORCHELASTIC_RUN_ID" in os.environ))
        print("printed")
        work()

    name = f"hf_bitdistill.cli.{command.replace('-', '_')}"
    monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(run=run))
    return calls


def test_every_command_is_of_one_process_or_of_all():
    assert set(COMMANDS) > cli.PARALLEL and set(COMMANDS) > cli._FOREIGN
    assert not cli.PARALLEL & {"pack", "card", "verify", "export", "import", "push", "report", "data"}


def test_a_command_of_one_process_is_done_by_the_first_alone(launched, monkeypatch, capsys):
    calls = ran(monkeypatch, "pack")
    launched(1)
    assert cli.main(["pack", "x"]) == 0 and not calls and capsys.readouterr() == ("", "")
    launched(0, 3)
    assert cli.main(["pack", "x"]) == 0
    # Within, it is one process, as what it starts is; afterwards it is one of several again.
    assert calls == [(["x"], "bitdistill pack", 1, False, False)] and os.environ["RANK"] == "0"
    printed, said = capsys.readouterr()
    assert printed == "printed\n" and "runs in one process: 2 other(s) had nothing to do" in said


def test_a_parallel_command_prints_once(launched, monkeypatch, capsys):
    calls = ran(monkeypatch, "evaluate")
    for rank, printed in ((0, "printed\n"), (1, "")):
        launched(rank)
        assert cli.main(["evaluate"]) == 0 and capsys.readouterr() == (printed, "")
    assert [call[2:] for call in calls] == [(2, True, True)] * 2


def test_a_program_of_the_users_is_started_in_every_process(launched, monkeypatch, capsys):
    calls = ran(monkeypatch, "exec")
    launched(1)
    assert cli.main(["exec", "--", "x"]) == 0 and calls[0][2:] == (2, True, True)


@pytest.mark.parametrize("error", [ValueError("no such"), processes.ProcessesError("they differ")])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_an_error_is_told_once_by_whoever_meets_it_first(launched, monkeypatch, capsys, error, order):
    def fail():
        raise error

    ran(monkeypatch, "evaluate", fail)
    said = []
    for rank in order:
        launched(rank)
        assert cli.main(["evaluate"]) == 1
        said.append(capsys.readouterr().err)
    assert said[1] == "" and said[0].startswith("bitdistill evaluate: error: ") and str(error) in said[0]
    # An error of one process, where it is not the first, is told with its place.
    assert ("process 1 on " in said[0]) == (order[0] == 1 and isinstance(error, ValueError))


@pytest.fixture
def folder(tmp_path):
    write_inputs(tmp_path)
    teacher = LlamaForCausalLM(make_student().config)
    del teacher.config.quantization_config
    teacher.save_pretrained(tmp_path / "models" / "teacher")
    make_tokenizer().save_pretrained(tmp_path / "models" / "teacher")
    return tmp_path


def distill(folder, output, *options):
    models = [f"--{kind}model_name_or_path={folder / 'models' / 'teacher'}" for kind in ("", "teacher_")]
    return ["distill", *models, f"--task={folder / 'data' / 'tone.yaml'}", f"--data_dir={folder / 'data'}", "--attention_loss_weight=0",
            f"--output_dir={output}", "--max_steps=4", "--save_steps=1", "--per_device_train_batch_size=1", *QUIET, *options]  # fmt: skip


def lines(result):
    return [line for line in result.stderr.splitlines() if line.startswith("bitdistill")]


@pytest.mark.slow
def test_a_killed_training_goes_on_with_the_same_command(folder):
    weights = {}
    for name, happens in (("whole", "nothing"), ("killed", "kill-step")):
        command = [
            *SCRIPT,
            happens,
            str(folder / "marker"),
            *distill(folder, folder / name, f"--pack_to={folder / name}-packed"),
        ]
        result = run(command, 2)
        if name == "killed":
            assert result.returncode != 0 and (folder / "marker").exists() and "SIGKILL" in result.stderr
            result = run(command, 2)
            assert result.stdout.count("going on from") == 1 and "step 2 of 4 is done" in result.stdout
        assert result.returncode == 0, result.stderr[-3000:]
        assert result.stdout.count('"accuracy_stderr"') == 1
        weights[name] = load_file(folder / name / "model.safetensors")
        assert (folder / f"{name}-packed" / "evaluation.json").is_file()
    assert all(bool((weights["killed"][key] == value).all()) for key, value in weights["whole"].items())
    for name in ("whole", "killed"):
        record = json.loads((folder / name / "evaluation.json").read_text())
        assert record["n"] == 11


@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs deepspeed (extra `distributed`)")
@pytest.mark.parametrize("model", ["teacher", "student"])
def test_a_finished_training_under_zero_3_is_saved_again(folder, model):
    """Whose models, loaded while it is set up, are parts without values; but for a new student, which is calibrated."""
    auto = ("train_micro_batch_size_per_gpu", "train_batch_size", "gradient_accumulation_steps", "gradient_clipping")
    zero = {**dict.fromkeys(auto, "auto"), "zero_allow_untested_optimizer": True, "zero_optimization": {"stage": 3}}
    (folder / "zero3.json").write_text(json.dumps(zero))
    output, options = folder / "zero3", ["--use_cpu", "false", "--deepspeed", str(folder / "zero3.json")]
    command = [sys.executable, str(HERE / "launch_run.py"), *distill(folder, output, *options)]
    command += ["--model_name_or_path", str(folder / "models" / model)]
    saved = []
    for count in (0, 1):
        result = run(command, 2, timeout=500)
        assert result.returncode == 0, result.stderr[-3000:]
        assert result.stdout.count("is the end of this training: nothing left to do") == count
        assert result.stdout.count("calibrated ") == (model == "teacher")
        saved.append(load_file(output / "model.safetensors"))
        (output / "model.safetensors").unlink()
    assert saved[0].keys() == saved[1].keys() and len(saved[0]) > 10
    assert all(bool((saved[1][name] == value).all()) for name, value in saved[0].items())


@pytest.mark.slow
def test_a_killed_evaluation_is_done_again_with_the_numbers_of_one_process(folder, capsys):
    asked = ["evaluate", str(folder / "models" / "student"), f"--task={folder / 'data' / 'tone.yaml'}", f"--data_dir={folder / 'data'}",
             "--eval_batch_size=1"]  # fmt: skip
    command = [*SCRIPT, "kill-forward", str(folder / "marker"), *asked]
    assert run(command, 2).returncode != 0 and (folder / "marker").exists()
    result = run(command, 2)
    assert result.returncode == 0, result.stderr[-3000:]
    assert cli.main(asked) == 0
    found, expected = json.loads(result.stdout), json.loads(capsys.readouterr().out)
    for each in (found, expected):
        del each["seconds"], each["tokens_per_second"]
    assert found == expected


@pytest.mark.slow
def test_disks_of_their_own_end_all_with_one_message(folder):
    result = run([*SCRIPT, "disks", str(folder), *distill(folder, "out")], 2)
    started = min(float(each) for each in re.findall(r"started at (\S+)", result.stderr))
    assert result.returncode != 0 and time.time() - started < 60
    (line,) = lines(result)
    assert (
        "out in process 1 on" in line and "is on a disk of its own. Give an output_dir that all machines share" in line
    )
    assert result.stderr.count("Traceback") == 1  # (the launcher's own)


@pytest.mark.slow
def test_module_under_torchrun(folder):
    command = [sys.executable, "-m", "hf_bitdistill"]
    student, packed = folder / "models" / "student", folder / "packed"
    result = run([*command, "pack", str(student), str(packed)], 2)
    assert result.returncode == 0 and result.stdout.count("MB packed") == 1 and len(lines(result)) == 1
    result = run([*command, "evaluate", str(packed), "--no_such_option"], 2)
    assert result.returncode != 0 and len(lines(result)) == 1
