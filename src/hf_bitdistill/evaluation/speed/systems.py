"""Starts a process for each system (see `speed_worker.py`) and collects what it measured."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Literal


@dataclass(frozen=True)
class System:
    """What to measure.

    Args:
        kind: `"native"`: a ternary model on the native decoder; `"transformers"`: any model as `AutoModelForCausalLM`;
            `"llama.cpp"`: a GGUF file.
        model: folder, Hub id or file.
        prompt_tokens, new_tokens: length of the prompt and of the continuation.
        repeats: measurements of which the best counts (other processes only ever make one slower).
        threads: CPU threads; `None`: the system's default.
        head_bits, kv_bits: of the native decoder.
        dtype: of the weights with transformers.
    """

    kind: Literal["native", "transformers", "llama.cpp"]
    model: str
    prompt_tokens: int = 128
    new_tokens: int = 32
    repeats: int = 3
    threads: int | None = None
    head_bits: int = 16
    kv_bits: int = 16
    dtype: str = "auto"


@dataclass(frozen=True)
class Measurement:
    """What was measured. Seconds, bytes, tokens a second.

    Attributes:
        backend: what computed, e.g. `"native"`; `"transformers"` where the native decoder fell back.
        file_bytes: of the weight files.
        base_rss_bytes: resident memory of the process before the model was loaded.
        peak_rss_bytes: largest resident memory of the process.
        time_to_first_token: from the prompt's tokens to the first new one.
    """

    kind: str
    model: str
    backend: str
    prompt_tokens: int
    new_tokens: int
    threads: int
    load_seconds: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    time_to_first_token: float
    file_bytes: int
    base_rss_bytes: int
    peak_rss_bytes: int


def measure(system: System) -> Measurement:
    """Measure one system in a new process.

    Raises:
        ValueError: the process failed; says why.
    """
    command = [sys.executable, "-m", "hf_bitdistill.evaluation.speed.speed_worker", json.dumps(asdict(system))]
    process = subprocess.run(command, capture_output=True, text=True)
    lines = process.stdout.strip().splitlines()
    if process.returncode != 0 or not lines:
        reason = (process.stderr.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
        raise ValueError(f"the benchmark of {system.model} ({system.kind}) failed: {reason}")
    return Measurement(**json.loads(lines[-1]))
