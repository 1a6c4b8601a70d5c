"""What the quickstart measures besides accuracy: sizes on disk, speed, and the machine it runs on."""

from __future__ import annotations

import datetime
import importlib.metadata
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from .. import ops
from ..environment import processor_name
from ..weight_files import find_weight_files, size_of_weights
from .settings import available_cores


_PROMPT_TOKENS, _NEW_TOKENS = 256, 64
_PACKAGES = ("hf-bitdistill", "torch", "transformers", "datasets", "accelerate", "numpy", "tokenizers")


@dataclass(frozen=True)
class Speed:
    """Tokens a second of one model: medians of repeated measurements, batch of one sequence."""

    reading: float
    writing: float


def weights_bytes(folder: Path) -> int:
    """Bytes of the weights in a folder."""
    return size_of_weights(folder)


def projection_bytes(folder: Path) -> int:
    """The part of [`weights_bytes`] that the projections take: weights and scales, without norms and embeddings."""
    total = 0
    for file in find_weight_files(folder):
        with safe_open(file, framework="pt") as reader:
            for name in reader.keys():  # noqa: SIM118 (no mapping)
                if "_proj.weight" in name:
                    tensor = reader.get_tensor(name)
                    total += tensor.numel() * tensor.element_size()
    return total


def _median_rate(run: Callable[[], int], seconds: float) -> float:
    """Median of tokens a second over repetitions, at least three after one that warms up."""
    run()
    rates: list[float] = []
    started = time.perf_counter()
    while len(rates) < 3 or time.perf_counter() - started < seconds:
        before = time.perf_counter()
        tokens = run()
        rates.append(tokens / (time.perf_counter() - before))
    return statistics.median(rates)


def measure_speed(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, seconds: float = 3.0
) -> Speed:
    """Speed of reading a prompt of 256 tokens, and of writing 64 tokens after a short one, greedily.

    Args:
        model: in evaluation mode.
        text: repeated until the prompt is long enough.
        seconds: how long each of the two is repeated.
    """
    ids = tokenizer(text)["input_ids"]
    prompt = torch.tensor([(ids * math.ceil(_PROMPT_TOKENS / len(ids)))[:_PROMPT_TOKENS]])
    start = prompt[:, :16]
    # Without an end-of-text token, so that every model writes the same number of tokens.
    writing = GenerationConfig(
        do_sample=False, max_new_tokens=_NEW_TOKENS, eos_token_id=None, pad_token_id=tokenizer.pad_token_id
    )

    def read() -> int:
        model(input_ids=prompt, use_cache=False)
        return prompt.shape[1]

    def write() -> int:
        with _without_end_of_text(model):
            output = model.generate(input_ids=start, attention_mask=torch.ones_like(start), generation_config=writing)
        return output.shape[1] - start.shape[1]

    with torch.inference_mode():
        return Speed(_median_rate(read, seconds), _median_rate(write, seconds))


@contextmanager
def _without_end_of_text(model: PreTrainedModel) -> Iterator[None]:
    """`generate` fills what its configuration leaves out from the model's own: take the end-of-text token from there."""
    defaults = model.generation_config
    saved, defaults.eos_token_id = defaults.eos_token_id, None
    try:
        yield
    finally:
        defaults.eos_token_id = saved


def describe_machine(threads: int) -> dict[str, str]:
    """Processor, cores, system, versions and time, for the report."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed as a distribution"
    return {
        "Processor": processor_name(),
        "Cores": f"{available_cores()} usable, torch with {threads} threads",
        "Load average at the start": f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown",
        "System": f"{platform.system()} {platform.release()} ({platform.machine()})",
        "Python": platform.python_version(),
        "Packages": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "Packed layers": _kernels(),
        "Date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _kernels() -> str:
    """What packed layers compute with."""
    status = ops.status()
    return f"native kernels ({status['isa']})" if status["loaded"] else f"plain torch ({status['reason']})"
