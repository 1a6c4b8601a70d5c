"""A student in the formats of other programs: one module a format."""

from .errors import UnsupportedExportError
from .exported_file import ExportedFile
from .gguf_export import export_gguf
from .i2_s_export import export_i2_s
from .transformers_checkpoint import export_transformers


__all__ = ["ExportedFile", "UnsupportedExportError", "export_gguf", "export_i2_s", "export_transformers"]
