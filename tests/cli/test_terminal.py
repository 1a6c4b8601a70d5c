"""What a command leaves on the terminal: its own lines, bars of work, and nothing that only the libraries understand."""

import json
import logging
import os
import re
import subprocess
import sys

import pytest

from hf_bitdistill.machine.notices import without_notices
from hf_bitdistill_cli import VERBOSE, main


COMMAND = [sys.executable, "-c", "import sys; from hf_bitdistill_cli import script; sys.exit(script())"]

# What stands there, beside the JSON of the result; and what may, where nothing was read before.
KINDS = (
    r"calibrated \d+ SubLNs",
    r"\{'(eval_)?loss': .*\}",  # Trainer's lines
    r"\{'train_runtime': .*\}",
    r"\s*\d+%\|.*\| \d+/\d+ .*",  # its bar
    r"sst2 evaluation: +\d+%\|.*",
    r"(accuracy|the most frequent class|a class at random) .*",
    r"\d+ examples; \+- is one standard error",
)
READING = r"[\w ]+: .*\[.* examples/s\]"


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [{"sentence": f"a {word} film .", "label": index % 2} for index, word in enumerate(("dull", "fine") * 6)]
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def distill(teacher, data, tmp_path, *flags):
    """Everything that a small distillation writes, without the JSON of its result: its lines, in which bars come again and again."""
    models = ["--model_name_or_path", teacher, "--teacher_model_name_or_path", teacher]
    task = ["--task", "sst2", "--data_dir", data, "--output_dir", tmp_path / "out", "--pack_to", tmp_path / "packed"]
    training = ["--max_steps", "2", "--save_steps", "1", "--logging_steps", "1", "--report_to", "none", "--use_cpu"]
    words = [*COMMAND, *flags, "distill", *models, *task, *training]
    environment = {
        name: value for name, value in os.environ.items() if name not in (VERBOSE, "TRANSFORMERS_VERBOSITY")
    }
    result = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, timeout=300, env=environment, check=True
    )
    before, opened, rest = result.stdout.partition("\n{\n")
    told = before + rest.partition("\n}\n")[2]
    assert opened
    return [line.strip() for line in re.split(r"[\r\n]+", f"{told}\n{result.stderr}") if line.strip()]


def test_only_lines_of_our_own_kinds(teacher, data, tmp_path):
    lines = distill(teacher, data, tmp_path)
    strange = [line for line in lines if not any(re.fullmatch(kind, line) for kind in (*KINDS, READING))]
    assert strange == []
    for kind in KINDS:
        assert any(re.fullmatch(kind, line) for line in lines), kind


NOTICES = [
    ("transformers.trainer_utils", "The tokenizer has new PAD/BOS/EOS tokens that differ"),
    ("DeepSpeed", "Setting accelerator to CPU. If you have GPU"),
]


@pytest.mark.parametrize(("name", "text"), NOTICES)
def test_notices_are_filtered_and_warnings_are_not(name, text, monkeypatch):
    from transformers.utils import logging as transformers_logging

    monkeypatch.delenv(VERBOSE, raising=False)
    monkeypatch.delenv("TRANSFORMERS_VERBOSITY", raising=False)
    logger = logging.getLogger(name)
    messages, handler = [], logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger.addHandler(handler)
    bars = transformers_logging.is_progress_bar_enabled()
    try:
        with without_notices():
            logger.warning(text)
            logger.warning("something is wrong")
            assert not transformers_logging.is_progress_bar_enabled()
        assert messages == ["something is wrong"]
        logger.warning(text)
        with without_notices(["--log_level", "info"]):
            logger.warning(text)
        monkeypatch.setenv(VERBOSE, "1")
        with without_notices():
            logger.warning(text)
        assert messages == ["something is wrong", text, text, text]
        assert transformers_logging.is_progress_bar_enabled() == bars
    finally:
        logger.removeHandler(handler)


def test_verbose_stands_before_the_command(monkeypatch, capsys):
    monkeypatch.setenv(VERBOSE, "")
    assert main(["-v", "--version"]) == 0 and os.environ[VERBOSE] == "1"
    monkeypatch.setenv(VERBOSE, "")
    assert main(["--verbose", "--help"]) == 0 and os.environ[VERBOSE] == "1"
    assert "-v, --verbose" in capsys.readouterr().out
