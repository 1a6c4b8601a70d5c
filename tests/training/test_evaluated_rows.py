"""How evaluated rows are dealt out. (What comes of it in several processes: `tests/distributed/test_streams_and_evaluations.py`.)"""

from types import SimpleNamespace

import pytest
from torch.utils.data import BatchSampler, SequentialSampler

from hf_bitdistill.training import evaluated_rows
from hf_bitdistill.training.evaluated_rows import EvaluatedRowsTrainer, WholeTurns


@pytest.fixture
def told(monkeypatch):
    messages = []
    monkeypatch.setattr(evaluated_rows, "logger", SimpleNamespace(warning_once=messages.append))
    return messages


def take_turns(turns):
    trainer = SimpleNamespace(accelerator=SimpleNamespace(num_processes=2), is_world_process_zero=lambda: True)
    return EvaluatedRowsTrainer._take_turns(trainer, SimpleNamespace(batch_sampler=turns))


def shards(rows, process, **options):
    batches = BatchSampler(SequentialSampler(range(rows)), 2, drop_last=False)
    known = {"batch_sampler": batches, "split_batches": False, "drop_last": False, "even_batches": True}
    return SimpleNamespace(**{**known, "num_processes": 2, "process_index": process, **options})


def test_the_last_turn_repeats_a_batch_where_there_is_none(told):
    for process, repeats in ((0, False), (1, True)):
        turns = shards(5, process)  # three batches for two processes
        assert take_turns(turns) == (True, repeats)
        assert isinstance(turns.batch_sampler, WholeTurns) and len(turns.batch_sampler) == 4
    assert take_turns(shards(4, 1)) == (True, False)
    assert not told


def test_what_is_dealt_out_otherwise_is_said(told):
    assert take_turns(None) == (False, False)  # dispatched by the first process
    assert take_turns(shards(5, 1, split_batches=True)) == (False, False)
    assert len(told) == 2 and all("Leave dispatch_batches and split_batches out" in message for message in told)
    # Rows that a user drops, and batches that accelerate leaves as they are, are no repeated ones.
    assert take_turns(shards(5, 1, drop_last=True)) == take_turns(shards(5, 1, even_batches=False)) == (False, False)
    assert len(told) == 2
