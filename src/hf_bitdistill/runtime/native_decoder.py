"""`NativeDecoder`: a whole decoder in the native library, over ragged batches of tokens."""

from __future__ import annotations

import copy
import ctypes
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from .. import ops
from ..ops import binding as ops_native
from ..ops import c_header as c
from . import c_structures
from .families import DecoderSpec, Layer, Mixture, Mlp, Norm, Projection, UnsupportedModelError
from .matrices import Table


CHUNK = 512
"""Tokens a call of the library: between calls Python sees a KeyboardInterrupt."""

KvDtype = Literal["float32", "float16", "int8"]
_KV_DTYPES = {"float32": c.FLOAT32, "float16": c.FLOAT16, "int8": c.SCALED_INT8}

KV_BITS: dict[int, KvDtype] = {32: "float32", 16: "float16", 8: "int8"}
"""How keys and values are kept, by their bits. With 8, every head of every position has a scale of its own."""


class ContextLengthError(ValueError):
    """A sequence would grow beyond the model's `max_position_embeddings`."""


@dataclass(frozen=True)
class LoadedProjection:
    """Weight (packed: 1-dimensional uint8; or floats `[R, C]`), float32 bias, float32 weight and epsilon of the norm in front.

    `kind` is that of the weight, as in [`Table`].
    """

    weight: Tensor
    bias: Tensor | None = None
    norm_weight: Tensor | None = None
    norm_eps: float = 0.0
    kind: int = c.TABLE_PACKED


@dataclass(frozen=True)
class LowRank:
    """What an adapter adds to a projection: `(a x) b`, where `x` is what the projection reads, behind all norms.

    Attributes:
        a: float32 `[rank, C]`.
        b: float32 `[rank, R]`, with the scaling in it.
    """

    a: Tensor
    b: Tensor


class Weights(Protocol):
    """Gives the parts that a [`DecoderSpec`] names, weights where they will stay: in large pages, if they are small."""

    def norm(self, norm: Norm) -> Tensor:
        """Its weight, float32, offset added."""

    def projection(self, projection: Projection) -> LoadedProjection:
        """A ternary layer, packed for the kernels, or one in full precision."""

    def table(self, name: str) -> Table:
        """Embedding or head. The same object for the same name."""


class NativeCache:
    """Keys and values of a number of sequences of one decoder."""

    def __init__(self, decoder: NativeDecoder, sequences: int):
        self._handle = c_structures.CacheHandle(decoder._handle, sequences)

    @property
    def sequences(self) -> int:
        return self._handle.sequences

    @property
    def lengths(self) -> list[int]:
        """Positions that each sequence has."""
        return self._handle.lengths

    @property
    def nbytes(self) -> int:
        """Memory in use, in bytes."""
        return self._handle.nbytes

    def truncate(self, sequence: int, length: int) -> None:
        """Keep the first `length` positions of a sequence."""
        self._handle.truncate(sequence, length)

    def reorder(self, source: Sequence[int]) -> None:
        """Afterwards there are `len(source)` sequences, and number i holds what number `source[i]` held."""
        self._handle.reorder(source)


def kv_dtype_of(kv_bits: int) -> KvDtype:
    """How keys and values of so many bits are kept.

    Raises:
        ValueError: `kv_bits` is not one of [`KV_BITS`].
    """
    if kv_bits not in KV_BITS:
        raise ValueError(f"kv_bits={kv_bits!r} is not supported; choose one of {tuple(KV_BITS)}.")
    return KV_BITS[kv_bits]


def check_options(kv_dtype: str, num_threads: int | None) -> None:
    """Refuse options of [`NativeDecoder`] that have no meaning.

    Raises:
        ValueError: naming the option.
    """
    if kv_dtype not in _KV_DTYPES:
        raise ValueError(f"kv_dtype={kv_dtype!r} is not supported; choose one of {tuple(_KV_DTYPES)}.")
    if num_threads is not None and num_threads < 1:
        raise ValueError(f"num_threads={num_threads} must be at least 1.")


class NativeDecoder:
    """A decoder in the native library. Immutable: any number of threads may use one, each with a cache of its own.

    Args:
        spec: what it consists of.
        weights: where its parts come from; asked once for each.
        kv_dtype: how keys and values are kept; int8: a scale a head and position.
        num_threads: threads of a call; default: those of torch.

    Raises:
        UnsupportedModelError: there is no native library, or it refuses the model.
        ValueError: `kv_dtype` or `num_threads` has no meaning.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        weights: Weights,
        kv_dtype: KvDtype = "float16",
        num_threads: int | None = None,
    ):
        check_options(kv_dtype, num_threads)
        self.spec = spec
        self.num_threads = num_threads
        self.kv_dtype = kv_dtype
        self._library = load_library()
        builder = _Builder(spec, weights)
        config = builder.config(_KV_DTYPES[kv_dtype])
        self._description = _Description(spec, config, builder.borrowed, builder.kept)
        self._handle = self._description.create(self._library, {})
        self.weight_bytes = sum(t.nbytes for t in builder.borrowed)
        # Embedding and head by the names of their tensors, those that are floats in memory.
        tables = {name: weights.table(name) for name in (spec.embedding, spec.head) if name is not None}
        self.float_tables = {n: table.data for n, table in tables.items() if table.data.is_floating_point()}
        # Those of the experts that a token is sent to; of the tables all, since most models read the embedding as their head.
        self.bytes_per_token = self.weight_bytes - round(builder.idle_bytes)

    def adapted(self, adapter: Mapping[str, LowRank]) -> NativeDecoder:
        """A decoder of the same weights, which are shared, not copied, that adds products of low rank to projections. Its caches are its
        own.

        Args:
            adapter: by the names of the projections' modules; none: the decoder without any.

        Raises:
            KeyError: a name is not that of a projection.
            ValueError: a tensor is no contiguous float32 matrix.
            UnsupportedModelError: the shapes do not fit.
        """
        other = copy.copy(self)
        other._handle = self._description.create(self._library, dict(adapter))
        return other

    def new_cache(self, sequences: int) -> NativeCache:
        """A cache of empty sequences."""
        return NativeCache(self, sequences)

    def forward(
        self,
        cache: NativeCache,
        tokens: Tensor,
        sequences: Tensor,
        output_index: Tensor,
        hidden: bool = False,
        greatest: bool = False,
    ) -> Tensor:
        """Append tokens to sequences.

        Args:
            tokens: token ids, int64 `[n]`.
            sequences: the sequence each is appended to, int64 `[n]`, not decreasing.
            output_index: the tokens (indices into `tokens`, increasing) whose outputs are wanted, int64 `[m]`.
            hidden: give hidden states (after the final norm) instead of logits.
            greatest: logits that are certainly less than the greatest one of their token may be -inf. With an 8-bit head that saves
                almost half of its bytes; the others are what they are without it, bit for bit.

        Returns:
            float32 `[m, vocab_size or hidden_size]`.

        Raises:
            ContextLengthError: a sequence would grow beyond `max_positions`; nothing was computed.
            IndexError: a token id is out of range; names it and its place; nothing was computed.
            FloatingPointError: an output is not a number; the sequences are as before.
        """
        width = self.spec.hidden_size if hidden else self.spec.vocab_size
        count = tokens.numel()
        if count == 0:
            return torch.empty((0, width), dtype=torch.float32)
        tokens, sequences, output_index = (t.to(torch.int64).contiguous() for t in (tokens, sequences, output_index))
        lengths = cache.lengths
        self._check_lengths(lengths, sequences)
        if not hidden and self.spec.head is None:
            raise ValueError("this decoder has no output head: ask for hidden states")
        if count > CHUNK:  # of one call the library looks at all tokens before it computes
            self._check_tokens(lengths, tokens, sequences)
        out = torch.empty((output_index.numel(), width), dtype=torch.float32)
        self._library.set_threads(self.num_threads or ops.num_threads())
        starts = list(range(0, count, CHUNK))
        bounds = torch.searchsorted(output_index, torch.tensor([*starts, count])).tolist()
        output = c.OUTPUT_GREATEST if greatest else c.OUTPUT_LOGITS
        output = c.OUTPUT_HIDDEN if hidden else output
        try:
            for number, start in enumerate(starts):
                size = min(CHUNK, count - start)
                first, last = bounds[number], bounds[number + 1]
                index = output_index[first:last] - start if start else output_index[first:last]
                status = self._handle.forward(
                    cache._handle,
                    (tokens.data_ptr() + 8 * start, size),
                    sequences.data_ptr() + 8 * start,
                    (index.data_ptr(), last - first),
                    output,
                    (out.data_ptr() + 4 * width * first, (last - first) * width),
                )
                if status != 0:
                    self._check_tokens(lengths, tokens, sequences)
                    self._library.check(status, "decoder_forward")
            self._check_numbers(out)
        except BaseException:  # KeyboardInterrupt above all: the sequences are as before
            for sequence, (before, after) in enumerate(zip(lengths, cache.lengths, strict=True)):
                if after > before:
                    cache.truncate(sequence, before)
            raise
        return out

    def _check_numbers(self, out: Tensor) -> None:
        """Refuse outputs that are no numbers: they would choose a token all the same. (One that is none makes all of its row so.)"""
        if len(out) == 1:  # a step of decoding: it is short
            not_a_number = math.isnan(out[0, 0].item())
        else:
            not_a_number = bool(out[:, 0].isnan().any())
        if not_a_number:
            raise FloatingPointError(
                f"an output is not a number: a key or a value may be too large for a cache in {self.kv_dtype} (kv_dtype='float32' holds larger "
                "ones), or the model's own numbers are too large."
            )

    def _check_lengths(self, lengths: list[int], sequences: Tensor) -> None:
        limit = self.spec.max_positions
        if max(lengths) + sequences.numel() <= limit:
            return
        for row, added in enumerate(torch.bincount(sequences, minlength=len(lengths)).tolist()):
            if lengths[row] + added > limit:
                raise ContextLengthError(
                    f"sequence {row} would have {lengths[row] + added} tokens, but the model has "
                    f"{limit} positions (max_position_embeddings): shorten the prompt or max_new_tokens."
                )

    def _check_tokens(self, lengths: list[int], tokens: Tensor, sequences: Tensor) -> None:
        low, high = (int(bound) for bound in torch.aminmax(tokens))
        if low >= 0 and high < self.spec.vocab_size:
            return
        index = int(((tokens < 0) | (tokens >= self.spec.vocab_size)).nonzero()[0])
        row = int(sequences[index])
        position = lengths[row] + int((sequences[:index] == row).sum())
        raise IndexError(
            f"token id {int(tokens[index])} (position {position} of sequence {row}) is not in the vocabulary of "
            f"{self.spec.vocab_size} tokens."
        )


def load_library() -> ops_native.NativeLibrary:
    """The native library.

    Raises:
        UnsupportedModelError: there is none.
    """
    library, reason = ops_native.load()
    if library is None:
        raise UnsupportedModelError(f"there is no native library ({reason})")
    return library


class _Description:
    """C structures of which a decoder can be made again, with an adapter.

    Args:
        borrowed, kept: of a [`_Builder`].
    """

    def __init__(self, spec: DecoderSpec, config: c.ConfigStruct, borrowed: list[Tensor], kept: list[object]):
        self._config, self._borrowed, self._kept = config, borrowed, kept
        self._projections = {
            name: struct
            for index, layer in enumerate(spec.layers)
            for name, struct in _projections_of(layer, config.layers[index])
        }
        self._lock = threading.Lock()

    def create(self, library: ops_native.NativeLibrary, adapter: Mapping[str, LowRank]) -> c_structures.DecoderHandle:
        structs = {name: (self._projections[name], _adapter_struct(name, part)) for name, part in adapter.items()}
        with self._lock:
            try:
                for projection, struct in structs.values():
                    projection.adapter = struct
                return c_structures.DecoderHandle(library, self._config, (self._borrowed, adapter))
            except ops_native.NativeLibraryError as error:
                raise UnsupportedModelError(f"the native library refuses the model ({error})") from None
            finally:
                for projection, _ in structs.values():
                    projection.adapter = c.AdapterStruct()


def _projections_of(layer: Layer, struct: c.LayerStruct) -> Iterator[tuple[str, c.ProjectionStruct]]:
    """Each projection's name, and its place in the structure."""
    yield layer.o.module, struct.o
    for index, projection in enumerate(layer.qkv):
        yield projection.module, struct.qkv[index]
    places = [struct] if layer.mixture is None else [struct.mixture.experts[e] for e in range(len(layer.mlps))]
    for mlp, place in zip(layer.mlps, places, strict=True):
        yield mlp.down.module, place.down
        for index, projection in enumerate(mlp.gate_up):
            yield projection.module, place.gate_up[index]


def _adapter_struct(name: str, adapter: LowRank) -> c.AdapterStruct:
    for factor in (adapter.a, adapter.b):
        if factor.dtype != torch.float32 or factor.ndim != 2 or not factor.is_contiguous():
            raise ValueError(f"the adapter of {name} is no pair of contiguous float32 matrices")
    a, b = adapter.a, adapter.b
    return c.AdapterStruct(a.data_ptr(), a.numel(), b.data_ptr(), b.numel(), a.shape[0])


class _Builder:
    """C structures of a decoder, and everything that must live as long as they are read (`kept`) or used (`borrowed`)."""

    def __init__(self, spec: DecoderSpec, weights: Weights):
        self.spec, self.weights = spec, weights
        self.borrowed: list[Tensor] = []
        self.idle_bytes = 0.0  # of weights that a token does not read, on average
        self.kept: list[object] = []

    def _address(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        if not tensor.is_contiguous():
            raise ValueError("a part of a decoder is not contiguous")
        self.kept.append(tensor)
        return tensor.data_ptr()

    def _norm_struct(self, weight: Tensor | None, eps: float) -> c.NormStruct:
        return c.NormStruct(self._address(weight), 0 if weight is None else weight.numel(), eps)

    def _norm(self, norm: Norm | None) -> c.NormStruct:
        return c.NormStruct() if norm is None else self._norm_struct(self.weights.norm(norm), norm.eps)

    def _projection(self, projection: Projection) -> c.ProjectionStruct:
        loaded = self.weights.projection(projection)
        weight = loaded.weight
        self.borrowed.append(weight)
        return c.ProjectionStruct(
            c.TableStruct(loaded.kind, weight.data_ptr(), weight.nbytes),
            self._address(loaded.bias),
            0 if loaded.bias is None else loaded.bias.numel(),
            self._norm_struct(loaded.norm_weight, loaded.norm_eps),
        )

    def _layer(self, layer: Layer) -> c.LayerStruct:
        struct = c.LayerStruct(
            input_norm=self._norm(layer.input_norm),
            post_attention_norm=self._norm(layer.post_attention_norm),
            pre_feedforward_norm=self._norm(layer.pre_feedforward_norm),
            post_feedforward_norm=self._norm(layer.post_feedforward_norm),
            q_norm=self._norm(layer.q_norm),
            k_norm=self._norm(layer.k_norm),
            qkv_count=len(layer.qkv),
            o=self._projection(layer.o),
            rope=layer.rope,
            window=layer.window,
        )
        for index, projection in enumerate(layer.qkv):
            struct.qkv[index] = self._projection(projection)
        if layer.mixture is not None:
            struct.mixture = self._mixture(layer.mixture, layer.mlps)
            return struct
        (mlp,) = layer.mlps
        struct.gate_up_count = len(mlp.gate_up)
        self._fill(struct, mlp)
        return struct

    def _fill(self, struct: c.LayerStruct | c.ExpertStruct, mlp: Mlp) -> None:
        for index, projection in enumerate(mlp.gate_up):
            struct.gate_up[index] = self._projection(projection)
        struct.down = self._projection(mlp.down)

    def _mixture(self, mixture: Mixture, mlps: tuple[Mlp, ...]) -> c.MixtureStruct:
        experts = (c.ExpertStruct * len(mlps))()
        others = len(self.borrowed)
        for expert, mlp in zip(experts, mlps, strict=True):
            self._fill(expert, mlp)
        expert_bytes = sum(tensor.nbytes for tensor in self.borrowed[others:])
        self.idle_bytes += expert_bytes * (1 - mixture.experts_per_token / len(mlps))
        self.kept.append(experts)
        return c.MixtureStruct(
            router=self._projection(mixture.router).weight,
            experts=experts,
            expert_count=len(mlps),
            experts_per_token=mixture.experts_per_token,
            gate_up_count=len(mlps[0].gate_up),
            normalise=mixture.normalise,
            intermediate_size=mixture.intermediate_size,
        )

    def _table(self, table: Table | None) -> c.TableStruct:
        if table is None:
            return c.TableStruct(c.TABLE_FLOAT32, None, 0)
        if not any(table.data is tensor for tensor in self.borrowed):
            self.borrowed.append(table.data)
        return c.TableStruct(table.kind, table.data.data_ptr(), table.data.nbytes)

    def config(self, kv_dtype: int) -> c.ConfigStruct:
        spec = self.spec
        # Tables first: packing one takes as much memory again for a moment.
        embedding = self.weights.table(spec.embedding)
        head = None if spec.head is None else self.weights.table(spec.head)
        tables = self._table(embedding), self._table(head)
        layers = (c.LayerStruct * len(spec.layers))(*(self._layer(layer) for layer in spec.layers))
        ropes = (c.RopeStruct * len(spec.ropes))(
            *(c.RopeStruct(self._address(r.inv_freq), r.inv_freq.numel(), r.attention_scaling) for r in spec.ropes)
        )
        self.kept += [layers, ropes]
        # transformers multiplies by the scale in the dtype of the embedding.
        scale = torch.tensor(spec.embedding_scale, dtype=embedding.dtype).item()
        return c.ConfigStruct(
            vocab_size=spec.vocab_size,
            hidden_size=spec.hidden_size,
            intermediate_size=spec.intermediate_size,
            head_dim=spec.head_dim,
            max_positions=spec.max_positions,
            heads=spec.heads,
            kv_heads=spec.kv_heads,
            layer_count=len(spec.layers),
            rope_count=len(spec.ropes),
            layers=ctypes.cast(layers, ctypes.POINTER(c.LayerStruct)),
            ropes=ctypes.cast(ropes, ctypes.POINTER(c.RopeStruct)),
            embedding=tables[0],
            head=tables[1],
            final_norm=self._norm(spec.final_norm),
            embedding_scale=scale,
            attention_scale=spec.attention_scale,
            attention_softcap=spec.attention_softcap,
            logit_softcap=spec.logit_softcap,
            activation=spec.activation,
            kv_dtype=kv_dtype,
        )
