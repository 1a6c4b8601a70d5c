"""`Experts`: the experts of a mixture as separate MLPs, so that their projections are linear layers like all others.

transformers keeps the weights of all experts of a layer in one three-dimensional parameter a projection. A ternary student has a scale
(or a row of them), a SubLN and packed codes for each matrix, so the matrices become modules again; their names are those that
checkpoints of most such models have on the Hub (`mlp.experts.0.down_proj.weight`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .._compat import forget_parameters, gated_activation
from ..ops.stored import is_exporting


# What transformers' `use_experts_implementation` tells of a class of fused experts, whoever computes with it.
_CONTRACT = ("has_gate", "has_bias", "is_transposed", "is_concatenated", "num_experts")


def is_fused_experts(module: Any) -> bool:
    """Whether `module` keeps experts fused in the way that all of transformers' expert backends understand, and no tensor besides
    their projections."""
    if not all(hasattr(module, name) for name in _CONTRACT):
        return False
    expected = {"gate_up_proj" if module.has_gate else "up_proj", "down_proj"}
    if module.has_bias:
        expected |= {f"{name}_bias" for name in expected}
    return {name for name, _ in (*module.named_parameters(), *module.named_buffers())} == expected


def expert_projections(fused: Any) -> tuple[str, ...]:
    """Names of the linear layers that each expert of `fused` becomes."""
    return ("gate_proj", "up_proj", "down_proj") if fused.has_gate else ("up_proj", "down_proj")


class Expert(nn.Module):
    """One MLP: `down_proj(activation(up))`, where `up` is that of `up_proj` or holds that of `gate_proj` too.

    Args:
        projections: the linear layers, by name.
        activation: `[..., I]` -> `[..., I]`, or with `gate_proj` `[..., 2 I]` -> `[..., I]`.
        interleaved: gate and up take turns in what `activation` reads; otherwise the gate's half comes first.
    """

    gate_proj: nn.Linear
    up_proj: nn.Linear
    down_proj: nn.Linear

    def __init__(self, projections: dict[str, nn.Linear], activation: Callable[[Tensor], Tensor], interleaved: bool):
        super().__init__()
        for name, linear in projections.items():
            self.add_module(name, linear)
        self.activation = activation
        self.interleaved = interleaved

    def forward(self, x: Tensor) -> Tensor:
        """`[N, H]` -> `[N, H]`."""
        up = self.up_proj(x)
        if hasattr(self, "gate_proj"):
            parts = (self.gate_proj(x), up)
            up = torch.stack(parts, dim=-1).flatten(-2) if self.interleaved else torch.cat(parts, dim=-1)
        return self.down_proj(self.activation(up))


class Experts(nn.ModuleList):
    """A list of [`Expert`]s that is called as transformers' fused experts are."""

    @classmethod
    def from_fused(cls, fused: Any) -> Experts:
        """Take over the weights (copies) and the activation of `fused`, for which [`is_fused_experts`] holds."""
        # What is left of it knows the activation, and belongs to no model: it has no tensors.
        shell = copy.copy(fused)
        forget_parameters(shell)
        # (Not the bound method: transformers gives classes a function of another name, which pickle would not find there.)
        activation = partial(gated_activation(shell), shell) if fused.has_gate else shell.act_fn
        experts = [
            Expert(dict(_linears_of(fused, index)), activation, fused.has_gate and not fused.is_concatenated)
            for index in range(fused.num_experts)
        ]
        return cls(experts).train(fused.training)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """The weighted sum of each token's experts.

        In training and in distributed runs every expert is called, with no token if need be: its parameters then have a gradient (of
        zero) in each step of an optimizer, as a fused parameter has, and all ranks gather the same shards.

        Args:
            hidden_states: `[N, H]`.
            top_k_index: `[N, K]` int64; an index beyond the experts stands for none.
            top_k_weights: `[N, K]`.

        Returns:
            `[N, H]`, the dtype of `hidden_states`.
        """
        choices = top_k_index.flatten()
        if is_exporting():  # a program cannot split by numbers that it learns as it runs, nor leave an expert out
            by_expert, call_all = [(choices == index).nonzero().squeeze(-1) for index in range(len(self))], True
        else:
            # Sorted once, so that an accelerator is waited for once and not for each expert.
            by_expert = choices.argsort(stable=True).split(choices.bincount(minlength=len(self)).tolist())
            call_all = self.training or _is_distributed()
        weights = top_k_weights.flatten()
        output = torch.zeros_like(hidden_states)
        for expert, places in zip(self, by_expert, strict=False):
            if call_all or len(places):
                token = places // top_k_index.shape[1]
                expert_output = expert(hidden_states[token]) * weights[places, None]
                output.index_add_(0, token, expert_output.to(output.dtype))
        return output


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _linears_of(fused: Any, index: int) -> Iterator[tuple[str, nn.Linear]]:
    """Name and linear layer of each projection of expert `index`."""
    if fused.has_gate:
        halves = [slice(0, None, 2), slice(1, None, 2)]
        if fused.is_concatenated:
            rows = fused.gate_up_proj.shape[2 if fused.is_transposed else 1] // 2
            halves = [slice(0, rows), slice(rows, None)]
        sources = [("gate_proj", "gate_up_proj", halves[0]), ("up_proj", "gate_up_proj", halves[1])]
    else:
        sources = [("up_proj", "up_proj", slice(None))]
    for name, source, rows in (*sources, ("down_proj", "down_proj", slice(None))):
        parameter = getattr(fused, source)
        weight = parameter.detach()[index]
        weight = (weight.T if fused.is_transposed else weight)[rows].clone(memory_format=torch.contiguous_format)
        bias = getattr(fused, f"{source}_bias").detach()[index][rows].clone() if fused.has_bias else None
        with torch.device("meta"):
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, dtype=weight.dtype)
        linear.weight = nn.Parameter(weight, requires_grad=parameter.requires_grad)
        if bias is not None:
            linear.bias = nn.Parameter(bias, requires_grad=parameter.requires_grad)
        yield name, linear
