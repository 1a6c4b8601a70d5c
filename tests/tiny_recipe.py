"""Data and settings of the recipe's tests: seconds, and something to learn."""

import csv
import random
import shutil
from pathlib import Path

import torch
from huggingface_hub import constants
from transformers import LlamaForCausalLM

from hf_bitdistill.recipe import result


CLASSES = {"negative": "dull", "neutral": "green", "positive": "warm"}
CHAT = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
FAST = {
    "effort": "quick",
    "teacher_examples": 1120,
    "teacher_epochs": 20.0,
    "teacher_learning_rates": [1e-2],
    "window_steps": 4,
    "window_tokens": 400,
    "distill_examples": 64,
    "keep_massive_ratio": 0.0,
    "bf16": "false",
    "speed": False,
}
# With a teacher that is given, options of its fine-tuning are refused.
NOT_FINE_TUNED = dict.fromkeys(("teacher_examples", "teacher_epochs", "teacher_learning_rates"))


def examples(count=200):
    """`(text, class)`, the class told by one word."""
    draw = random.Random(0)
    for number in range(count):
        name = draw.choice(list(CLASSES))
        yield f"{CLASSES[name]} {number % 7}", name


def flags(**options):
    """As a command line."""
    line = []
    for name, value in options.items():
        values = value if isinstance(value, list) else [value]
        line += [f"--{name}", *(str(each).lower() if isinstance(each, bool) else str(each) for each in values)]
    return line


def without_figures(set_attribute=setattr):
    """Drawing takes longer than all else of a tiny run.

    Args:
        set_attribute: how the functions that draw are replaced.
    """

    def draw(title, file, *_):
        file.write_bytes(b"no figure")
        return file

    for name in ("plot_bars", "plot_panels", "plot_points"):
        set_attribute(result, name, draw)


def make_model(folder, config, tokenizer):
    """A tiny model with its tokenizer, always the same one."""
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return folder


def put_on_hub(folder, name, commit="c0ffee"):
    """As if a folder had been downloaded from the Hub.

    Args:
        name: `owner/name`; other tests of the session see it too.
        commit: of `main`.
    """
    repository = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(folder, repository / "snapshots" / commit)
    return name


def make_csv(file):
    """A file of one's own: other column names, three classes, a column that says nothing."""
    with file.open("w", newline="") as writer:
        table = csv.writer(writer)
        table.writerow(["opinion", "verdict", "id"])
        table.writerows([text, name, number] for number, (text, name) in enumerate(examples()))
    return file


def own_settings(model, dataset, output, **more):
    """Options of a run of `make_csv`'s file."""
    return {
        "model": str(model),
        "dataset": str(dataset),
        "text_columns": ["opinion"],
        "label_column": "verdict",
        "output_dir": str(output),
        **FAST,
        **more,
    }
