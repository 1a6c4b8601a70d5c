"""A miniature run from end to end, and clean failures."""

from __future__ import annotations

import pytest
import torch

from hf_bitdistill.quickstart import QuickstartError, QuickstartSettings, run_quickstart


PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def miniature(base_folder, tmp_path_factory):
    settings = QuickstartSettings(
        base_model=base_folder,
        threads=1,
        source_megabytes=1.0,
        train_examples=60,
        test_examples=20,
        max_length=96,
        block_size=32,
        perplexity_blocks=4,
        pretraining_steps=3,
        pretraining_batch_size=4,
        fine_tuning_steps=3,
        batch_size=4,
        timing_seconds=0.0,
        shown_examples=2,
        progress=False,
    )
    threads = torch.get_num_threads()
    result = run_quickstart(tmp_path_factory.mktemp("run"), settings)
    assert torch.get_num_threads() == threads
    return result


def test_report_and_figures(miniature):
    report = miniature.report.read_text(encoding="utf-8")
    for name, model in miniature.models.items():
        assert f"{100 * model.scores.accuracy:.1f} % ± {100 * model.scores.standard_error:.1f}" in report
        assert f"**{name}**" in report
    assert "| chance |" in report
    for figure in ("loss_fine_tuning.png", "loss_distillation.png", "loss_pretraining.png", "result.png"):
        assert f"]({figure})" in report
        assert (miniature.report.parent / figure).read_bytes().startswith(PNG)
    assert "BitDistill's cross entropy on the training labels ends" in report
    assert set(miniature.logs) == {"FP-SFT", "BitNet-SFT", "continual pre-training", "BitDistill"}
    settings = miniature.settings
    read = settings.pretraining_steps * settings.pretraining_batch_size * settings.block_size
    assert miniature.logs["continual pre-training"].tokens == read
    assert set(miniature.logs["BitDistill"].losses) == {"loss", "loss_ce", "loss_logits", "loss_attention"}
    assert len(miniature.perplexities) == 4
    assert len(miniature.shown) == 2
    assert all(speed.reading > 0 and speed.writing > 0 for speed in miniature.speeds.values())


def test_saved_models(miniature):
    from transformers import AutoModelForCausalLM

    from hf_bitdistill.layers import TernaryLinear

    folder = miniature.report.parent
    models = {name: AutoModelForCausalLM.from_pretrained(folder / m.folder) for name, m in miniature.models.items()}
    packed = {name: sum(isinstance(m, TernaryLinear) for m in model.modules()) for name, model in models.items()}
    assert packed == {"FP-SFT": 0, "BitNet-SFT": 14, "BitDistill": 14}
    full, student = miniature.models["FP-SFT"], miniature.models["BitDistill"]
    assert student.weights_bytes < full.weights_bytes
    assert full.projection_bytes / student.projection_bytes == pytest.approx(8, rel=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_model": "nowhere"}, "no base model"),
        ({"fine_tuning_steps": 0}, "fine_tuning_steps must be a positive integer"),
        ({"fine_tuning_step": 3}, "fine_tuning_step"),
    ],
)
def test_bad_settings(tmp_path, options, message):
    with pytest.raises(QuickstartError, match=message) as caught:
        run_quickstart(tmp_path, **options)
    assert "\n" not in str(caught.value)


def test_output_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(QuickstartError, match="Cannot write"):
        run_quickstart(tmp_path / "file" / "folder")


def test_too_little_text(tmp_path, base_folder, monkeypatch):
    from hf_bitdistill.quickstart import run

    monkeypatch.setattr(run, "extract", lambda *_: [])
    with pytest.raises(QuickstartError, match="Not enough text"):
        run_quickstart(tmp_path / "out", base_model=base_folder, threads=1)


def test_shipped_base_model_is_small_and_loads():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from hf_bitdistill.quickstart.base_model import TEACHER_FOLDER

    assert sum(file.stat().st_size for file in TEACHER_FOLDER.iterdir()) <= 4e6
    model = AutoModelForCausalLM.from_pretrained(TEACHER_FOLDER)
    assert model.config.vocab_size == len(AutoTokenizer.from_pretrained(TEACHER_FOLDER))
    assert model.config.head_dim % 16 == 0


def test_a_busy_machine_is_told_how_to_wait(monkeypatch):
    from hf_bitdistill.cli import quickstart

    for name in quickstart._WAITING:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(quickstart.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(quickstart.os, "getloadavg", lambda: (3.1, 0, 0))
    assert "load 3.1" in quickstart._of_busy_machine(2) and not quickstart._of_busy_machine(1)
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert not quickstart._of_busy_machine(2)
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setattr(quickstart.os, "getloadavg", lambda: (0.2, 0, 0))
    assert not quickstart._of_busy_machine(2)
