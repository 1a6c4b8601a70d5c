"""Speed, memory and size of models on this machine, each measured in a process of its own."""

from .speed_report import format_table, save_plot
from .systems import Measurement, System, measure


__all__ = ["Measurement", "System", "format_table", "measure", "save_plot"]
