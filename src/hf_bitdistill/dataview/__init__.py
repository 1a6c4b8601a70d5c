"""What a model will see of a dataset: `bitdistill data`."""

from .look import DataView, Sample, SplitView, look_at
from .page import write_page
from .text import as_text


__all__ = ["DataView", "Sample", "SplitView", "as_text", "look_at", "write_page"]
