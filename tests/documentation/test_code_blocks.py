"""Every block of Python and shell in README.md and docs/ runs as it stands, in a folder that has what the pages name.

A comment in front of a block says why it is not run, or that it takes long: those run with the tests marked `slow`. Of every `bitdistill` line the
options are parsed, whether or not it runs; of one that a launcher starts they are all that is looked at.
"""

import argparse
import contextlib
import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch

from pages import PAGES, README, ROOT, blocks


# Commands whose options are those of other programs, or that are no options.
NOT_PARSED = ("exec", "autoload", "serve", "chat")


@pytest.fixture(scope="module")
def scene(tmp_path_factory, _tiny_backend):
    """A folder with the models and files that the pages name, by these names."""
    from tokenizers import Tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from hf_bitdistill import apply_bitnet, pack

    folder = tmp_path_factory.mktemp("scene")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_tiny_backend), pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    config = LlamaConfig(
        vocab_size=384, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=256, tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    kinds = {"MODEL": model, "TEACHER": model}
    for name, each in kinds.items():
        each.save_pretrained(folder / name)
    student = apply_bitnet(model)
    student.save_pretrained(folder / "student")
    pack(student).save_pretrained(folder / "student-packed")
    for name in (*kinds, "student", "student-packed"):
        tokenizer.save_pretrained(folder / name)
    rows = [(f"a {word} film number {i} .", word) for i in range(60) for word in ("dull", "fine")]
    (folder / "reviews.csv").write_text("text,label\n" + "".join(f"{text},{word}\n" for text, word in rows))
    (folder / "corpus.txt").write_text("\n".join(text for text, _ in rows) * 4)
    answers = [json.dumps({"prompt": text, "completion": f" {word}"}) for text, word in rows]
    (folder / "answers.jsonl").write_text("\n".join(answers))
    (folder / "DATA").mkdir()
    for split in ("train", "validation"):
        lines = [json.dumps({"sentence": text, "label": int(word == "fine")}) for text, word in rows]
        (folder / "DATA" / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


class _Parsed(BaseException):
    """The options of a command were accepted. (No `Exception`: the commands explain those.)"""


@contextlib.contextmanager
def only_parsed(monkeypatch):
    """Commands end where their options have been parsed."""
    parse = argparse.ArgumentParser.parse_known_args

    def stop(self, *arguments, **options):
        result = parse(self, *arguments, **options)
        assert not result[1], f"unknown: {result[1]}"
        raise _Parsed

    with monkeypatch.context() as patch, contextlib.suppress(_Parsed):
        patch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
        yield


def commands(code):
    """The commands of a shell block, as words."""
    lines = code.replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def run_command(words, monkeypatch):
    from hf_bitdistill.cli.main import main

    if words[0] == "export":
        for word in words[1:]:
            monkeypatch.setenv(*word.split("=", 1))
    elif words[0] == "bitdistill":
        assert main(words[1:]) == 0, " ".join(words)
    elif words[0] == "optimum-cli":
        from optimum.commands.optimum_cli import main as optimum

        monkeypatch.setattr(sys, "argv", words)
        optimum()
    elif "hf_bitdistill" in words:  # (by a launcher, which would start several processes)
        check_options(["bitdistill", *words[words.index("hf_bitdistill") + 1 :]], monkeypatch)
    else:
        raise AssertionError(f"{words[0]} is not run by this test: say in a comment why the block is not run")


def check_options(words, monkeypatch):
    from hf_bitdistill.cli.main import main

    if words[0] == "bitdistill" and words[1] not in NOT_PARSED:
        with only_parsed(monkeypatch):
            assert main(words[1:]) == 0, " ".join(words)


WITH_BLOCKS = [page for page in PAGES if any(b.language in ("python", "bash", "yaml") for b in blocks(page))]


WITH_LONG_BLOCKS = [page for page in WITH_BLOCKS if any(block.mark == "long" for block in blocks(page))]


def page_id(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=page_id)
def test_blocks(page, scene, tmp_path, monkeypatch, capsys):
    run_blocks(page, (None,), scene, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_LONG_BLOCKS, ids=page_id)
def test_all_blocks(page, scene, tmp_path, monkeypatch, capsys):
    run_blocks(page, (None, "long"), scene, tmp_path, monkeypatch)


def run_blocks(page, marks, scene, tmp_path, monkeypatch):
    """Runs the blocks of a page that have one of the marks, in its order; of the others the options are parsed."""
    from hf_bitdistill.recipe import efforts

    # The smallest effort that teaches one word to the small model.
    tiny = efforts.Effort(
        teacher_examples=800, teacher_epochs=9, teacher_learning_rates=(1e-2,), window_steps=2, keep_massive_ratio=0.0,
        distill_examples=64, distill_learning_rates=(1e-3,), held_out_rows=24,
    )  # fmt: skip
    monkeypatch.setitem(efforts.EFFORTS, "standard", tiny)
    shutil.copytree(scene, tmp_path / "scene")
    monkeypatch.chdir(tmp_path / "scene")
    if page == README:  # which makes these itself
        shutil.rmtree("student")
        shutil.rmtree("student-packed")
    # The pages' own names are in the code as they stand; a block of Python goes on where the one before it ended.
    names = {"__name__": "__main__"}
    for block in blocks(page):
        if block.language == "yaml" and block.code.startswith("# "):
            Path(block.code.split("\n", 1)[0].removeprefix("# ")).write_text(block.code)
    for block in blocks(page):
        runs = block.mark in marks
        if block.language == "python":
            compiled = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
            if runs:
                exec(compiled, names)
        elif block.language == "bash":
            for words in commands(block.code):
                if runs:
                    run_command(words, monkeypatch)
                else:
                    check_options(words, monkeypatch)
        else:
            assert block.language in ("yaml", "", "text"), f"{block}: {block.language}"


def test_few_blocks_are_not_run():
    every = [block for page in PAGES for block in blocks(page) if block.language in ("python", "bash")]
    assert len(every) > 35
    assert len([block for block in every if block.mark == "not run"]) <= 17


def test_the_task_file_of_the_docs(tmp_path):
    from hf_bitdistill.data import load_task

    (block,) = [b for b in blocks(ROOT / "docs" / "data.md") if b.language == "yaml"]
    (tmp_path / "tickets.yaml").write_text(block.code)
    task = load_task(str(tmp_path / "tickets.yaml"))
    assert task.label_words == ("billing", "technical", "sales") and task.metric == "f1"


def test_an_option_that_is_not_there_is_noticed(monkeypatch, capsys):
    with pytest.raises((SystemExit, AssertionError)):
        check_options(["bitdistill", "pack", "student", "out", "--no_such_option"], monkeypatch)
    check_options(["bitdistill", "pack", "student", "out", "--table_bits", "8"], monkeypatch)
    launched = ["torchrun", "-m", "hf_bitdistill", "run", "--model", "MODEL"]
    run_command([*launched, "--dataset", "DATASET"], monkeypatch)
    with pytest.raises((SystemExit, AssertionError)):
        run_command([*launched, "--no_such_option", "1"], monkeypatch)
    with pytest.raises(AssertionError, match="llama-server"):
        run_command(["llama-server"], monkeypatch)
