"""Metrics, task evaluation and perplexity.

Names are imported on first use: ``evaluate``, which the metrics are built on, takes seconds to import.
"""

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .evaluator import evaluate_task
    from .likelihood import perplexity
    from .metrics import Accuracy, Rouge, get_metric
    from .sharing import share_rows

_WHERE = {
    "Accuracy": "metrics",
    "Rouge": "metrics",
    "evaluate_task": "evaluator",
    "get_metric": "metrics",
    "perplexity": "likelihood",
    "share_rows": "sharing",
}

__all__ = ["Accuracy", "Rouge", "evaluate_task", "get_metric", "perplexity", "share_rows"]


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_WHERE[name]}", __name__), name)
