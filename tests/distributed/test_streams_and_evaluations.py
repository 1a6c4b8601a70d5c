"""Rows in several processes: evaluations have one process's numbers, and streams are read once, each part where it is trained on."""

from collections import Counter
from pathlib import Path

import pytest
import rows_run
import torch
from launching import run_script

from hf_bitdistill.data.streams import Position, Readers


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[2, 4])
def found(request, tmp_path_factory):
    """What each process found, and the folder."""
    folder = tmp_path_factory.mktemp(f"rows{request.param}")
    result = run_script("rows_run.py", request.param, str(folder))
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)], folder, result.stderr


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return rows_run.evaluate(tmp_path_factory.mktemp("alone"))


def test_evaluations_have_the_numbers_of_one_process(found, alone):
    for process in found[0]:
        assert process["metrics"].keys() == alone.keys()
        for name, metrics in alone.items():
            assert metrics.keys() == process["metrics"][name].keys(), name
            for key, value in metrics.items():
                assert process["metrics"][name][key] == pytest.approx(value, rel=1e-6), (name, key)
    assert alone["7 rows"]["eval_loss_attention"] > 0
    assert alone["7 rows"]["eval_rows"] == 7
    assert alone["streamed"] == alone["7 rows"] and alone["named"]["eval_b_rows"] == 5


def blocks_of(process, name):
    return [tuple(block) for batch in process[name]["batches"] for block in batch]


def test_each_process_reads_its_own_part_of_a_stream(found):
    processes, _, stderr = found
    readers = Readers(len(processes))
    opened = [set(process["whole"]["files"]) for process in processes]
    assert sum(map(len, opened)) == len(set().union(*opened)) == rows_run.FILES
    everything = Counter(tuple(row["input_ids"]) for row in rows_run.corpus())
    part_of_all = Counter()
    for rank, process in enumerate(processes):
        blocks, part = blocks_of(process, "whole"), []
        for row in rows_run.stream().rows(Position(rank), readers):
            if row["stream_position"].passes == 2:
                break
            part.append((row["stream_position"].passes, tuple(row["input_ids"])))
        # It was read in the order of the stream, from its first pass into the second, or further.
        count = sum(passes == 0 for passes, _ in part)
        assert len(blocks) > count
        assert blocks[: len(part)] == [block for _, block in part][: len(blocks)]
        part_of_all.update(blocks[:count])
    assert part_of_all == everything
    # With one shard each reads all and keeps every n-th block; that is said once.
    kept = [blocks_of(process, "one shard")[:3] for process in processes]
    assert [block for turn in zip(*kept, strict=True) for block in turn] == [
        tuple(row["input_ids"]) for row in rows_run.corpus(1, 40).take(3 * len(processes))
    ]
    assert stderr.count("The stream has 1 shard(s) for") == 1
    plain = [set(process["plain"]["files"]) for process in processes]
    assert sum(map(len, plain)) == len(set().union(*plain))


def test_going_on_is_exact(found):
    for process in found[0]:
        whole, again = process["whole"], process["again"]
        assert all(torch.equal(again["weights"][name], value) for name, value in whole["weights"].items())
        assert again["losses"][-2:] == whole["losses"][-2:] and len(again["batches"]) == 2 + 1  # one was fetched ahead
        assert again["batches"] == whole["batches"][18:]


def test_one_shard_is_trained_on_as_in_one_process(found, tmp_path):
    batch = rows_run.BATCH * len(found[0])
    # Of one process: the same blocks in each step, in batches of all.
    alone = rows_run.train(tmp_path, rows_run.corpus(1, 40), 3, batch=batch, **rows_run.ONE_SHARD)
    for process in found[0]:
        assert process["one shard"]["losses"] == pytest.approx(alone["losses"], rel=1e-5)


def test_another_number_of_processes_is_said(found, tmp_path, caplog):
    checkpoint: Path = found[1] / "run/checkpoint-9"
    rows_run.train(tmp_path, rows_run.stream(), 10, checkpoint)
    warnings = [record.message for record in caplog.records if "stream" in record.message]
    assert len(warnings) == 1
    assert f"dealt out otherwise now (processes {len(found[0])}, now 1)" in warnings[0]
