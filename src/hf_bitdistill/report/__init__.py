"""Tables, figures and the HTML page of a training run: `bitdistill report`."""

from .run_report import write_report


__all__ = ["write_report"]
