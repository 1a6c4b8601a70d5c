"""Where the teacher's weights are: whole on the device of every process, or in shards where the student's engine shards."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from torch import nn
from transformers.utils import logging

from ..._compat import take_out, undivided_classes
from ...nn.carried_adapters import without_adapters
from ..engines.engine import Engine
from ..losses.head_losses import is_plain_linear


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class PlacedTeacher:
    """A teacher that is ready to be called.

    Attributes:
        model: what is called.
        is_whole: whether a process can call it without the others.
    """

    model: nn.Module
    is_whole: bool = True
    _kept: Sequence[Any] = ()

    def release(self) -> None:
        """Give back what a forward pass of a sharded teacher leaves gathered: its output layer, which may be read after the pass."""
        for module in self._kept:
            module.reshard()


def place_teacher(teacher: nn.Module, accelerator: Accelerator) -> PlacedTeacher:
    """Places the teacher, which gets neither gradients nor an optimizer, with the run's mixed precision: in shards under FSDP2 and
    DeepSpeed's ZeRO-3, where its forward passes need all processes.

    Args:
        teacher: frozen, in eval mode.
        accelerator: of the student.
    """
    engine = Engine.of(accelerator)
    if engine.kind == "deepspeed":
        return PlacedTeacher(_deepspeed_engine(teacher, accelerator, engine), not engine.shards_weights)
    kept = _shard(teacher, accelerator) if engine.kind == "fsdp" else None
    # Under FSDP accelerate places what it shards, which the teacher is not.
    prepared = accelerator.prepare_model(teacher, device_placement=kept is None, evaluation_mode=True)
    # Accelerate lists what it prepared. Trainer takes a non-empty list to mean that the *student* is prepared (an
    # evaluation before training would run without mixed precision), and FSDP clips gradients of what is listed.
    take_out(accelerator, prepared)
    prepared.eval()
    return PlacedTeacher(prepared) if kept is None else PlacedTeacher(prepared, False, kept)


# ---- FSDP2 ----


def _shard(teacher: nn.Module, accelerator: Accelerator) -> list[Any] | None:
    """Shard a teacher as accelerate shards the student, over the same processes: a layer at a time is whole. Its weights are gathered in
    their own dtype, so that its answers are those of a whole one bit for bit.

    Returns:
        The modules that stay gathered after a forward pass; `None` for a teacher that cannot be sharded.
    """
    from torch.distributed.fsdp import FSDPModule, OffloadPolicy, fully_shard

    odd = next((name for name, weight in teacher.named_parameters() if not weight.is_floating_point()), None)
    if odd is not None or any(hasattr(weight, "to_local") for weight in teacher.parameters()):
        reason = "it is sharded already" if odd is None else f"{odd} is no floating point number"
        logger.warning(f"The teacher is not sharded ({reason}): every process holds what it was given of it.")
        return None
    plugin, mesh = accelerator.state.fsdp_plugin, getattr(accelerator, "torch_device_mesh", None)
    options: dict[str, Any] = {
        "mesh": None if mesh is None else mesh[tuple(accelerator.parallelism_config.fsdp_dim_names)],
        "offload_policy": plugin.cpu_offload or OffloadPolicy(),
    }
    for layer in _layers(teacher, plugin.transformer_cls_names_to_wrap):
        fully_shard(layer, **options, reshard_after_forward=True)
    inner = without_adapters(teacher)
    embedding = inner.get_input_embeddings()
    head = inner.get_output_embeddings()
    if is_plain_linear(head):
        is_tied = head.weight is getattr(embedding, "weight", None)
        # Losses are taken at the output layer, while the student's forward pass runs.
        fully_shard([embedding, head] if is_tied else head, **options, reshard_after_forward=False)
    if isinstance(embedding, nn.Module) and not isinstance(embedding, FSDPModule):
        fully_shard(embedding, **options, reshard_after_forward=True)
    fully_shard(teacher, **options)
    return [teacher, head] if isinstance(head, FSDPModule) else [teacher]


def _layers(teacher: nn.Module, asked: Sequence[str] | None) -> Iterator[nn.Module]:
    """Its decoder layers: of the classes that the student's are of by configuration, or else by what its architecture says."""
    inner = without_adapters(teacher)
    names = {type(module).__name__ for module in inner.modules()} & set(asked or ())
    names = names or undivided_classes(inner)
    found = [module for module in inner.modules() if type(module).__name__ in names]
    inside = {child for module in found for child in module.modules() if child is not module}
    return (module for module in found if module not in inside)


# ---- DeepSpeed ----


def _deepspeed_engine(teacher: nn.Module, accelerator: Accelerator, engine: Engine) -> nn.Module:
    """An engine of its own for the teacher, without optimizer: partitioned under ZeRO-3, plain under other stages
    (which partition only optimizer states and gradients, of which it has none)."""
    import deepspeed

    config = copy.deepcopy(accelerator.state.deepspeed_plugin.deepspeed_config)
    for part in ("optimizer", "scheduler"):
        config.pop(part, None)
    if engine.level == 3:
        # "auto" entries were resolved for the student's width
        width = max(without_adapters(teacher).config.get_text_config().hidden_size, 1)
        config["zero_optimization"].pop("offload_optimizer", None)
        config["zero_optimization"].update(
            reduce_bucket_size=width * width,
            stage3_param_persistence_threshold=10 * width,
            stage3_prefetch_bucket_size=int(0.9 * width * width),
        )
    else:
        config["zero_optimization"] = {"stage": 0}
    prepared, *_ = deepspeed.initialize(model=teacher, config=config)
    prepared.eval()  # (returns nothing there)
    return prepared
