"""The native decoder: a whole student in the C++ library, from a checkpoint's files to logits."""

from .decoder import KV_BITS, ContextLengthError, LowRank, NativeCache, NativeDecoder, kv_dtype_of
from .families import DecoderSpec, UnsupportedModelError, describe
from .loading import StudentWeights, load_decoder
from .students import NotAStudentError, Student
from .tables import HEAD_BITS


__all__ = [
    "HEAD_BITS",
    "KV_BITS",
    "ContextLengthError",
    "DecoderSpec",
    "LowRank",
    "NativeCache",
    "NativeDecoder",
    "NotAStudentError",
    "Student",
    "StudentWeights",
    "UnsupportedModelError",
    "describe",
    "kv_dtype_of",
    "load_decoder",
]
