"""A student in the formats of other programs: one module a format."""

from .errors import UnsupportedExportError
from .transformers_checkpoint import export_transformers


__all__ = ["UnsupportedExportError", "export_transformers"]
