"""Damaged checkpoints: none hangs or eats the memory, each is refused in a line that names what is wrong, or gives the very output of
the whole one. The exceptions are listed here, each with its reason."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest
from mutator import CONFIG, TOKENIZER, mutate, read_folder
from safetensors import safe_open

import warm


SECONDS, BYTES = 20, 1 << 30
WEIGHTS = ".safetensors"

# Options of the arithmetic: any value that their types allow is a model, and nothing in the files tells that it is another one.
ARITHMETIC = {
    *("rope_theta", "rope_parameters", "rope_scaling", "rope_type", "partial_rotary_factor"),
    *("rms_norm_eps", "layer_norm_epsilon", "sub_norm_eps"),
    *("hidden_act", "activation_function"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "n_head"),
    *(
        "sliding_window",
        "use_sliding_window",
        "max_window_layers",
        "layer_types",
        "is_decoder",
        "use_bidirectional_attention",
    ),
    *("num_experts_per_tok", "norm_topk_prob", "decoder_sparse_step", "mlp_only_layers"),
    *(
        "scale_attn_weights",
        "scale_attn_by_inverse_layer_idx",
        "reorder_and_upcast_attn",
        "no_rope_layers",
        "pretraining_tp",
    ),
    *("dtype", "torch_dtype", "activation_bits", "weight_granularity", "group_size", "head_bits", "model_type"),
    *("tie_word_embeddings",),
}

# Refusals that are not this library's own: which they are, and why they cannot be.
FOREIGN = [
    (
        lambda x: x["loader"] == "transformers" and x["target"] == CONFIG and x["stage"] in ("config", "quantizer"),
        "transformers reads config.json, and chooses a quantizer, before it asks one",
    ),
    (
        lambda x: x["loader"] == "transformers" and x["target"] == CONFIG and x["stage"] == "constructor",
        "transformers builds the model from the config without asking in between",
    ),
    (
        lambda x: (
            x["loader"] == "transformers" and x["target"] == CONFIG and "ignore_mismatched_sizes" in x["message"]
        ),
        "without its quantization_config a student is a full-precision model of the wrong shapes to transformers",
    ),
    (
        lambda x: x["loader"] == "transformers" and x["target"] == "generation_config.json",
        "transformers reads it after the model was loaded",
    ),
    (
        lambda x: (
            x["error"] in ("OSError", "FileNotFoundError")
            and ("no file named" in x["message"] or " has no " in x["message"])
        ),
        "a file that is not there: the error of transformers, and ours, names the file and the folder",
    ),
    (lambda x: x["loader"] == "tokenizer", "AutoTokenizer is transformers' alone; its errors often name no file"),
]


def _has_digests(folder: Path) -> bool:
    """Whether the weights say of themselves more than their format."""
    with safe_open(next(iter(sorted(folder.glob("*.safetensors")))), framework="pt") as reader:
        return bool(set(reader.metadata() or ()) - {"format"})


def problem(x: dict, digests: bool) -> str | None:
    """What is wrong with a line of the report; `None` if nothing."""
    if x["verdict"] == "hang" or x["seconds"] > SECONDS:
        return "hangs"
    if x["grown"] > BYTES:
        return f"takes {x['grown'] >> 20} MB"
    if x["verdict"] == "refused":
        if x["ours"] or x["message"].startswith("BitNetConfig"):
            names = (x["target"], "/mutant/", CONFIG, WEIGHTS, "BitNetConfig", "modules_", "projections")
            fine = "\n" not in x["message"] and any(name and name in x["message"] for name in (*names, x["key"]))
            return None if fine else "is refused in a message that names no file or has several lines"
        return None if any(known(x) for known, _ in FOREIGN) else "is refused by an error that is not ours"
    content = x["kind"] == "content" and x["changed"]
    if content and digests:
        return "is accepted although the file has digests"
    if x["verdict"] == "same" or content or x["target"] in TOKENIZER:
        return None  # a file without digests says nothing of its content; no tokenizer file has one
    return None if ARITHMETIC & {x["key"], *x["notes"]} else "is accepted and gives another output"


@pytest.mark.parametrize("mutants", [90, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(7200)])])
def test_mutants(mutants, bases, tmp_path):
    report, job = tmp_path / "report.jsonl", tmp_path / "job.json"
    runner = Path(__file__).with_name("runner.py")
    for first in range(0, mutants, 1000):
        seeds = [first, min(first + 1000, mutants)]
        folders = {name: str(folder) for name, folder in bases.items()}
        work = str(tmp_path / f"work{first}")
        job.write_text(json.dumps({"bases": folders, "seeds": seeds, "work": work, "report": str(report)}))
        done = warm.run([sys.executable, str(runner), str(job)], timeout=7200)
        assert done.returncode == 0, f"the process ended with {done.returncode}: {done.stderr[-3000:]}"
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    assert len({line["seed"] for line in lines}) == mutants
    digests = {name: _has_digests(folder) for name, folder in bases.items()}
    found = [(problem(line, digests[line["base"]]), line) for line in lines]
    bad = [f"{what}: {json.dumps(line)}" for what, line in found if what]
    assert not bad, f"{len(bad)} of {len(lines)}:\n" + "\n".join(bad[:20])
    # The fuzzer reaches both ends: damage that is refused by us, and damage that does not matter.
    verdicts = Counter((line["loader"], line["verdict"]) for line in lines)
    for loader in ("transformers", "optimum"):
        assert verdicts[loader, "refused"] > mutants / 4 and verdicts[loader, "same"] > mutants / 10, verdicts
    ours = sum(line["verdict"] == "refused" and line["ours"] for line in lines if line["loader"] == "optimum")
    assert ours > 0.7 * verdicts["optimum", "refused"], verdicts


@pytest.mark.parametrize("base", ["shards", "online"])
def test_mutants_can_be_made_again(bases, base):
    files = read_folder(bases[base])
    first, again = [[mutate(files, seed) for seed in range(60)] for _ in range(2)]
    assert first == again
    assert len({mutant.kind for mutant in first}) >= 7
    assert sum(mutant.files != files for mutant in first) > 50


def test_what_counts_as_a_problem():
    """The judge itself."""
    fine = {
        "loader": "optimum",
        "target": CONFIG,
        "kind": "config",
        "key": "pad_token_id",
        "notes": [],
        "changed": True,
    }
    fine |= {"verdict": "same", "seconds": 0.1, "grown": 0, "message": "", "ours": True, "error": "", "stage": "other"}
    assert problem(fine, True) is None
    assert problem({**fine, "verdict": "other"}, True)
    assert problem({**fine, "seconds": 21}, True) and problem({**fine, "verdict": "hang"}, True)
    assert problem({**fine, "grown": 2 << 30}, True)
    refused = {**fine, "verdict": "refused", "message": "config.json: no"}
    assert problem(refused, True) is None
    assert problem({**refused, "message": "no"}, True) and problem({**refused, "ours": False}, True)
    assert problem({**refused, "message": "config.json:\nno"}, True)
    content = {**fine, "kind": "content", "target": "model.safetensors", "verdict": "other"}
    assert problem(content, False) is None and problem(content, True)
