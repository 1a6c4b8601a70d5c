"""A process of its own that loads a model by one loader, as a user would, and prints as JSON what it says of the prompts: see `verify.py`.

python -m hf_bitdistill.verify.verify_worker LOADER FOLDER [REFERENCE]
"""

from __future__ import annotations

import json
import sys
from typing import Any

from ..evaluation.batching import check_finite, evaluating
from .loaders import LOADERS
from .reference import answers_beside, conditions, logits_of_model, prompts, read_reference


def _answers(loader: str, folder: str, reference: str | None) -> dict[str, Any]:
    """What computes the model, under which conditions, and what it answers beside a reference; without one only that it does.

    Raises:
        FloatingPointError: a logit is not finite. (And whatever loading raises.)
    """
    model, backend = LOADERS[loader](folder)
    found = {"backend": backend, "conditions": conditions(model, backend)}
    logits_of = logits_of_model(model)
    with evaluating(model):
        if reference is not None:
            return {**found, "answers": answers_beside(logits_of, read_reference(reference).answers)}
        for ids in prompts(model.config.get_text_config().vocab_size, None):
            check_finite(logits_of(ids), "logits")
    return found


def main(loader: str, folder: str, reference: str | None = None) -> None:
    """Print what a loader's model answers, or why it does not."""
    try:
        values = _answers(loader, folder, reference)
    except Exception as error:  # whatever it is, it is what a user would see
        values = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    print(json.dumps({"loader": loader, **values}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
