"""What several processes must have alike ends all of them where they have not; what they share gives one process's numbers."""

import json
import math
import socket

import pytest
from agreement_data import write_inputs
from launching import run_script

from hf_bitdistill.machine import agreement
from hf_bitdistill.machine.processes import ProcessesError


HOST = socket.gethostname()
FIRST, SECOND = (f"process {rank} on {HOST}" for rank in range(2))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What the two processes found, and their folder."""
    folder = tmp_path_factory.mktemp("agreement")
    write_inputs(folder)
    run_script("agreement_run.py", 2, str(folder))
    return folder, *(json.loads((folder / f"{rank}.json").read_text()) for rank in range(2))


@pytest.mark.slow
def test_what_differs_ends_all_of_them_with_one_message(both):
    _, first, second = both
    assert first["checks"] == second["checks"]
    found = first["checks"]
    assert found["alike"] == found["shared"] == "nothing: None" and found["left"] == []
    where = f"differ between {FIRST} and {SECOND}"
    same_command = "Start every process with the same command and the same configuration file."
    assert found["options"] == f"ProcessesError: the options {where} (rate: 0 and 1). {same_command}"
    assert f"the data {where} (rows of the rows: 9 and 10; first rows of the rows: " in found["rows"]
    assert f"the data {where} (first rows of the rows one: " in found["contents"]
    assert f"the models {where} (contents: " in found["model"] and f"the prompts {where}" in found["ids"]
    assert found["apart"] == (
        f"ProcessesError: out in {SECOND} is not the folder of {FIRST}: it is on a disk of its own. Share it."
    )


@pytest.mark.slow
def test_the_first_process_chooses_the_checkpoint_and_all_have_it(both):
    folder, first, second = both
    assert first["checkpoints"] == second["checkpoints"]
    found, run = first["checkpoints"], folder / "checkpoints" / "run"
    assert found["trained"] == "nothing: 2" and found["found"] == f"nothing: {run / 'checkpoint-2'}"
    remedy = "Give an output_dir that all machines share; or, to keep whole checkpoints on the disk of each machine, set save_on_each_node=True."
    assert found["apart"] == (
        f"ProcessesError: out in {SECOND} is not the folder of {FIRST}: it is on a disk of its own. {remedy}"
    )
    chosen, why = (
        "in process 0 the checkpoint to go on from is out/checkpoint-2",
        "they do not share the folder, or have copies",
    )
    assert found["of the first"].startswith(f"ProcessesError: {chosen}; in {SECOND} it is not there: {why}")
    assert found["of the first"].endswith(remedy)
    assert found["another"].startswith(
        f"ProcessesError: {chosen}; in {SECOND} model.safetensors is another file: {why}"
    )
    none = "in process 0 there is no checkpoint to go on from"
    assert found["of the second"].startswith(f"ProcessesError: {none}; in {SECOND} there is checkpoint-2: {why}")
    assert found["copies"] == "nothing: out/checkpoint-2" and found["each node"] == "nothing: 3"


@pytest.mark.slow
def test_a_training_with_other_options_data_or_teacher_does_not_begin(both):
    _, first, second = both
    found = first["checkpoints"]
    for name, text in {"options": "(learning_rate: 0.001 and 0.002)", "data": "(rows of the training data: 8 and 9", "teacher": "the teachers differ"}.items():  # fmt: skip
        assert found[name].startswith("ProcessesError") and text in found[name], found[name]
    assert found["begun"] == second["checkpoints"]["begun"] == []


@pytest.mark.slow
def test_shared_evaluations_give_the_numbers_of_one_process(both):
    _, first, second = both
    for found in (first["scores"], second["scores"]):
        assert found["same"] and math.isfinite(found["alone"]["nll_per_token"])
        assert f"the models differ between {FIRST} and {SECOND}" in found["another model"]
        assert found["in shards"]
        assert found["other text"].startswith("ProcessesError: the ")
    (mine, all_of_them), (other, _) = first["scores"]["forwards"], second["scores"]["forwards"]
    assert mine + other == all_of_them and 0 < other <= mine <= all_of_them / 2 + 12


@pytest.mark.slow
def test_a_shared_evaluation_of_the_native_decoder(both, native_decoder):
    _, first, second = both
    assert first["native"] and second["native"]


@pytest.mark.slow
def test_a_teachers_cache_is_written_once(both):
    _, first, second = both
    found = [first["cache"], second["cache"]]
    assert all(each["complete"] and each["positions"] == found[0]["positions"] > 0 for each in found)
    assert min(each["forwards"] for each in found) == 0 < max(each["forwards"] for each in found)


@pytest.mark.slow
def test_a_teachers_cache_is_shared(both):
    """Each process writes its own files of the cache of one process."""
    folder, first, second = both
    for result in (first["cache"], second["cache"]):
        again, forwards = result["shared"]
        assert again
        assert forwards == (4 if result is first["cache"] else 2)  # (of 11 examples, 4 a file, 2 a forward)
    one, shared = (
        {file.name: file.read_bytes() for file in (folder / name).iterdir()} for name in ("cache", "shared")
    )
    assert one.keys() == shared.keys() and len(one) == 4
    wrong, told = second["cache"]["bad"], first["cache"]["bad"]
    assert wrong.startswith("ValueError: ") and told.startswith(
        "ProcessesError: caching a teacher failed in process 1"
    )
    for result in (first["cache"], second["cache"]):
        assert "the caches that processes are to write differ between process 0" in result["other"]
        assert "examples: 8 and 9" in result["other"] and "the same data" in result["other"]
    status, printed, _ = first["commands"]["cache"]
    assert status == 0 and "positions of 11 examples" in printed
    assert second["commands"]["cache"] == [0, "", []]


@pytest.mark.slow
def test_a_command_of_one_process_is_done_once(both):
    folder, first, second = both
    status, printed, said = first["commands"]["pack"]
    assert status == 0 and "MB packed" in printed and (folder / "packed" / "model.safetensors").is_file()
    assert said == ["bitdistill pack: this command runs in one process: 1 other(s) had nothing to do"]
    assert second["commands"]["pack"] == [0, "", []]


@pytest.mark.slow
def test_evaluate_prints_once_and_writes_once(both):
    folder, first, second = both
    status, printed, _ = first["commands"]["evaluate"]
    result = json.loads(printed)
    assert status == 0 and result == json.loads((folder / "score.json").read_text()) and result["n"] == 11
    assert json.loads(first["commands"]["text"][1])["tokens"] > 100
    for name in ("evaluate", "text"):
        assert second["commands"][name] == [0, "", []]


@pytest.mark.slow
def test_an_error_of_all_is_printed_once(both):
    _, first, second = both
    for name, text in {"wrong": "nothing.yaml", "data": "the rows to measure on differs: "}.items():
        found = [first["commands"][name], second["commands"][name]]
        (said,) = [line for _, _, lines in found for line in lines]
        assert [status for status, _, _ in found] == [1, 1] and said.startswith("bitdistill evaluate: error: ")
        assert text in said and (name == "wrong" or "Give every machine the same data" in said)


def test_one_process_agrees_with_itself(tmp_path):
    agreement.check_alike([agreement.versions(), agreement.options({"a": 1})])
    agreement.check_shared(tmp_path / "not there", "")
    assert not (tmp_path / "not there").exists() and not agreement.is_in_shards(object())
    stream = iter([1])
    assert agreement.rows({"a stream": stream, "nothing": None}).values == {"columns of a stream": None}
    assert issubclass(ProcessesError, RuntimeError)
