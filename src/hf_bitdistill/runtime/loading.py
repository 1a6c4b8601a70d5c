"""From a checkpoint's files to a [`NativeDecoder`], one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..ops.huge_pages import HugePagePool
from .families import Norm, Projection, UnsupportedModelError, describe
from .matrices import HEAD_BITS, Table, finite, load_table
from .native_decoder import KvDtype, LoadedProjection, NativeDecoder, Weights, check_options, load_library
from .students import Student


class StudentWeights:
    """Parts of a decoder from a checkpoint.

    Args:
        student: the checkpoint.
        head_bits: see [`load_table`].
        head: name of the output head, if there is one, and the norm in front of it: see [`load_table`].
    """

    def __init__(self, student: Student, head_bits: int = 16, head: tuple[str, Norm] | None = None):
        self._student, self._head_bits, self._head = student, head_bits, head
        self._tables: dict[str, Table] = {}
        self._pool = HugePagePool()

    def norm(self, norm: Norm) -> Tensor:
        """Its weight, float32, offset added."""
        # A copy: what the file gives is a view into it.
        return self._vector(norm.tensor).add(norm.offset).contiguous()

    def _own(self, module: str, name: str, value: Tensor) -> Tensor:
        return finite(value.detach().float().clone(), self._student.files, f"{module}.{name}")

    def _vector(self, name: str) -> Tensor:
        files = self._student.files
        return finite(files.read(name), files, name).float()

    def projection(self, projection: Projection) -> LoadedProjection:
        """A ternary layer, packed for the kernels, or one in full precision, its weight as stored."""
        weight, eps = None, 0.0
        if projection.norm is not None:
            weight, eps = self.norm(projection.norm), projection.norm.eps
        files, name = self._student.files, projection.module
        if not projection.ternary:
            table = load_table(files, f"{name}.weight", None)
            bias = self._vector(f"{name}.bias").clone() if f"{name}.bias" in files.headers else None
            return LoadedProjection(self._pool.take(table.data), bias, weight, eps, table.kind)
        layer = self._student.layer(name)
        if layer.rms_norm is not None:
            weight, eps = self._own(name, "rms_norm.weight", layer.rms_norm.weight), layer.rms_norm.eps
        bias = None if layer.bias is None else self._own(name, "bias", layer.bias)
        return LoadedProjection(self._pool.take(layer.kernel_weight()), bias, weight, eps)

    def table(self, name: str) -> Table:
        """Embedding or head, loaded once."""
        if name not in self._tables:
            head, norm = self._head or (None, None)
            norm_weight = self.norm(norm) if norm is not None and name == head else None
            stored = self._student.stored_form(name)
            self._tables[name] = load_table(self._student.files, name, self._head_bits, stored, norm_weight)
        return self._tables[name]


def load_decoder(
    student: Student,
    head_bits: int = 16,
    kv_dtype: KvDtype = "float16",
    num_threads: int | None = None,
    watch: Callable[[Weights], Weights] = lambda weights: weights,
) -> NativeDecoder:
    """The native decoder of a checkpoint.

    Args:
        student: the checkpoint.
        head_bits: how the embedding and the output head are kept, see [`load_table`].
        kv_dtype: how keys and values are kept; int8: a scale a head and position.
        num_threads: threads of a call; default: those of torch.
        watch: is given the source of the weights, and gives the one that is asked for them.

    Raises:
        UnsupportedModelError: the native decoder cannot compute this model.
        CheckpointError: the content of a tensor is damaged; names tensor and file.
        ValueError: an option has no meaning.
    """
    if head_bits not in HEAD_BITS:
        raise ValueError(f"head_bits={head_bits!r} is not supported; choose one of {HEAD_BITS}.")
    check_options(kv_dtype, num_threads)
    try:
        spec = describe(student.model)
    except UnsupportedModelError:
        raise
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:
        # An option of a type that no such model has; transformers may not even read it.
        raise UnsupportedModelError(f"an option in its config ({type(error).__name__}: {error})") from error
    load_library()  # before anything is read
    try:
        head = None if spec.head is None else (spec.head, spec.final_norm)
        return NativeDecoder(spec, watch(StudentWeights(student, head_bits, head)), kv_dtype, num_threads)
    finally:
        student.files.close()


__all__ = ["StudentWeights", "UnsupportedModelError", "load_decoder"]
