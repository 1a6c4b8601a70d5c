"""Which tokens of a batch belong to one document: packed sequences and left padding, told to the models.

A batch of transformers may hold several documents a row (`DataCollatorWithFlattening`), told by `position_ids` that restart, by
`seq_idx` or by `cu_seq_lens_q`; or rows that are padded on the left. Everything that computes with pairs of tokens (attention, relations,
a label that the token before it predicts) has to know the borders.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


DOCUMENTS = "document_ids"
"""Key of a batch that is packed or padded on the left: int64 `[B, T]`, the number of each token's document, -1 for padding."""


class PreparedBatch(dict):
    """A batch that [`prepare_batch`] has seen. (A type and not a flag: it survives being moved to a device.)"""


def prepare_batch(batch: Mapping[str, Any]) -> PreparedBatch:
    """Make the borders of documents visible to models.

    - Packed: `position_ids` restart with every document and there is no 2-D attention mask, because with one transformers does not look
      at the positions; `DOCUMENTS` is added.
    - Padded on the left: real tokens are numbered from 0, as they are on the right (models count padding as positions); `DOCUMENTS`
      is added.
    - Anything else is handed on as it is.

    Args:
        batch: `input_ids` `[B, T]` (or `inputs_embeds` `[B, T, H]`), optionally `attention_mask`, `position_ids` (`[B, T]`, `[1, T]`, or
            `[4, B, T]` whose first row are the positions in the text), `seq_idx` `[B, T]`, `cu_seq_lens_q` `[documents + 1]`.

    Raises:
        ValueError: two of the inputs tell different borders, or the batch is packed and padded at once.
    """
    if isinstance(batch, PreparedBatch):
        return batch
    prepared = PreparedBatch(batch)
    tokens = batch.get("input_ids") if batch.get("input_ids") is not None else batch.get("inputs_embeds")
    if not isinstance(tokens, Tensor) or tokens.ndim < 2 or not tokens.shape[0] * tokens.shape[1]:
        return prepared
    shape, device = tokens.shape[:2], tokens.device
    mask = batch.get("attention_mask")
    # A mask may be wider than the tokens (a prefix), and is then not one of these tokens.
    flat_mask = isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape == shape
    real = (
        mask.bool() if isinstance(mask, Tensor) and flat_mask else torch.ones(shape, dtype=torch.bool, device=device)
    )
    told = _told_starts(batch, shape)
    is_left = flat_mask and not bool(real[:, 0].all())
    if not told and not is_left:
        return prepared

    # The first token of a row starts a document, and so does one that a start was told of; padding has none.
    first = real & (real.cumsum(1) == 1)
    both = real[:, 1:] & real[:, :-1]
    starts = {name: first | torch.cat([first[:, :1], value[:, 1:] & both], 1) for name, value in told.items()}
    names = list(starts)
    for name in names[1:]:
        different = (starts[name] != starts[names[0]]).nonzero()
        if len(different):
            row, token = different[0].tolist()
            raise ValueError(
                f"{names[0]} and {name} tell different document borders (row {row}, token {token} of the batch): give only one of "
                "them, or make them agree"
            )
    start = starts[names[0]] if names else first
    inner = start & ~first
    is_packed = bool(inner.any())
    if not is_packed and not is_left:
        return prepared
    documents = (start.flatten().cumsum(0) - 1).reshape(shape).masked_fill(~real, -1)
    prepared[DOCUMENTS] = documents
    if is_packed and flat_mask:
        if not bool(real.all()):
            row, token = inner.nonzero()[0].tolist()
            raise ValueError(
                f"the batch is packed (a document starts at token {token} of row {row}) and has an attention_mask with padding, with "
                "which the models do not look at the documents' borders: pack without padding (DataCollatorWithFlattening), or pad "
                "one document a row"
            )
        del prepared["attention_mask"]
    if prepared.get("position_ids") is None:
        column = torch.arange(shape[1], device=device).expand(shape)
        prepared["position_ids"] = (
            column - torch.where(start, column, 0).cummax(1).values
            if is_packed
            else (real.long().cumsum(1) - 1).clamp(min=0)
        )
    return prepared


def text_positions(batch: Mapping[str, Any], rows: int) -> Tensor | None:
    """The positions in the text, `[B, T]`, as transformers' masks read them; `None` where there are none."""
    positions = batch.get("position_ids")
    if not isinstance(positions, Tensor):
        return None
    if positions.ndim == 3:
        # Rotary positions in space and time have three rows; a fourth one before them are those in the text.
        positions = positions[0] if positions.shape[0] == 4 else None
    elif positions.ndim == 1:
        positions = positions[None]
    return None if positions is None else positions.expand(rows, -1)


def _told_starts(batch: Mapping[str, Any], shape: torch.Size) -> dict[str, Tensor]:
    """Where documents start, `[B, T]` bool, by the input that says so."""
    told = {}
    positions = text_positions(batch, shape[0])
    if positions is not None and positions.shape == shape:
        told["position_ids"] = positions.diff(dim=1, prepend=positions[:, :1]) != 1
    index = batch.get("seq_idx")
    if isinstance(index, Tensor) and index.shape == shape:
        told["seq_idx"] = index.diff(dim=1, prepend=index[:, :1]) != 0
    lengths = batch.get("cu_seq_lens_q")
    if isinstance(lengths, Tensor):
        total = shape[0] * shape[1]
        if lengths.ndim != 1 or len(lengths) < 2 or lengths[0] != 0 or lengths[-1] != total:
            raise ValueError(
                f"cu_seq_lens_q must go from 0 to the {total} tokens of the batch, it is {lengths.flatten().tolist()[:8]}"
            )
        start = torch.zeros(total, dtype=torch.bool, device=lengths.device)
        # The last entry, and repeats of it, are the end and not a start.
        start[lengths[lengths < total].long()] = True
        told["cu_seq_lens_q"] = start.reshape(shape)
    return told
