"""What a model will see of a dataset: `bitdistill data`."""

from .look import DataView, Sample, SplitView, look_at
from .view_page import write_page
from .view_text import as_text


__all__ = ["DataView", "Sample", "SplitView", "as_text", "look_at", "write_page"]
