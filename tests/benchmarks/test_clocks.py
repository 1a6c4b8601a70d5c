"""Clocks of the benchmarks, and the training that one of them times."""

import argparse

import bench_training
import pytest
import torch
from clocks import StepClock, TokenClock

from architectures import tiny_model


def test_a_clock_of_tokens(monkeypatch):
    times = iter([0.0, 1.0, 1.5, 2.5])
    monkeypatch.setattr("clocks.time.perf_counter", lambda: next(times))
    clock = TokenClock()
    for count in (7, 1, 3, 2):  # the prompt, the token that its pass gave, and what came afterwards
        clock.put(torch.zeros(count))
    clock.end()
    assert (clock.seconds, clock.tokens, clock.seconds_a_token) == (1.5, 5, pytest.approx(0.3))


def test_a_clock_of_steps(monkeypatch):
    times = iter([0.0, 5.0, 6.0, 8.0])
    monkeypatch.setattr("clocks.time.perf_counter", lambda: next(times))
    clock = StepClock()
    for _ in range(4):
        clock.on_step_end(None, None, None)
    assert clock.seconds_a_step(1) == [5.0, 1.0, 2.0]
    assert clock.seconds_a_step(2) == [1.0, 2.0]


@pytest.mark.parametrize("setting", ["float32", "bfloat16"])
def test_bench_training(tmp_path, setting):
    tiny_model("llama").save_pretrained(tmp_path)
    args = argparse.Namespace(
        model=str(tmp_path), threads=torch.get_num_threads(), warmup=1, steps=2, batch_size=2, block_size=16
    )
    found = bench_training.measure(args, bench_training.accumulated(setting))
    assert len(found["step_seconds"]) == 2 and found["tokens_per_second"] > 0
