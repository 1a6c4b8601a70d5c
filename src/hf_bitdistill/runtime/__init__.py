"""The native decoder: a whole student in the C++ library, from a checkpoint's files to logits."""

from .families import DecoderSpec, UnsupportedModelError, describe
from .loading import StudentWeights, load_decoder
from .matrices import HEAD_BITS
from .native_decoder import KV_BITS, ContextLengthError, LowRank, NativeCache, NativeDecoder, kv_dtype_of
from .native_reading import ReadyDecoder, open_native_file
from .native_writing import NativeSource, load_and_keep, make_native_file
from .students import NotAStudentError, Student


__all__ = [
    "HEAD_BITS",
    "KV_BITS",
    "ContextLengthError",
    "DecoderSpec",
    "LowRank",
    "NativeCache",
    "NativeDecoder",
    "NativeSource",
    "NotAStudentError",
    "ReadyDecoder",
    "Student",
    "StudentWeights",
    "UnsupportedModelError",
    "describe",
    "kv_dtype_of",
    "load_and_keep",
    "load_decoder",
    "make_native_file",
    "open_native_file",
]
