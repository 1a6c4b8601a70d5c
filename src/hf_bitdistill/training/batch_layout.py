"""Whether a model keeps packed documents apart, and whether padding on the left changes what it computes.

Nothing in a model says so: it depends on its masks, its attention function and its recurrent layers. So it is tried, once, on a few tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .._compat import attention_implementation, uncompiled
from ..data.batch_checks import ModelLimits, check_batch
from ..data.batches import DOCUMENTS, PreparedBatch, prepare_batch
from ..nn import full_precision
from ..nn.carried_adapters import without_adapters
from .losses.attention_states import architecture_name
from .teacher.teacher_model import PACKING_INPUTS, model_inputs


Layout = Literal["packed", "left"]

# Tokens of a document of the trial: more than a convolution of a recurrent layer spans.
_LENGTH = 12
_PADDING = 5


def batch_layouts(batch: Mapping[str, Any]) -> list[Layout]:
    """What is out of the ordinary in a prepared batch."""
    documents = batch.get(DOCUMENTS)
    if documents is None:
        return []
    mask = batch.get("attention_mask")
    # A packed batch has no 2-D mask any more; one of four dimensions is the caller's own, and says what sees what.
    if mask is None:
        return ["packed"]
    return ["left"] if mask.ndim == 2 else []


@torch.no_grad()
def check_layout(model: nn.Module, layout: Layout, batch: Mapping[str, Any], name: str, half: bool = False) -> None:
    """Refuse a model whose documents are not independent of each other (packed) or of padding on the left.

    Args:
        model: unwrapped and whole, on any device.
        layout: see [`batch_layouts`].
        batch: the batch it will read; tells what else it will be given (`seq_idx`, `cu_seq_lens_q`), and how many rows.
        name: of the model, for the error.
        half: it computes in 16 bits.

    Raises:
        ValueError: names the architecture and what to do.
    """
    config = without_adapters(uncompiled(model)).config.get_text_config()
    implementation = attention_implementation(config) or ""
    rows = batch[DOCUMENTS].shape[0]
    if layout == "packed" and "flash" in implementation and rows > 1:
        raise ValueError(
            f"the {name}'s {implementation} reads document borders only in a batch of one row, and this one has {rows}: flatten it "
            "(DataCollatorWithFlattening)"
        )
    device = batch[DOCUMENTS].device
    training = model.training
    model.eval()
    try:
        # Rounded activations would make of a last bit a whole step, and a compiled model would be compiled for these few tokens.
        with full_precision(model), torch.compiler.set_stance("force_eager"):
            first, second = (_packed_pair if layout == "packed" else _padded_pair)(model, batch, config, device)
    finally:
        model.train(training)
    half = half or next(model.parameters()).dtype.itemsize == 2 or torch.is_autocast_enabled(device.type)
    difference = (first - second).abs().max() / first.std().clamp_min(torch.finfo(torch.float32).tiny)
    if difference > (2e-2 if half else 1e-4):
        if layout == "packed":
            raise ValueError(
                f"the {name}, {architecture_name(model)} with {implementation} attention, does not keep the documents of a packed batch "
                "apart (one changes the logits of the next): put one document into a row, padded on the right"
            )
        raise ValueError(
            f"the {name}, {architecture_name(model)}, computes something else when padding stands on the left: pad on the right "
            "(tokenizer.padding_side = 'right')"
        )


class BatchReader:
    """Prepares and checks the batches that models read outside of a training: see [`prepare_batch`], [`check_batch`], [`check_layout`].

    Args:
        models: unwrapped, on one device, by their name for errors.
    """

    def __init__(self, models: Mapping[str, nn.Module]):
        self.models = dict(models)
        self._limits = ModelLimits.of(self.models)
        self._tried: set[Layout] = set()

    def __call__(self, batch: Mapping[str, Any], device: torch.device) -> PreparedBatch:
        """The batch on `device`.

        Raises:
            ValueError: it does not fit the models.
        """
        prepared = prepare_batch(batch)
        # Before it is moved: an accelerator would have to be waited for.
        check_batch(prepared, self._limits)
        prepared = PreparedBatch(
            {key: value.to(device) if isinstance(value, Tensor) else value for key, value in prepared.items()}
        )
        for layout in batch_layouts(prepared):
            if layout not in self._tried:
                self._tried.add(layout)
                for name, model in self.models.items():
                    check_layout(model, layout, prepared, name)
        return prepared


def _ids(length: int, config: Any, device: torch.device, shift: int = 0) -> Tensor:
    """`[1, length]`: neighbours differ, and so do ids of different shifts."""
    ids = (torch.arange(length, device=device) * 7 + 3 + shift) % config.vocab_size
    # Classifiers read their classes from the last token that is not padding.
    return ids.where(ids != (config.pad_token_id or 0), 1)[None]


def _logits(model: nn.Module, batch: PreparedBatch) -> Tensor:
    outputs = model(**model_inputs(model, batch, None))
    return (outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]).float()


def _packed_pair(model: nn.Module, batch: Mapping[str, Any], config: Any, device: torch.device):
    """Logits of a document after one and after another."""
    ids = _ids(2 * _LENGTH, config, device)
    other = torch.cat([_ids(_LENGTH, config, device, shift=config.vocab_size // 2 + 1), ids[:, _LENGTH:]], 1)
    position = torch.arange(_LENGTH, device=device)
    lengths = torch.tensor([0, _LENGTH, 2 * _LENGTH], dtype=torch.int32, device=device)
    borders = {
        "seq_idx": torch.arange(2, dtype=torch.int32, device=device).repeat_interleave(_LENGTH)[None],
        "cu_seq_lens_q": lengths,
        "cu_seq_lens_k": lengths,
        "max_length_q": _LENGTH,
        "max_length_k": _LENGTH,
    }
    given = {key: borders[key] for key in PACKING_INPUTS if batch.get(key) is not None}
    pair = []
    for row in (ids, other):
        prepared = prepare_batch({"input_ids": row, "position_ids": torch.cat([position, position])[None], **given})
        pair.append(_logits(model, prepared)[:, -_LENGTH:])
    return pair


def _padded_pair(model: nn.Module, batch: Mapping[str, Any], config: Any, device: torch.device):
    """Logits of a document alone and behind padding."""
    ids = _ids(_LENGTH, config, device)
    both = torch.cat([_ids(_PADDING + _LENGTH, config, device, shift=1)] * 2)
    both[0, _PADDING:] = ids[0]
    mask = torch.ones_like(both)
    mask[0, :_PADDING] = 0
    padded = _logits(model, prepare_batch({"input_ids": both, "attention_mask": mask}))
    return _logits(model, PreparedBatch(input_ids=ids, attention_mask=torch.ones_like(ids))), padded[:1, -_LENGTH:]
