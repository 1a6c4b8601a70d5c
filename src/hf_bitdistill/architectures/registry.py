"""All records, by what they are looked for."""

from __future__ import annotations

from . import before_llama, gemma, llama, mixtures
from .record import Architecture, GgufGraph


_RECORDS = (*llama.RECORDS, *gemma.RECORDS, *mixtures.RECORDS, *before_llama.RECORDS)

ARCHITECTURES: dict[str, Architecture] = {record.model_type: record for record in _RECORDS}

# What the native decoder computes.
NATIVE: tuple[str, ...] = tuple(name for name, record in ARCHITECTURES.items() if record.decoder is not None)

GGUF_GRAPHS: dict[str, GgufGraph] = {
    graph.name: graph
    for record in _RECORDS
    for graph in (record.gguf, record.gguf_with_sub_norms)
    if graph is not None
}


def find_architecture(model_type: str) -> Architecture:
    """The record of a model type. Of one without a record nothing is known, so only its own tensor-parallel plan can say where its
    projections are."""
    return ARCHITECTURES.get(model_type) or Architecture(model_type)
