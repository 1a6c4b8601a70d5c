"""What a student is in llama.cpp's terms: an architecture, and where each tensor goes.

| architecture | students | rows of Q and K |
|---|---|---|
| `bitnet` | Llama's layers with SubLNs before the output projections (`sub_norm="output"`), SiLU, tied embeddings, no biases | as here |
| `llama` | Llama's or Mistral's layers without SubLNs (`sub_norm="none"`) | interleaved: that graph rotates neighbours, transformers the halves of a head |
| `qwen2`, `qwen3` | their layers without SubLNs | as here |

What no architecture computes is refused. Two things that `bitnet` does not have are put into factors that it does have, the optional float32 `scale` of a
matrix:

**One epsilon for all norms.** A SubLN with another one gets an input that is `f = sqrt(eps / eps of the SubLN)` times as large, by the matrix that the
input depends on linearly (V for attention, `up` for the feed-forward): `f x / sqrt(mean((f x)^2) + eps)` is `x / sqrt(mean(x^2) + eps / f^2)`.

**A norm before every `down`.** A projection that is kept in full precision (a massive activation) has no SubLN. The same factor, but as small as 2^-40, leaves nothing
of the mean square beside epsilon: the norm becomes a multiplication by `1 / sqrt(eps)`, and its weight takes both back. That of attention cannot
be removed so: V is kept as float16 in llama.cpp's cache, where such numbers are 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from transformers import PreTrainedModel

from ..architectures import GgufGraph, find_architecture
from ..gguf_format import tensor_names as names
from ..nn import BitLinear, TernaryLinear
from ..runtime.families import DecoderSpec, Layer, Norm, Projection, UnsupportedModelError, describe
from .errors import UnsupportedExportError


_SILU = ("silu", "swish")
_NO_NORM = 2.0**-40
INSTEAD = (
    "Use it with hf_bitdistill's own loaders, or train a student that GGUF can hold: sub_norm='none' for Llama, Mistral, Qwen2 and Qwen3; "
    "sub_norm='output' for models with Llama's layers and tied embeddings."
)


@dataclass(frozen=True)
class FileTensor:
    """A tensor of the file.

    Attributes:
        name: in the file.
        shape: rows first.
        kind: `"norm"`, `"bias"` (vectors of the checkpoint), `"table"`, `"projection"`, or `"constant"`.
        source: of a norm, a bias or a table the name of the tensor in the checkpoint, of a projection that of the module.
        values: of a constant.
        heads: rows are interleaved within each of that many heads; 0: as they are.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    source: str = ""
    values: tuple[float, ...] = ()
    heads: int = 0


@dataclass(frozen=True)
class FileModel:
    """A student as llama.cpp computes it.

    Attributes:
        graph: what its file names.
        spec: what it consists of here.
        context: tokens it may read.
        tensors: in the order of the file.
        rope_base: of the rotary embedding. rope_factor: by which all its frequencies are divided.
        notes: what is computed in another way, for people.
    """

    graph: GgufGraph
    spec: DecoderSpec
    context: int
    tensors: tuple[FileTensor, ...]
    rope_base: float
    rope_factor: float
    notes: list[str] = field(default_factory=list)


def file_model(model: PreTrainedModel) -> FileModel:
    """The student in llama.cpp's terms.

    Args:
        model: a causal LM with ternary layers, on any device, "meta" included.

    Raises:
        UnsupportedExportError: llama.cpp has no architecture that computes it; its message names what is in the way.
    """
    try:
        spec = describe(model)
    except UnsupportedModelError as error:
        raise UnsupportedExportError(
            f"llama.cpp's architectures for students do not have: {error}. {INSTEAD}"
        ) from None
    return _Builder(model, spec).build()


class _Builder:
    def __init__(self, model: PreTrainedModel, spec: DecoderSpec):
        self.model, self.spec, self.config = model, spec, model.config
        self.notes: list[str] = []
        self.eps = spec.final_norm.eps
        self.modules = dict(model.named_modules())

    def build(self) -> FileModel:
        graph = self._graph()
        base, factor, rope_tensor = self._rope(graph)
        tensors = (*self._around(), *rope_tensor, *self._layers(graph))
        return FileModel(graph, self.spec, self._context(), tensors, base, factor, self.notes)

    def _graph(self) -> GgufGraph:
        spec, kind = self.spec, self.config.model_type
        record = find_architecture(kind)
        if spec.head is None:
            raise UnsupportedExportError(f"a classifier; only language models are exported. {INSTEAD}")
        projections = [p for layer in spec.layers for p in layer.projections]
        sub_norms = [p.module for p in projections if self._sub_norm_eps(p) is not None]
        graph = record.gguf_with_sub_norms if sub_norms else record.gguf
        if graph is None or any(layer.mixture for layer in spec.layers):
            raise UnsupportedExportError(f"students of {kind!r} are not exported to GGUF. {INSTEAD}")
        if self.config.hidden_act not in _SILU:
            raise UnsupportedExportError(
                f"the activation {self.config.hidden_act!r}; llama.cpp computes SiLU in these architectures. {INSTEAD}"
            )
        if sub_norms:
            self._check_sub_norms(graph, sub_norms)
        self._check_biases(graph)
        if graph.wide_heads and spec.heads * spec.head_dim != spec.hidden_size:
            raise UnsupportedExportError(
                f"heads that are not as wide as the model, which {graph.name!r} cannot have. {INSTEAD}"
            )
        return graph

    def _check_sub_norms(self, graph: GgufGraph, sub_norms: list[str]) -> None:
        """Whether a graph with SubLNs computes this student with SubLNs."""
        spec = self.spec
        outputs = {p.module for layer in spec.layers for p in (layer.o, layer.mlps[0].down)}
        elsewhere = [name for name in sub_norms if name not in outputs]
        if elsewhere:
            raise UnsupportedExportError(
                f"a SubLN before {elsewhere[0]} (sub_norm='all'); {graph.name!r} has them before output projections only. {INSTEAD}"
            )
        if any(layer.q_norm or layer.k_norm for layer in spec.layers):
            raise UnsupportedExportError(
                f"norms of queries and keys beside SubLNs, which {graph.name!r} does not have. {INSTEAD}"
            )
        if spec.head != spec.embedding:
            raise UnsupportedExportError(
                f"an output head of its own beside SubLNs; {graph.name!r} uses the embedding. {INSTEAD}"
            )
        for layer in spec.layers:
            if self._sub_norm_eps(layer.o) is None:
                raise UnsupportedExportError(
                    f"no SubLN before {layer.o.module} while others have one; {graph.name!r} has one in every attention. Use it with hf_bitdistill's "
                    "own loaders, or train a student in which that projection is ternary and has its SubLN: not kept in full precision "
                    "(modules_to_not_convert; bitdistill run --keep_massive_ratio 0 keeps none), and not in modules_without_sub_norm; or "
                    "one with sub_norm='none', which may keep it."
                )

    def _check_biases(self, graph: GgufGraph) -> None:
        for layer in self.spec.layers:
            mlp = layer.mlps[0]
            groups = {"qkv": layer.qkv, "o": (layer.o,), "mlp": (*mlp.gate_up, mlp.down)}
            unread = [p.module for part, group in groups.items() if part not in graph.biases for p in group]
            for name in unread:
                if self.modules[name].bias is not None:
                    raise UnsupportedExportError(f"a bias of {name}, which {graph.name!r} does not read. {INSTEAD}")

    def _sub_norm_eps(self, projection: Projection) -> float | None:
        module = self.modules[projection.module]
        norm = module.rms_norm if isinstance(module, (BitLinear, TernaryLinear)) else None
        return None if norm is None else norm.eps

    def _context(self) -> int:
        windows = [layer.window for layer in self.spec.layers if layer.window]
        if not windows or min(windows) >= self.spec.max_positions:
            return self.spec.max_positions
        # Nothing is out of the window as long as the text is no longer than it.
        self.notes.append(
            f"context length {min(windows)}, that of the sliding window, which llama.cpp does not have in this architecture"
        )
        return min(windows)

    def _rope(self, graph: GgufGraph) -> tuple[float, float, tuple[FileTensor, ...]]:
        """Base and common factor of the frequencies, and factors for each frequency as a tensor."""
        spec = self.spec
        if len(spec.ropes) != 1 or any(layer.rope != 0 for layer in spec.layers):
            raise UnsupportedExportError(f"layers whose rotary embeddings differ. {INSTEAD}")
        rope = spec.ropes[0]
        parameters = self.config.rope_parameters
        base = float(parameters["rope_theta"])
        width = 2 * rope.inv_freq.numel()
        plain = 1.0 / base ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
        factors = plain / rope.inv_freq.double()
        if abs(rope.attention_scaling - 1) > 1e-6:
            raise UnsupportedExportError(
                f"the rotary embedding {parameters.get('rope_type')!r} with scaled attention. {INSTEAD}"
            )
        common = float(factors.mean())
        if torch.allclose(factors, torch.full_like(factors, common), rtol=1e-5):
            return base, 1.0 if abs(common - 1) < 1e-5 else common, ()
        if not graph.frequency_factors:
            raise UnsupportedExportError(
                f"the rotary embedding {parameters.get('rope_type')!r}, whose factors {graph.name!r} does not read. {INSTEAD}"
            )
        values = tuple(factors.tolist())
        return base, 1.0, (FileTensor(names.FREQUENCIES, (len(values),), "constant", values=values),)

    def _around(self) -> Iterator[FileTensor]:
        spec = self.spec
        table = (spec.vocab_size, spec.hidden_size)
        yield FileTensor(f"{names.EMBEDDING}.weight", table, "table", spec.embedding)
        yield self._norm(names.OUTPUT_NORM, spec.final_norm)
        if spec.head is not None and spec.head != spec.embedding:
            yield FileTensor(f"{names.HEAD}.weight", table, "table", spec.head)

    def _layers(self, graph: GgufGraph) -> Iterator[FileTensor]:
        for index, layer in enumerate(self.spec.layers):
            yield from self._layer(partial(names.in_layer, index), layer, graph)

    def _layer(self, name: Callable[[str], str], layer: Layer, graph: GgufGraph) -> Iterator[FileTensor]:
        spec, mlp = self.spec, layer.mlps[0]
        yield self._norm(name(names.ATTENTION_NORM), layer.input_norm)
        parts = zip((names.Q, names.K, names.V), layer.qkv, (spec.heads, spec.kv_heads, 0), strict=True)
        for part, projection, heads in parts:
            yield from self._projection(name(part), projection, heads if graph.pairs_rotated else 0)
        for part, norm in ((names.Q_NORM, layer.q_norm), (names.K_NORM, layer.k_norm)):
            if norm is not None:
                yield self._norm(name(part), norm)
        yield from self._projection(name(names.O), layer.o)
        yield self._norm(name(names.MLP_NORM), layer.pre_feedforward_norm)
        for part, projection in zip((names.GATE, names.UP), mlp.gate_up, strict=True):
            yield from self._projection(name(part), projection)
        yield from self._projection(name(names.DOWN), mlp.down)
        if graph.sub_norm == "output":
            yield from self._sub_norm(name(names.ATTENTION_SUB_NORM), layer.o, name(names.V))
            yield from self._sub_norm(name(names.MLP_SUB_NORM), mlp.down, name(names.UP))

    def _sub_norm(self, name: str, projection: Projection, before: str) -> Iterator[FileTensor]:
        """The norm before an output projection, and the factor of the matrix before it."""
        eps = self._sub_norm_eps(projection)
        width = self.modules[projection.module].in_features
        if eps is None:
            factor = _NO_NORM
            yield FileTensor(f"{name}.weight", (width,), "constant", values=(math.sqrt(self.eps) / factor,) * width)
            self.notes.append(f"{name}: made to do nothing, because {projection.module} has no SubLN")
        else:
            factor = math.sqrt(self.eps / eps)
            yield FileTensor(f"{name}.weight", (width,), "norm", f"{projection.module}.rms_norm.weight")
        if abs(factor - 1) > 1e-6:
            yield FileTensor(f"{before}.scale", (1,), "constant", values=(factor,))

    def _projection(self, name: str, projection: Projection, heads: int = 0) -> Iterator[FileTensor]:
        module = self.modules[projection.module]
        shape = (module.out_features, module.in_features)
        yield FileTensor(f"{name}.weight", shape, "projection", projection.module, heads=heads)
        if module.bias is not None:
            yield FileTensor(f"{name}.bias", shape[:1], "bias", f"{projection.module}.bias", heads=heads)

    def _norm(self, name: str, norm: Norm | None) -> FileTensor:
        if norm is None or norm.offset or abs(norm.eps - self.eps) > 1e-12:
            raise UnsupportedExportError(f"norms that are not Llama's ({name}). {INSTEAD}")
        width = self.spec.head_dim if name.endswith((names.Q_NORM, names.K_NORM)) else self.spec.hidden_size
        return FileTensor(f"{name}.weight", (width,), "norm", norm.tensor)
