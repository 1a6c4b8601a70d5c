"""Tokens a second of the models of a run."""

from __future__ import annotations

from pathlib import Path

import torch

from ..evaluation.speed import System, measure
from .train import fast_bf16


def tokens_per_second(model: str | Path, packed: bool) -> tuple[float | None, str]:
    """Of writing, on this CPU, with this process's threads: a packed student in the native decoder, any other model in transformers, in
    the dtype that is faster here.

    Returns:
        The rate (`None` where it could not be measured), and a note, where something is to be said.
    """
    try:
        found = measure(
            System(
                "native" if packed else "transformers",
                str(model),
                prompt_tokens=32,
                new_tokens=32,
                threads=torch.get_num_threads(),
                dtype="bfloat16" if fast_bf16() else "float32",
            )
        )
    except ValueError as error:
        return None, str(error)
    if not packed:
        note = f"Speed: writing {found.new_tokens} tokens after {found.prompt_tokens}; full precision in {found.backend}, ternary students in the native decoder, {found.threads} thread{'' if found.threads == 1 else 's'}."
    elif found.backend != "native":
        note = f"Packed students were timed in {found.backend}: the native decoder cannot be used here, or does not know this architecture."
    else:
        note = ""
    return found.decode_tokens_per_second, note
