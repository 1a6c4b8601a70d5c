"""What is known of each architecture: one record a `model_type`, read by surgery, the native decoder, and GGUF export and import."""

from .record import INPUT, OUTPUT, Architecture, GgufGraph, NativeDecoder
from .registry import ARCHITECTURES, GGUF_GRAPHS, NATIVE, find_architecture


__all__ = [
    "ARCHITECTURES",
    "GGUF_GRAPHS",
    "INPUT",
    "NATIVE",
    "OUTPUT",
    "Architecture",
    "GgufGraph",
    "NativeDecoder",
    "find_architecture",
]
