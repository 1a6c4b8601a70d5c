"""The recipe in two processes: the numbers of one, one voice, and what is refused; killed at every stage it ends the same."""

import json
import sys
from pathlib import Path

import pytest
from launching import HERE, run, run_script
from safetensors.torch import load_file

from hf_bitdistill.recipe import RecipeSettings, run_recipe
from tiny_recipe import make_csv, make_model, own_settings, without_figures


SHORT = {"teacher_examples": 96, "teacher_learning_rates": [3e-3], "check_teacher": False, "keep_only_better": False}


@pytest.fixture
def given(tmp_path, tiny_llama_config, tiny_tokenizer):
    """Options of a tiny run."""
    model = make_model(tmp_path / "model", tiny_llama_config, tiny_tokenizer)
    return own_settings(model, make_csv(tmp_path / "opinions.csv"), tmp_path / "two", **SHORT)


def parts(text: str) -> dict[str, list[str]]:
    """The lines of each command."""
    found: dict[str, list[str]] = {}
    for line in filter(None, text.splitlines()):
        if line.startswith("--- "):
            lines = found.setdefault(line.removeprefix("--- "), [])
        elif found:
            lines.append(line)
    return found


def results(output: Path) -> dict:
    return json.loads((output / "result.json").read_text())


@pytest.mark.slow
def test_two_processes(given, tmp_path, monkeypatch):
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(given))
    done = run_script("recipe_run.py", 2, str(file))
    statuses = [json.loads(Path(f"{file}.{rank}").read_text()) for rank in range(2)]
    assert statuses[0] == statuses[1] == {"batch": 1, "disks": 1, "seed": 1, "run": 0}

    # Refused in one line each, of whichever process.
    errors = [line for line in done.stderr.splitlines() if "bitdistill run: error:" in line]
    assert len(errors) == 3, errors
    batch, disks, seed = errors
    assert "batch_size 15 is of all processes together" in batch and "--batch_size 14 or 16" in batch
    assert "is on a disk of its own. Give one on a file system that all machines share" in disks
    assert "the options differ between process 0" in seed and "(seed: None and 1)" in seed
    assert not list(tmp_path.glob("disk-*/out/*"))

    # One voice.
    lines = [line for line in parts(done.stdout)["run"] if "  teacher: took" in line or "packed student:" in line]
    assert len(lines) == 2, done.stdout

    # The numbers of one process.
    without_figures(monkeypatch.setattr)
    one = run_recipe(RecipeSettings(**given), output_dir=str(tmp_path / "one"))
    two = results(tmp_path / "two")
    assert {row["name"]: row["score"]["value"] for row in two["table"]} == one.scores
    assert (two["machine"]["processes"], two["machine"]["engine"]) == (2, "ddp") and "processes" not in one.machine
    for title, curve in one.curves.items():
        found = two["curves"][title]
        assert [each["step"] for each in found] == [each["step"] for each in curve]
        assert [each["loss"] for each in found] == pytest.approx([each["loss"] for each in curve], rel=1e-3)
    assert two["gap"]["loss"]["value"] == pytest.approx(one.gap["loss"]["value"], abs=1e-3)
    # A probe is of so many processes; the other stages of one process would have been found.
    kinds = {name: sorted(each.name for each in (tmp_path / name / "stages").iterdir()) for name in ("one", "two")}
    others = {name: [each for each in found if "probe" not in each] for name, found in kinds.items()}
    assert others["one"][:-1] == others["two"][:-1] and kinds["one"] != kinds["two"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_every_stage(given, tmp_path):
    given |= {"teacher_examples": 320, "window_steps": 3, "window_stride": 1}
    file = tmp_path / "settings.json"

    def start(output: str, *killed: object, **more):
        file.write_text(json.dumps({**given, "output_dir": str(tmp_path / output), **more}))
        command = [sys.executable, str(HERE / "recipe_run.py"), str(file), *map(str, killed)]
        return run(command, 2)

    nobody = (-1, "none", 0)
    assert start("reference", *nobody).returncode == 0
    # One of them, the first and the other; every step keeps a checkpoint but the teacher's, which has those of the best model.
    for rank, title, step in ((1, "teacher", 17), (0, "start", 2), (1, "distillation", 3), (0, "pack", 0)):
        killed = start("killed", rank, title, step, **({} if title == "teacher" else {"checkpoint_minutes": 1e-6}))
        assert (
            killed.returncode != 0
            and "(SIGKILL)" in killed.stderr
            and not (tmp_path / "killed" / "result.json").exists()
        )
    last = start("killed", *nobody)
    assert last.returncode == 0, last.stderr[-3000:]
    assert "teacher: was done before" in last.stdout and "distillation: was done before" in last.stdout
    expected, found = results(tmp_path / "reference"), results(tmp_path / "killed")
    assert [row["score"] for row in found["table"]] == [row["score"] for row in expected["table"]]
    one, other = (load_file(tmp_path / name / "packed" / "model.safetensors") for name in ("reference", "killed"))
    assert one.keys() == other.keys() and all(value.equal(other[name]) for name, value in one.items())
