"""A packed student in the files of other programs."""

from .errors import UnsupportedExportError
from .gguf import export_gguf
from .result import ExportedFile


__all__ = ["ExportedFile", "UnsupportedExportError", "export_gguf"]
