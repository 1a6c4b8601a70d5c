"""The whole weights of a model in shards, for the process that writes them: one parameter at a time, and never a second copy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


# What wrappers of modules put into the names of parameters: torch.compile, activation checkpointing.
_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")


def whole_state(model: nn.Module, keep: bool) -> dict[str, Tensor]:
    """The state dict of a model under FSDP2 or DeepSpeed, as it would be in one piece. Every process calls it.

    Args:
        model: unwrapped; in shards, or not.
        keep: whether this process wants it. Others take part in gathering, a parameter at a time.

    Returns:
        Tensors on the CPU, tied ones in one memory; nothing for a process that does not want it.
    """
    names = [_plain(name) for name in model.state_dict()]  # (which puts what FSDP2 has left gathered back into shards)
    parameters = {_plain(name): weight for name, weight in model.named_parameters(remove_duplicate=False)}
    buffers = {_plain(name): buffer for name, buffer in model.named_buffers(remove_duplicate=False)}
    state: dict[str, Tensor] = {}
    made: dict[int, Tensor | None] = {}
    for name in names:
        tensor = parameters[name] if name in parameters else buffers.get(name)
        if tensor is None:
            continue  # (no tensor: a module's extra state, which no format of models has)
        if id(tensor) not in made:
            made[id(tensor)] = _whole(tensor, keep)
        whole = made[id(tensor)]
        if whole is not None:
            state[name] = whole
    return state


def _plain(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


@torch.no_grad()
def _whole(tensor: Any, keep: bool) -> Tensor | None:
    if hasattr(tensor, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):
            return tensor.detach().to("cpu", copy=True) if keep else None
    tensor = tensor.detach()
    if not hasattr(tensor, "full_tensor"):
        return tensor.to("cpu", copy=True) if keep else None
    if tensor.device.type != tensor.device_mesh.device_type:  # (kept on the CPU, whose processes may have no group)
        tensor = tensor.to(tensor.device_mesh.device_type)
    whole = tensor.full_tensor()
    return whole.to("cpu") if keep else None
