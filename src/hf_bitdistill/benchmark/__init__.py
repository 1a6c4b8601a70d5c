"""Speed, memory and size of models on this machine, each measured in a process of its own."""

from .measure import Measurement, System, measure
from .report import format_table, save_plot


__all__ = ["Measurement", "System", "format_table", "measure", "save_plot"]
