"""Other programs' ternary checkpoints as packed students of this library."""

from .gguf_import import GgufImport, import_gguf
from .transformers_formats import import_transformers


__all__ = ["GgufImport", "import_gguf", "import_transformers"]
