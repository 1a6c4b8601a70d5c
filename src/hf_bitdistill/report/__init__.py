"""Tables, figures and the HTML page of a training run: `bitdistill report`."""

from .run import write_report


__all__ = ["write_report"]
