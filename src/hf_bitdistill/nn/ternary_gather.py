"""Latent weights in shards (FSDP2): each process quantises its rows in float32, and codes are gathered, not latent weights.

torch asks the local tensor of a sharded parameter what to gather and what to make of it, if that tensor has `fsdp_pre_all_gather` and
`fsdp_post_all_gather`. Here such a tensor is a [`LatentShard`]: a layer makes it of what `fully_shard` gives it for its weight. It owns its
storage and computes as any tensor does, and what is made of it is an ordinary tensor: optimizers, clipping, state dicts and files see
nothing of it.

What is gathered becomes an ordinary parameter of the layer, of the dtype that the layer computes in: it holds the codes. The product reads
them there, so that nothing of a weight is kept for the backward pass; torch frees and gathers it again. Scales and whatever else the layer
needs are a [`GatheredWeight`] beside it.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers.utils import logging

from .._compat import NO_TORCH_FUNCTION, is_in_backward, keeps_version, local_tensor, set_local_tensor, version_of
from ..machine import processes
from ..quantization import (
    GatheredWeight,
    ShardLayout,
    absmean_scale,
    expand_weight_scale,
    fake_quantized_linear,
    leaking_weight,
    mixed_linear,
    mixed_weight,
    row_sums,
    scale_of_row_sums,
    ternary_codes,
)
from .bit_linear import BitLinear


logger = logging.get_logger(__name__)


def enable_ternary_all_gather(model: nn.Module) -> list[str]:
    """Let the latent weights of `model` be gathered as codes, once `fully_shard` has spread them over processes.

    To be called before that (accelerate's `prepare` does it). Without it, and where a layer is left out, latent weights are gathered, in
    the dtype of the computation; in bfloat16 they are then rounded before they are quantised, and some codes are others. Forward and
    backward passes, gradients, optimizers and state dicts stay what they are.

    What needs more than codes of a weight has it gathered too, with a word: the warm-up of quantisation and the leak of the dead zone
    (their effective weights), learned scales (signs, 1.6 bits more), `full_precision`.

    Returns:
        The names of the layers that are left out: tensor parallelism has split their weight, or another module has the same one.
    """
    own = (module.named_parameters(recurse=False, remove_duplicate=False) for module in model.modules())
    owners = Counter(id(weight) for parameters in own for _, weight in parameters)
    scales, left_out = SharedScales(), []
    for name, layer in model.named_modules():
        if not isinstance(layer, BitLinear):
            continue
        if layer._gather is not None:
            continue
        if not hasattr(layer.weight, "device_mesh") and owners[id(layer.weight)] == 1:
            layer._gather = LatentGather(layer, scales)
        else:
            left_out.append(name)
    if left_out and processes.is_first():
        logger.warning(
            f"{len(left_out)} ternary layers ({left_out[0]!r} first) have a weight that is split already or belongs to two modules: "
            "under FSDP2 it is gathered whole, not as codes."
        )
    return left_out


def compute_as_gathered(model: nn.Module) -> None:
    """Let ternary layers compute in this process as they do under FSDP2, where their codes were gathered: each takes its latent weight for
    them. So a plan learns what such a step keeps; its numbers mean nothing."""
    for layer in model.modules():
        if isinstance(layer, BitLinear):
            granularity, group_size = layer.weight_granularity, layer.group_size
            layout = ShardLayout(layer.out_features, layer.in_features, 1, granularity, group_size)
            weight_scale = absmean_scale(layer.weight.detach(), granularity, group_size)
            packed = layer.weight.new_empty((1, layout.code_bytes), dtype=torch.uint8)
            layer._taken_for_gathered = GatheredWeight(layout, weight_scale, packed)


class _Sent(NamedTuple):
    """What the sender of a shard knows and the receiver needs."""

    layout: ShardLayout
    mesh: Any
    weight_scale: Tensor  # of the shard's rows, or of the matrix


class LatentGather:
    """How the latent weight of one layer is sent and received.

    Attributes:
        gathered: what came of it last; `None` before, and after a change of the layer's switches.
        in_shards: `fully_shard` has spread it.
    """

    def __init__(self, layer: BitLinear, scales: SharedScales):
        self._layer = weakref.ref(layer)
        self._shared = scales
        self.gathered: GatheredWeight | None = None
        self.in_shards = False
        if layer.weight_granularity == "tensor":
            scales.add(self)

    # A copy of a layer, or one from a file, is an ordinary one.
    def __reduce__(self):
        return type(None), ()

    @property
    def layer(self) -> BitLinear:
        return cast(BitLinear, self._layer())  # (as long as it is there, which `_find` asks)

    def adopt(self) -> None:
        """Take up the layer's weight, where it is another tensor than before."""
        layer = self.layer
        weight: Any = layer.weight  # a DTensor, where it is in shards
        if not hasattr(weight, "device_mesh") or isinstance(local_tensor(weight), LatentShard):
            return
        shard = local_tensor(weight)
        if shard.shape[1] != layer.in_features:
            # Columns are spread, by a placement of the user's.
            layer._gather = None
            self._say("Ternary weights whose columns are in shards are gathered whole, not as codes")
            return
        self.in_shards = True
        sizes = zip(weight.device_mesh.shape, weight.placements, strict=True)
        processes_with_shards = math.prod(size for size, placement in sizes if placement.is_shard())
        all_rows = self.layout(processes_with_shards).shard_rows == len(shard)
        set_local_tensor(weight, (LatentShard if all_rows else FewerRows).of(shard, self))

    def layout(self, count: int) -> ShardLayout:
        layer = self.layer
        return ShardLayout(layer.out_features, layer.in_features, count, layer.weight_granularity, layer.group_size)

    def send(self, shard: Tensor, mesh: Any) -> tuple[tuple[Tensor], _Sent]:
        layout = self.layout(mesh.size())
        if layout.granularity == "tensor":
            weight_scale = self._shared.of(self, mesh, shard.device)
        else:
            weight_scale = absmean_scale(shard, layout.granularity, layout.group_size)
        return (layout.pack(shard, weight_scale),), _Sent(layout, mesh, weight_scale)

    def receive(self, shard: Tensor, output: Tensor, sent: _Sent, dtype: torch.dtype, weight: Tensor | None) -> Tensor:
        """Fill the layer's parameter.

        Args:
            shard: of this process; on the CPU, where parameters are offloaded to it.
            output: what all sent.
            dtype: of the parameter.
            weight: the parameter, `None` the first time.

        Returns:
            The tensor that holds it, `[processes * shard_rows, C]`.
        """
        layout = sent.layout
        shape = (layout.processes * layout.shard_rows, layout.columns)
        if weight is None:
            room = torch.empty(shape, dtype=dtype, device=output.device)
        else:
            room = torch.as_strided(weight.detach(), shape, (layout.columns, 1), 0)
        packed, weight_scale = layout.split(output)
        if weight_scale is None:
            # (Not the sender's: that one is computed in another stream of the device.)
            weight_scale = sent.weight_scale.clone()
        effective = self._effective(shard, sent, output.device)
        if effective is None:
            layout.unpack_codes(packed, room)
        else:
            _all_gather(room, layout.filled(effective.to(dtype)), sent.mesh)
        signs = None
        if self.layer.scale_gradient:
            signs = packed.new_empty(packed.shape)
            _all_gather(signs, layout.pack_codes(shard.sign()).to(signs.device), sent.mesh)
            self._say(
                "Learned scales need the signs of latent weights, which are gathered beside their codes while that lasts"
            )
        self.gathered = GatheredWeight(layout, weight_scale, packed, effective is not None, signs)
        return room

    def _effective(self, shard: Tensor, sent: _Sent, device: torch.device) -> Tensor | None:
        """What the layer multiplies by, of the rows of this process, float32; `None` if it is codes and scales."""
        layer, layout = self.layer, sent.layout
        linear, options = layer._training_linear, layer._training_options
        if not layer.quantize:
            self._say(
                "A student in full precision needs its latent weights, which are gathered beside their codes while that lasts"
            )
            return shard.to(device)
        if linear is fake_quantized_linear:
            return None
        self._say(
            "The warm-up of quantisation and the leak of the dead zone need more than codes of a weight: their effective weights are "
            "gathered too while that lasts"
        )
        shard = shard.to(device)
        codes = ternary_codes(shard, sent.weight_scale, layout.group_size)
        divisor = expand_weight_scale(sent.weight_scale, layout.columns, layout.group_size)
        if linear is mixed_linear:
            return mixed_weight(shard, codes, divisor, options["share"])
        return leaking_weight(shard, codes, divisor, options["leak"])

    @staticmethod
    def _say(message: str) -> None:
        if processes.is_first():
            logger.warning_once(f"{message}.")


class SharedScales:
    """The scales of matrices that have one each: a process has the sums of its rows, one all-reduce brings those of all.

    It happens once for each forward pass: when a weight is gathered again that was gathered since, outside of a backward pass, in which
    no weight has changed. (What changes a weight need not leave a trace on it, such as a new version.)
    """

    def __init__(self) -> None:
        self._members: list[LatentGather] = []
        # By member: the scale, and the version of the weight that it is of.
        self._known: dict[LatentGather, tuple[Tensor, int]] = {}
        self._used: set[LatentGather] = set()

    def add(self, member: LatentGather) -> None:
        self._members.append(member)

    def of(self, member: LatentGather, mesh: Any, device: torch.device) -> Tensor:
        """The scale `[1]` of a weight; collective, where it has to be found.

        Args:
            mesh: the processes that have its shards.
            device: of the scale.
        """
        weight: Any = member.layer.weight
        known = self._known.get(member)
        changed = known is None or known[1] != version_of(weight)
        in_backward = is_in_backward()
        if known is None or ((changed or member in self._used) and not in_backward):
            self._find(weight.device_mesh, mesh, device)
        self._used.add(member)
        return self._known[member][0]

    def _find(self, weight_mesh: Any, mesh: Any, device: torch.device) -> None:
        """The scales of all weights that are in shards now; what is gathered still has not changed."""
        self._members = [member for member in self._members if member.layer is not None]
        found: list[tuple[LatentGather, Any, ShardLayout]] = [
            (member, member.layer.weight, member.layout(mesh.size()))
            for member in self._members
            if getattr(member.layer.weight, "device_mesh", None) == weight_mesh
        ]
        rows = [layout.rows for _, _, layout in found]
        sums = torch.zeros(sum(rows), dtype=torch.float32, device=device)
        for (_, weight, layout), of_matrix in zip(found, sums.split(rows), strict=True):
            shard = weight.to_local()
            first = layout.first_row(mesh.get_local_rank())
            of_matrix[first : first + len(shard)] = row_sums(shard.abs().float())
        if mesh.size() > 1:
            # All but one of the processes add zeros: the sums stay what they are, in every process.
            dist.all_reduce(sums, group=mesh.get_group())
        for (member, weight, layout), of_matrix in zip(found, sums.split(rows), strict=True):
            self._known[member] = (scale_of_row_sums(of_matrix, layout.columns), version_of(weight))
            self._used.discard(member)


def _all_gather(room: Tensor, part: Tensor, mesh: Any) -> None:
    """Fill `room` with the parts of all processes."""
    if mesh.size() == 1:
        room.view(-1).copy_(part.view(-1))
    else:
        # (Of the same arguments, and the older one is deprecated.)
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        gather(room.view(-1), part.contiguous().view(-1), group=mesh.get_group())


def _of_its_kind(name: str):
    method = getattr(Tensor, name)

    def call(self: LatentShard, *args: Any, **kwargs: Any) -> LatentShard:
        result = method(self, *args, **kwargs)
        # torch wants what is sent to have the size of a shard with all its rows, and looks, where one has fewer, unless only the
        # mesh is asked for. Fewer bytes are the point here.
        kind = FewerRows if name == "narrow" and result.shape != self.shape else type(self)
        return kind.of(result, self.gather)

    return call


class LatentShard(Tensor):
    """The local tensor of a sharded latent weight."""

    gather: LatentGather  # type: ignore[assignment]  # in the place of an operator that no shard needs
    # Operators give ordinary tensors, and cost what they always cost.
    __torch_function__ = NO_TORCH_FUNCTION

    @classmethod
    def of(cls, tensor: Tensor, gather: LatentGather) -> LatentShard:
        shard = tensor.detach().as_subclass(cls)
        shard.gather = gather
        return shard

    # By these torch makes shards out of one another: where rows are missing, or a shard is kept on the CPU.
    new_zeros, narrow, cpu, to, pin_memory = map(_of_its_kind, ("new_zeros", "narrow", "cpu", "to", "pin_memory"))

    def __reduce_ex__(self, protocol: Any):
        return self.detach().__reduce_ex__(protocol)

    @torch.no_grad()
    def fsdp_pre_all_gather(self, mesh, outer_size, outer_stride, module, mp_policy):
        return self.gather.send(self.detach(), mesh)

    @torch.no_grad()
    def fsdp_post_all_gather(self, all_gather_outputs, metadata, param_dtype, *, out=None):
        (output,) = all_gather_outputs
        if out is None:
            room = self.gather.receive(self.detach(), output, metadata, param_dtype, None)
            return room, (room,)
        if out.is_inference():
            self.gather.receive(self.detach(), output, metadata, param_dtype, out)
        else:
            # What autograd has saved of it is in its place again.
            with keeps_version(out):
                self.gather.receive(self.detach(), output, metadata, param_dtype, out)
        return None


class FewerRows(LatentShard):
    """The last shards, where the rows of a weight cannot be divided evenly."""

    @torch.no_grad()
    def fsdp_pre_all_gather(self, mesh):  # type: ignore[override]  # torch counts the parameters
        return self.gather.send(self.detach(), mesh)
