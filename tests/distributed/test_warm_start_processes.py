"""A warm start in several processes is that of one."""

import json
import socket
from pathlib import Path

import pytest
import torch
from launching import run_script
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from warm_start_run import CASES, run

from hf_bitdistill.cli.main import main


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_it_is_that_of_one_process(tmp_path, tiny_llama_config, tiny_tokenizer, processes, capsys):
    torch.manual_seed(0)
    model, corpus = tmp_path / "model", tmp_path / "corpus.txt"
    LlamaForCausalLM(tiny_llama_config).save_pretrained(model)
    tiny_tokenizer.save_pretrained(model)
    corpus.write_text("".join(f"The robot waters plant number {i} near the window.\n" for i in range(60)))
    shared = tmp_path / "shared"
    shared.mkdir()
    output = run_script("warm_start_run.py", processes, str(shared), str(model), str(corpus))
    results = [torch.load(shared / f"{rank}.pt") for rank in range(processes)]

    for name in CASES:
        expected = run(name)
        for result in results:
            found = result[name]
            assert found["counts"] == expected["counts"]
            torch.testing.assert_close(found["measured"], expected["measured"], rtol=1e-5, atol=1e-7)
            torch.testing.assert_close(found["weights"], expected["weights"], rtol=0, atol=1e-5)
            # Bit for bit one student, whoever saves it.
            assert all(torch.equal(results[0][name]["weights"][key], value) for key, value in found["weights"].items())

    first = next(iter(CASES))
    for result in results:
        again = result["interrupted"]
        assert all(torch.equal(value, again["weights"][key]) for key, value in result[first]["weights"].items())
        assert again["said"] == ["warm start: passes 6 batches through 1 finished layers again"]
        options, teacher, row = result["refused"]
        assert (
            options.startswith("ProcessesError: the configuration of the warm start differs: {")
            and socket.gethostname() in options
        )
        assert teacher.startswith("ProcessesError: the state of the teacher differs: ")
        assert "token 1000000" in row or "1000000" in row
        assert result["local disks"].startswith(
            "ProcessesError: how far the checkpoint warm_start.pt of the warm start is differs: 'step 6' in process 0"
        )
    kept = [Path(path.name).name for path in (shared / "kept").iterdir()]
    assert kept == ["warm_start.pt"]  # and no file of hidden states
    assert [result["refused"][2].startswith("ValueError") for result in results] == [False] * (processes - 1) + [True]

    # The command: once on the screen, once on the disk, the same model.
    assert output.stdout.count('"status": 0') == processes
    for line in ("kept in full precision: none", "calibrated ", "layers 0 to 1: error"):
        assert output.stdout.count(line) == 1
    assert output.stderr.count("warm start of layers 0 to 1:   0%") == 1
    assert "Loading weights" not in output.stderr  # (commands show no bars of loading)
    capsys.readouterr()
    arguments = ["--model_name_or_path", model, "--corpus", corpus, "--sample_by", "line", "--block_size", 16]
    arguments += ["--warm_start_tokens", 300, "--steps_per_window", 2, "--rank", 4, "--batch_size", 3]
    assert main(["warm-start", *map(str, arguments), "--output_dir", str(tmp_path / "alone")]) == 0
    one, many = (json.loads((f / "warm_start.json").read_text()) for f in (tmp_path / "alone", shared / "command"))
    assert one["calibration_tokens"] == many["calibration_tokens"] == 304
    assert many["windows"][0]["error_after"] == pytest.approx(one["windows"][0]["error_after"], rel=1e-3)
    student = AutoModelForCausalLM.from_pretrained(shared / "command")
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "alone")
    torch.testing.assert_close(student.state_dict(), other.state_dict(), rtol=0, atol=1e-3)
