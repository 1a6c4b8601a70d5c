"""A miniature run from end to end, one that is interrupted, and clean failures."""

from __future__ import annotations

import copy
import io
import json

import pytest
import torch

from hf_bitdistill.quickstart import run_quickstart
from hf_bitdistill.recipe.progress import Progress


class Killed(BaseException):
    pass


class Killing(Progress):
    """Ends the run at the second step of its pre-training."""

    def __init__(self):
        super().__init__(io.StringIO())

    def show(self, done, total, loss=None):
        if self._title == "continual pre-training" and done == 2:
            raise Killed


def _no_figure(file):
    file.write_bytes(b"no figure")
    return file


@pytest.fixture(scope="module")
def miniature(tiny, tmp_path_factory):
    threads, lines = torch.get_num_threads(), io.StringIO()
    result = run_quickstart(tmp_path_factory.mktemp("run"), tiny, progress=Progress(lines))
    assert torch.get_num_threads() == threads
    return result, lines.getvalue()


def test_table(miniature):
    result, lines = miniature
    assert list(result.scores) == [
        "base model", "teacher", "student before distillation", "ternary student, packed", "BitNet-SFT (no recipe)"
    ]  # fmt: skip
    for row in result.table:
        assert row.score["metric"] == "token_accuracy" and row.score["n"] == 20 and row.score["stderr"] > 0
        assert f"{row.name} " in lines
    assert "docstrings: prompts with completions; " in lines
    sizes = {row.name: row.bytes for row in result.table}
    assert sizes["ternary student, packed"] < sizes["teacher"]
    assert sizes["BitNet-SFT (no recipe)"] < sizes["teacher"] < 1.05 * sizes["base model"]


def test_report(miniature):
    result, lines = miniature
    page = result.paths["report"].read_text(encoding="utf-8")
    assert result.paths["report"] == result.output / "report.html"
    # Scores against sizes, the losses of four trainings, the packed layers.
    assert page.count("data:image/png") == 6
    assert "These curves do not rank the models" in page
    for title in ("teacher", "continual pre-training", "distillation", "BitNet-SFT"):
        assert f"<h3>{title}</h3>" in page
    # 192 tokens in blocks of 32, two a step.
    assert result.curves["continual pre-training"][-1]["step"] == 3
    assert len(result.written) == 2 and "The packed student at work" in page
    assert all(each.prompt.splitlines()[0] in lines for each in result.written)
    assert "written by the packed student in the native decoder" in lines
    assert lines.splitlines()[-2:] == [
        f"quality against size and speed: {result.output / 'report' / 'quality.png'}",
        f"report page: {result.paths['report']}",
    ]
    assert result.picture.read_bytes()[:4] == b"\x89PNG"
    saved = json.loads((result.output / "result.json").read_text())
    assert saved["written"][0]["answer"] == result.written[0].answer


def test_speeds_are_told_where_they_were_measured(miniature):
    from hf_bitdistill.quickstart.run import _ending

    result = copy.deepcopy(miniature[0])
    assert "tokens/s" not in "".join(_ending(result))
    for row in result.table:
        row.tokens_per_second = {"teacher": 100.0, "ternary student, packed": 2345.0}.get(row.name)
    first = next(iter(_ending(result)))
    assert (
        first.strip() == "2,345 tokens/s the student in the native decoder, 100 tokens/s its teacher in transformers"
    )


def test_saved_models(miniature):
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    from hf_bitdistill.nn import TernaryLinear

    paths = miniature[0].paths
    packed = AutoModelForCausalLM.from_pretrained(paths["packed"])
    assert sum(isinstance(module, TernaryLinear) for module in packed.modules()) == 14
    # Stored as the base model is; scales, and what is trained on, in float32.
    kinds = {}
    for name in ("teacher", "student", "packed"):
        with safe_open(paths[name] / "model.safetensors", framework="pt") as reader:
            kinds[name] = {each.rpartition(".")[2]: reader.get_slice(each).get_dtype() for each in reader.keys()}  # noqa: SIM118
            table = reader.get_slice("model.embed_tokens.weight").get_dtype()
            assert table == ("F32" if name == "student" else "BF16")
    assert kinds["packed"]["weight_scale"] == "F32"


def test_interrupted_it_goes_on_and_ends_the_same(miniature, tiny, tmp_path, monkeypatch):
    # Drawing takes longer than all else; `miniature` draws.
    for name in ("plot_points", "plot_panels"):
        monkeypatch.setattr(f"hf_bitdistill.recipe.result.{name}", lambda _, file, *rest: _no_figure(file))
    often = {**tiny.numbers, "checkpoint_minutes": 1e-6}
    with pytest.raises(Killed):
        run_quickstart(tmp_path, tiny, progress=Killing(), numbers=often)
    data = {file: file.stat().st_mtime_ns for file in (tmp_path / "data").rglob("*.jsonl")}
    lines = io.StringIO()
    result = run_quickstart(tmp_path, tiny, progress=Progress(lines))
    assert "teacher: was done before" in lines.getvalue() and "goes on from step" in lines.getvalue()
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "data").rglob("*.jsonl")} == data and len(data) == 3
    assert result.scores == miniature[0].scores


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_model": "nowhere"}, "no base model"),
        ({"train_examples": 0}, "train_examples must be a positive integer"),
        ({"threads": 0}, "threads must be positive"),
        ({"train_example": 3}, "train_example"),
        ({"numbers": {"batch_sizes": 3}}, "batch_sizes"),
        ({"numbers": {"batch_size": 0}}, "batch_size must be positive"),
    ],
)
def test_bad_settings(tmp_path, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        run_quickstart(tmp_path, **options)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_command(tmp_path, monkeypatch, capsys):
    from hf_bitdistill.cli.main import main

    given = {}

    def interrupted(**options):
        given.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_bitdistill.cli.quickstart.run_quickstart", interrupted)
    assert main(["quickstart", "--output_dir", str(tmp_path / "my run"), "--threads", "1"]) == 130
    assert given == {"output_dir": tmp_path / "my run", "seed": 0, "threads": 1}
    assert f"bitdistill quickstart --output_dir '{tmp_path}/my run'" in capsys.readouterr().err


def test_shipped_base_model_is_small_and_loads():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from hf_bitdistill.quickstart.settings import TEACHER_FOLDER

    assert sum(file.stat().st_size for file in TEACHER_FOLDER.iterdir()) <= 4e6
    model = AutoModelForCausalLM.from_pretrained(TEACHER_FOLDER)
    assert model.config.vocab_size == len(AutoTokenizer.from_pretrained(TEACHER_FOLDER))
    assert model.config.head_dim % 16 == 0
