"""Metrics, task evaluation and perplexity.

Names are imported on first use: ``evaluate``, which the metrics are built on, takes seconds to import.
"""

from typing import TYPE_CHECKING

from ..modules.lazy import attach as _attach


if TYPE_CHECKING:
    from .evaluator import evaluate_task
    from .likelihood import perplexity
    from .metrics import Accuracy, Rouge, get_metric
    from .sharing import share_rows

__getattr__, __dir__ = _attach(
    __name__,
    {
        "Accuracy": "metrics",
        "Rouge": "metrics",
        "evaluate_task": "evaluator",
        "get_metric": "metrics",
        "perplexity": "likelihood",
        "share_rows": "sharing",
    },
)

__all__ = ["Accuracy", "Rouge", "evaluate_task", "get_metric", "perplexity", "share_rows"]
