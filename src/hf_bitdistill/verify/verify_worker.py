"""A process of its own that loads a model as a user would, and prints what it says of the prompts as JSON: see `verify.py`.

python -m hf_bitdistill.verify.verify_worker LOADER FOLDER REFERENCE
"""

from __future__ import annotations

import json
import sys
from typing import Any

from .loaders import LOADERS, logits_of
from .reference import answers_beside, read_reference


def _answers(loader: str, folder: str, reference: str) -> dict[str, Any]:
    model, backend = LOADERS[loader](folder)
    return {"backend": backend, "answers": answers_beside(logits_of(model), read_reference(reference))}


def main(folder: str, reference: str) -> None:
    """Print a line for each loader: what it answers, or why it does not."""
    for loader in LOADERS:
        try:
            values = _answers(loader, folder, reference)
        except Exception as error:  # whatever it is, it is what a user would see
            values = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
        print(json.dumps({"loader": loader, **values}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
