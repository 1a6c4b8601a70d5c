"""A packed student in the files of other programs."""

from .errors import UnsupportedExportError
from .gguf import export_gguf
from .i2_s import export_i2_s
from .result import ExportedFile


__all__ = ["ExportedFile", "UnsupportedExportError", "export_gguf", "export_i2_s"]
