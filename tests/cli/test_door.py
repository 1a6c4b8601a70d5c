"""What `bitdistill` says without loading torch, and how it ends where nobody reads on."""

import itertools
import json
import os
import subprocess
import sys

import pytest

from hf_bitdistill import __version__
from hf_bitdistill.cli.describe import commands, describe
from hf_bitdistill_cli import CLOSED_PIPE, COMMANDS, main, usage
from hf_bitdistill_cli.parsing import shown
from hf_bitdistill_cli.spec import SPECS, Spec, file_of, load


DOOR = [sys.executable, "-c", "import sys; from hf_bitdistill_cli import script; sys.exit(script())"]
# CPU seconds that an answer may take, the start of Python included; most take 0.06.
LIMIT = 0.3
# Runs command lines that are given as JSON, and prints the status of each, its CPU seconds, and what heavy was imported.
WATCHED = """
import contextlib, io, json, sys, time
from hf_bitdistill_cli import main
def run(words):
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            status = main(words)
        except SystemExit as end:
            status = end.code
    return [status, output.getvalue(), errors.getvalue()]
answers, ends = [], [0.0]
for words in json.load(sys.stdin):
    answers.append(run(words))
    ends.append(time.process_time())
heavy = sorted({"torch", "transformers", "hf_bitdistill", "numpy"} & set(sys.modules))
print(json.dumps([answers, ends, heavy]))
"""

# The options of these are transformers': another version than that of the specs is asked itself.
OF_THIS_VERSION = [words for words in commands() if load(words) is not None]


def at_once(*lines):
    """Status, output and errors of command lines, which import nothing heavy; and the most CPU seconds that one took, the
    first with Python's start."""
    result = subprocess.run(
        [sys.executable, "-c", WATCHED],
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    answers, ends, heavy = json.loads(result.stdout)
    assert heavy == []
    return answers, max(end - start for start, end in itertools.pairwise(ends))


def test_help_of_every_command():
    answers, seconds = at_once(*([*words.split(), "--help"] for words in OF_THIS_VERSION))
    for words, (status, output, errors) in zip(OF_THIS_VERSION, answers, strict=True):
        assert (status, errors) == (0, "") and output.startswith(f"usage: bitdistill {words}"), words
        listed = [option for section in load(words).sections for option in shown(section)[1]]
        assert all(f"  {option.flags[0]}" in output for option in listed if option.flags)
        assert max(map(len, output.splitlines())) <= 90, words
    assert seconds <= LIMIT


REFUSED = [
    ("distill --task sst2 --modle_name_or_path m", 1, "unknown option '--modle_name_or_path'; did you mean 'model_name_or_path'?"),
    ("pretrain --no_such 1", 1, "unknown option '--no_such'"),
    ("distill", 1, "--task is required"),
    ("distill --task sst2", 1, "--model_name_or_path is required"),
    ("run --model m --output_dir o", 1, "--dataset or --task is required"),
    ("run --teacher m --task sst2", 1, "--output_dir is required"),
    ("run --effort much", 2, "invalid choice: 'much'"),
    ("distill --max_steps many", 2, "invalid int value: 'many'"),
    ("warm-start --model_name_or_path m --output_dir o", 1, "--corpus or --task is required"),
    ("evaluate", 1, "--model_name_or_path is required"),
    ("distill no_such.yaml", 1, "there is no configuration file no_such.yaml"),
    ("pack", 2, "the following arguments are required: model, output_dir"),
    ("pack a b --table_bit", 2, "expected one argument"),
    ("pack a b --weight_bits 3", 2, "invalid choice: 3.0"),
    ("data rows.csv", 2, "the following arguments are required: --model"),
    ("benchmark m --thread_s 2", 2, "unrecognized arguments: --thread_s 2"),
    ("export", 1, "name a format: gguf, i2_s, transformers"),
    ("export ggfu", 1, "unknown format 'ggfu'"),
    ("export gguf m", 2, "the following arguments are required: OUT.gguf"),
    ("serve --prot 80", 1, "unknown option '--prot'; did you mean 'port'?"),
    ("pakc", 2, "unknown command 'pakc'"),
]  # fmt: skip


def test_what_cannot_be_run_is_refused_at_once():
    known = [case for case in REFUSED if case[0].split()[0] not in COMMANDS or load(case[0].split()[0]) is not None]
    answers, seconds = at_once(*(line.split() for line, _, _ in known))
    for (line, status, message), answer in zip(known, answers, strict=True):
        assert answer[0] == status and message in answer[2], (line, answer)
        assert status == 2 or len(answer[2].splitlines()) == 1
    assert seconds <= LIMIT


@pytest.mark.skipif("distill" not in OF_THIS_VERSION, reason="the specs are of another transformers")
def test_options_of_a_file_are_refused_at_once(tmp_path):
    (tmp_path / "a.yaml").write_text("task: sst2\nlerning_rate: 1\n")
    (tmp_path / "b.yaml").write_text("model: m\ndataset: d\n")
    ((status, _, errors), second), _ = at_once(
        ["distill", str(tmp_path / "a.yaml")], ["run", str(tmp_path / "b.yaml")]
    )
    assert status == 1 and "a.yaml: unknown option 'lerning_rate'; did you mean 'learning_rate'?" in errors
    assert second[0] == 1 and second[2] == "bitdistill run: error: --output_dir is required\n"


@pytest.mark.parametrize("words", commands())
def test_the_specs_are_those_of_the_parsers(words):
    kept = Spec.from_json(file_of(words).read_text(encoding="utf-8"))
    if kept.transformers is not None and load(words) is None:
        pytest.skip(f"of transformers {kept.transformers}")
    assert kept == describe(words), "scripts/write_specs.py writes them anew"
    assert Spec.from_json(kept.to_json()) == kept


def test_there_is_no_other_spec():
    assert set(SPECS.iterdir()) == {file_of(words) for words in commands()}


@pytest.mark.parametrize("flag", ["--help", "--help_all"])
def test_another_version_of_transformers_is_asked_itself(flag, monkeypatch, capsys):
    ours = load("distill") is not None
    # (Where there is none, --use_cpu has another default, which only they show.)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("hf_bitdistill_cli.spec._transformers", lambda: "0.0")
    assert load("distill") is None and load("pack") is not None
    with pytest.raises(SystemExit):
        main(["distill", flag])
    theirs = capsys.readouterr().out
    assert ("--adam_beta1" in theirs) == (flag == "--help_all") and "--task VALUE" in theirs
    monkeypatch.undo()
    if ours:
        with pytest.raises(SystemExit):
            main(["distill", flag])
        assert capsys.readouterr().out == theirs


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["--help"], 0, "usage: bitdistill [-v] COMMAND"),
        (["--version"], 0, __version__),
        ([], 2, "usage"),
    ],
)
def test_it_answers_without_torch(arguments, status, text):
    ((answer,), seconds) = at_once(arguments)
    assert answer[0] == status and text in answer[1] and seconds <= LIMIT


def test_the_overview_fits_a_screen():
    lines = usage().splitlines()
    assert len(lines) < 24 and max(map(len, lines)) <= 80
    assert all(f"  {name} " in usage() for name in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "unbuffered"), [(["--help"], ""), (["--help"], "1"), (["pack", "--help"], ""), (["env"], "")]
)
def test_it_ends_quietly_where_nobody_reads(arguments, unbuffered):
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    result = subprocess.run(
        [*DOOR, *arguments], stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120, env=environment
    )
    os.close(writing)
    assert result.returncode == CLOSED_PIPE
    assert "Error" not in result.stderr and "error" not in result.stderr
