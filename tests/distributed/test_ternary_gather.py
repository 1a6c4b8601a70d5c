"""Students under FSDP2 whose weights are gathered as codes, in several processes. The checks are in `ternary_gather_run.py`."""

import json

import pytest
import torch
from launching import run_script, run_warm


CHECKS = (
    "codes_are_those_of_one_process",
    "weights_are_quantised_as_they_are",
    "any_shape_is_spread",
    "less_is_gathered",
    "codes_are_not_kept",
    "training_is_that_of_one_process",
    "training_on_spread_rows_is_that_of_one_process",
    "first_step_in_bfloat16",
    "full_precision_is_full_precision",
    "states_are_ordinary",
    "accelerate_shards_it",
    "what_cannot_be_is_left_out",
)
# Processes, and whether students are deeper and trained in every mode.
LAUNCHES = (
    pytest.param((2, False), id="2 processes"),
    pytest.param((2, True), id="2 processes, all modes", marks=pytest.mark.slow),
    pytest.param((4, True), id="4 processes, all modes", marks=pytest.mark.slow),
)

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("needs torch.distributed with gloo", allow_module_level=True)


@pytest.fixture(scope="module", params=LAUNCHES)
def run(request, tmp_path_factory):
    """What the processes printed, and what came of every check in each; one launch."""
    folder = tmp_path_factory.mktemp("ternary_gather")
    processes, deep = request.param
    if deep:
        done = run_script("ternary_gather_run.py", processes, str(folder), "deep", timeout=900.0)
        output = done.stdout + done.stderr
    else:
        output = run_warm("ternary_gather_run.py", processes, str(folder))
    results = [json.loads((folder / f"results-{rank}.json").read_text()) for rank in range(processes)]
    return output, results


@pytest.mark.parametrize("check", CHECKS)
def test_processes(check, run):
    for rank, results in enumerate(run[1]):
        assert results[check] == "passed", f"process {rank}: {results[check]}"


def test_no_check_is_left_out(run):
    assert all(set(results) == set(CHECKS) for results in run[1])


def test_what_is_gathered_whole_is_said_once(run):
    said = run[0]
    for message in (
        "their effective weights are gathered too",
        "Learned scales need the signs of latent weights",
        "A student in full precision needs its latent weights",
        "2 ternary layers ('0' first) have a weight that is split already or belongs to two modules",
        "Ternary weights whose columns are in shards are gathered whole",
    ):
        assert said.count(message) == 1, message
