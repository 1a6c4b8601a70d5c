"""EleutherAI's evaluation harness scores a packed student alike in transformers and on the native decoder, on tasks made here."""

import json
import os
import statistics
from pathlib import Path

import pytest

from hf_bitdistill import pack
from hf_bitdistill.cli.main import main
from students import make_student


lm_eval = pytest.importorskip("lm_eval", reason="needs lm-eval (the extra `interop`)")

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "evaluate_lm_eval.py"

CHOICE = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Review: {{{{sentence}}}} Sentiment:"
doc_to_choice: [" negative", " positive and long"]
doc_to_target: label
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
GENERATE = """
task: tiny_generate
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "Review: {{{{sentence}}}} Sentiment:"
doc_to_target: " negative"
generation_kwargs: {{until: ["e"], max_gen_toks: 12, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""
ROLLING = """
task: tiny_rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{sentence}}}}"
metric_list: [{{metric: word_perplexity}}]
"""
TASKS = {"tiny_choice": CHOICE, "tiny_generate": GENERATE, "tiny_rolling": ROLLING}
EXACT = {"head_bits": 32, "kv_dtype": "float32"}


@pytest.fixture
def packed(tmp_path, tiny_tokenizer):
    """A packed student whose two loaders differ by float32 rounding alone."""
    pack(make_student(vocab_size=384, max_position_embeddings=256), table_bits=32).save_pretrained(tmp_path / "packed")
    tiny_tokenizer.save_pretrained(tmp_path / "packed")
    return tmp_path / "packed"


@pytest.fixture
def tasks(tmp_path):
    """A folder of tasks, for `--include_path`."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    words = ("dull", "fine", "very slow and long", "warm and funny")
    rows = [
        {"sentence": f"a {word} film number {number} .", "label": number % 2} for number in range(3) for word in words
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(text.format(data=folder / "rows.jsonl"))
    return folder


def evaluate(model, packed, tasks, **arguments):
    from lm_eval.tasks import TaskManager

    return lm_eval.simple_evaluate(
        model=model,
        model_args={"pretrained": str(packed), **arguments},
        tasks=list(TASKS),
        batch_size=5,
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
        verbosity="ERROR",
    )


@pytest.mark.usefixtures("native_decoder")
def test_both_loaders_score_alike(packed, tasks):
    from optimum.bitnet.harness import BitNetLM

    assert BitNetLM.__name__ == "BitNetLM"  # (importing it registers it)
    stock = evaluate("hf", packed, tasks, device="cpu", dtype="float32")
    native = evaluate("bitnet", packed, tasks, **EXACT)
    assert native["config"]["model_num_parameters"] == stock["config"]["model_num_parameters"]
    deviations = []
    for task in TASKS:
        assert len(native["samples"][task]) == 12
        for mine, theirs in zip(native["samples"][task], stock["samples"][task], strict=True):
            assert mine["arguments"] == theirs["arguments"]
            if task == "tiny_generate":
                assert mine["resps"] == theirs["resps"] and "e" not in mine["resps"][0][0]
            elif task == "tiny_choice":
                for each, other in zip(mine["resps"], theirs["resps"], strict=True):
                    deviations.append(abs(float(each[0][0]) / float(other[0][0]) - 1))
    # (An activation on the border between two integers may be rounded either way.)
    assert len(deviations) == 24 and statistics.median(deviations) < 1e-5 and max(deviations) < 0.02
    for metric in ("acc,none", "acc_norm,none"):
        assert native["results"]["tiny_choice"][metric] == stock["results"]["tiny_choice"][metric]
    perplexities = [found["results"]["tiny_rolling"]["word_perplexity,none"] for found in (native, stock)]
    assert perplexities[0] == pytest.approx(perplexities[1], rel=1e-3)


def test_refused_arguments(packed):
    from optimum.bitnet.harness import BitNetLM

    with pytest.raises(ValueError, match="parallelize, gguf_file is for --model hf"):
        BitNetLM(str(packed), parallelize=True, gguf_file="a.gguf")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a process that replaces itself")
@pytest.mark.usefixtures("native_decoder")
def test_the_example_which_never_imports_us(packed, tasks, tmp_path, monkeypatch):
    """By `bitdistill exec`, which really replaces a process."""
    for name in [name for name in os.environ if name.startswith("PYTHON")]:
        monkeypatch.delenv(name)
    assert len(EXAMPLE.read_text().splitlines()) <= 60 and "import hf_bitdistill" not in EXAMPLE.read_text()
    command = ["exec", "--", "python", str(EXAMPLE), str(packed), "tiny_choice", "--tasks_folder", str(tasks)]
    with open(tmp_path / "out", "wb") as out, open(tmp_path / "err", "wb") as err:
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            os._exit(main(command))
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, (tmp_path / "err").read_text()
    scores = [line.split() for line in (tmp_path / "out").read_text().splitlines() if " tiny_choice " in line]
    assert [line[:3] for line in scores] == [
        [model, "tiny_choice", metric] for model in ("hf", "bitnet") for metric in ("acc", "acc_norm")
    ]
    assert scores[0][3] == scores[2][3] and scores[1][3] == scores[3][3]
