"""The report of a run folder, looked at by a real browser where there is one."""

import json
import re
import shutil
import subprocess
from types import SimpleNamespace

import matplotlib.image
import pytest
import torch

from architectures import tiny_model
from hf_bitdistill import BitNetConfig, apply_bitnet
from hf_bitdistill.cli.main import main
from hf_bitdistill.pages.tables import format_score, html_table, markdown_table, text_table
from hf_bitdistill.report import write_report
from hf_bitdistill.report.weight_report import measure_weights, student_options


@pytest.fixture
def run(tmp_path):
    """A run folder as `bitdistill distill` leaves it, its source model, and a teacher's evaluation."""
    source, folder = tmp_path / "source", tmp_path / "run"
    tiny_model("llama").save_pretrained(source)
    student = apply_bitnet(tiny_model("llama"), BitNetConfig(weight_granularity="row"))
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if name.endswith("q_proj.weight"):
                parameter.add_(0.01 * torch.randn_like(parameter))
    student.save_pretrained(folder)
    log = [{"step": s, "loss": 9.0 / s, "loss_ce": 3.0 / s, "loss_logits": 0.6 / s} for s in (10, 20, 30)]
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 30, "log_history": [*log, {"step": 30}]}))
    (folder / "evaluation.json").write_text(json.dumps({"task": "sst2", "accuracy": 0.75, "n": 4}))
    teacher = tmp_path / "teacher.json"
    teacher.write_text(json.dumps({"task": "sst2", "accuracy": 0.9, "perplexity": 12.5, "n": 4}))
    return SimpleNamespace(folder=folder, source=source, teacher=teacher)


def test_everything_that_is_there_is_reported(run):
    page = write_report(run.folder, before=run.source, compared={"FP <teacher>": run.teacher})
    text = page.read_text()
    for heading in ("Losses", "Scores", "Weights", "Size on disk"):
        assert f"<h2>{heading}</h2>" in text
    assert "FP &lt;teacher&gt;" in text and "0.75" in text and "30 steps" in text
    figures = {file.stem for file in (run.folder / "report").glob("*.png")}
    assert figures == {"losses", "accuracy", "perplexity", "weights", "zeros"}
    assert text.count("data:image/png;base64,") == 5
    # Nothing in it can make a browser ask anybody for anything.
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:)|url\(|@import|<script", text)


def test_weights_are_those_of_the_student(run):
    options = student_options(run.folder)
    layers = measure_weights(run.folder, options)
    assert len(layers) == 14
    student = apply_bitnet(tiny_model("llama"), BitNetConfig(weight_granularity="row"))
    name = "model.layers.0.mlp.up_proj"
    codes, _ = student.get_submodule(name).ternarize()
    layer = layers[f"{name}.weight"]
    assert layer.zeros == pytest.approx((codes == 0).float().mean().item())
    assert layer.histogram.sum() == codes.numel()
    source = measure_weights(run.source, options, set(layers))
    assert source.keys() == layers.keys() and source[f"{name}.weight"].zeros == layer.zeros
    changed = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(source[changed].histogram, layers[changed].histogram)
    assert student_options(run.source) is None


def test_only_what_is_there(run, tmp_path):
    (run.folder / "evaluation.json").unlink()
    (run.folder / "model.safetensors").unlink()
    text = write_report(run.folder, tmp_path / "page.html").read_text()
    assert "Losses" in text and "Scores" not in text and "Weights" not in text
    assert (tmp_path / "page" / "losses.png").is_file()


def test_refusals(run, tmp_path, capsys):
    assert main(["report", str(tmp_path / "none")]) == 1
    assert "there is no folder" in capsys.readouterr().err
    assert main(["report", str(run.folder), "--compare", "teacher"]) == 1
    assert "NAME=FILE.json" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["report", str(tmp_path / "empty")]) == 1
    assert "nothing to report" in capsys.readouterr().err
    assert main(["report", str(run.folder), "--before", str(tmp_path / "empty")]) == 1
    assert "none of the projections" in capsys.readouterr().err
    run.teacher.write_text("{")
    assert main(["report", str(run.folder), "--compare", f"teacher={run.teacher}"]) == 1
    assert "not valid JSON" in capsys.readouterr().err


def test_a_table_for_a_terminal():
    lines = [("stage", "steps"), ("a long one", "7"), ("b", "")]
    assert text_table(lines) == "stage       steps\na long one      7\nb"
    assert text_table(lines, numbers=False) == "stage       steps\na long one  7\nb"


def test_tables_escape():
    assert format_score("token_accuracy", 1.0, 0.0123) == "100.0 ± 1.2 %" and format_score("f1", 0.5, None) == "50.0 %"
    assert format_score("perplexity", 7.8412, 0.0312) == "7.841 ± 0.031" and format_score("loss", 0.25, None) == "0.25"
    assert markdown_table(["a"], [["x|y"]]).splitlines()[-1] == "| x\\|y |"
    assert "<td>&lt;b&gt;</td>" in html_table(["a"], [["<b>"]])


def test_a_browser_shows_it_and_asks_nobody(run, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("needs Chromium (Debian package chromium)")
    page = write_report(run.folder, before=run.source, compared={"teacher": run.teacher})
    screenshot, log = tmp_path / "page.png", tmp_path / "net.json"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--log-net-log={log}", "--window-size=1000,3000", f"--screenshot={screenshot}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    pixels = matplotlib.image.imread(screenshot)[..., :3]
    assert pixels.shape[0] >= 2000
    # Text and curves in every part of the page, not only at its top.
    for part in range(4):
        strip = pixels[part * len(pixels) // 5 : (part + 1) * len(pixels) // 5]
        assert (strip < 0.9).any(axis=-1).mean() > 0.005
    # Chromium asks for things of its own; the page must be the origin of none.
    asked = re.findall(r'"initiator":"([^"]*)"|"url":"(https?://[^"]*)"', log.read_text())
    assert not [initiator for initiator, _ in asked if initiator.startswith(("file", "null"))]
