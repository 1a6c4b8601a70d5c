"""A student in the formats of other programs: one module a format."""

from .errors import UnsupportedExportError
from .gguf import export_gguf
from .i2_s import export_i2_s
from .result import ExportedFile
from .transformers_checkpoint import export_transformers


__all__ = ["ExportedFile", "UnsupportedExportError", "export_gguf", "export_i2_s", "export_transformers"]
