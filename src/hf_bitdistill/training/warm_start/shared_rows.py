"""A warm start in several processes: each has its rows of every batch, and all take the same steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
import xxhash
from torch import Tensor, nn

from ...data.batches import prepare_batch
from ...machine import processes


# Values that are exchanged at once; as many bytes again are needed for it, four times.
_BUCKET = 1 << 22

_REMEDY = "Give all processes the same model, text and options, from the same versions of the packages."


def own_rows(batch: Mapping[str, Any], before: int) -> dict[str, Any] | None:
    """This process's rows of a batch; `None` where it has none of it.

    Args:
        batch: model inputs.
        before: rows in all earlier batches: a row too many goes to another process every time.
    """
    tokens = _tokens(batch)
    count = tokens.shape[0]
    if processes.world_size() == 1:
        return dict(batch)
    rows = [index - before for index in processes.share(before + count) if index >= before]
    if count > 1 and any(name in batch for name in ("cu_seq_lens_q", "cu_seq_lens_k")):
        # Borders of documents counted through all rows: the rows cannot be told apart here.
        rows = list(range(count)) if 0 in rows else []
    if not rows:
        return None
    if len(rows) == count:
        return dict(batch)
    index = torch.tensor(rows)
    own = {}
    for name, value in batch.items():
        if isinstance(value, Tensor):
            # (Positions of several kinds come as [kinds, B, T].)
            dimension = 1 if name == "position_ids" and value.ndim == 3 else 0
            if value.ndim > dimension and value.shape[dimension] == count:
                value = value.index_select(dimension, index.to(value.device))
        own[name] = value
    return own


def _tokens(batch: Mapping[str, Any]) -> Tensor:
    found = batch.get("input_ids") if batch.get("input_ids") is not None else batch.get("inputs_embeds")
    if not isinstance(found, Tensor) or found.ndim < 2:
        raise ValueError("a batch of a warm start needs input_ids [B, T]")
    return found


def shape_of(batch: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and tokens a row, of a whole batch."""
    rows, length = _tokens(batch).shape[:2]
    return rows, length


def real_tokens(batch: Mapping[str, Any]) -> int:
    """Tokens of a whole batch without its padding."""
    mask = prepare_batch(batch).get("attention_mask")
    rows, length = shape_of(batch)
    return rows * length if mask is None else int((mask != 0).sum())


def check_alike(
    models: Mapping[str, nn.Module],
    batches: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
    device: torch.device,
) -> None:
    """Refuse processes that are about to do different things. The values of the model `student` are those of the first process afterwards:
    machines of different kinds calibrate it a last bit apart.

    Args:
        models: by name.
        device: that computes, and through which models are sent.

    Raises:
        ProcessesError: models, batches or options differ; in all processes.
    """
    if processes.world_size() == 1:
        return
    processes.agree("the configuration of the warm start", dict(options), _REMEDY)
    processes.agree("the text of the warm start", digest_of_text(batches), _REMEDY)
    for name, model in models.items():
        shapes = {key: (tuple(value.shape), str(value.dtype)) for key, value in model.state_dict().items()}
        processes.agree(f"the shape of the {name}", _digest([sorted(shapes.items())]), _REMEDY)
        digest = digest_of_state(model)
        if name != "student":
            processes.agree(f"the state of the {name}", digest, _REMEDY)
        elif len(set(processes.gather(digest))) > 1:
            _send(model, device)


def digest_of_text(batches: Iterable[Mapping[str, Any]]) -> str:
    """Of all that batches hold."""
    return _digest(value for batch in batches for value in batch.values())


def digest_of_state(model: nn.Module) -> str:
    """Of all weights and buffers of a model."""
    return _digest(value for _, value in sorted(model.state_dict().items()))


def _digest(values: Iterable[Any]) -> str:
    """Tells whether two sequences of tensors, or of what has a `repr`, are the same."""
    digest = xxhash.xxh3_64()
    for value in values:
        if isinstance(value, Tensor):
            value = value.detach().cpu().contiguous()
            digest.update(repr(tuple(value.shape)).encode())
            digest.update(value.view(-1).view(torch.uint8).numpy().data)
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()


@torch.no_grad()
def _send(model: nn.Module, device: torch.device) -> None:
    """Give all processes the values of the first one's."""
    import torch.distributed as dist

    for _, value in sorted(model.state_dict().items()):
        sent = value.detach().to(device).contiguous()
        dist.broadcast(sent, src=0)
        value.copy_(sent)


@torch.no_grad()
def add_up(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Add up the losses and the gradients of all processes, which all have afterwards.

    Args:
        loss: scalar, this process's part of it.
        parameters: on one device. One that has a gradient nowhere keeps none; an optimiser passes over it, as in one process.

    Returns:
        The sum of the losses.
    """
    if processes.world_size() == 1:
        return loss
    import torch.distributed as dist

    has = [parameter.grad is not None for parameter in parameters]
    found = torch.cat([loss.detach().double().view(1), torch.tensor(has, dtype=torch.float64, device=loss.device)])
    dist.all_reduce(found)
    anywhere = [parameter for parameter, count in zip(parameters, found[1:].tolist(), strict=True) if count]
    for parameter in anywhere:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    bucket: list[Tensor] = []
    for number, parameter in enumerate(anywhere):
        bucket.append(cast(Tensor, parameter.grad))
        if number + 1 == len(anywhere) or sum(gradient.numel() for gradient in bucket) >= _BUCKET:
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat)
            for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(part.view_as(gradient))
            bucket = []
    return found[0]
