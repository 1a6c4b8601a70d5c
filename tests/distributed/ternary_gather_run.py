"""Run by `test_ternary_gather.py` in several processes: students under FSDP2 whose weights are gathered as codes, against the same
students in one piece.

Usage: ternary_gather_run.py FOLDER CHECK... (results go to FOLDER/results-RANK.json)
"""

import copy
import json
import os
import pickle
import sys
import traceback
from contextlib import contextmanager
from datetime import timedelta
from types import SimpleNamespace

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from architectures import random_tokens, tiny_model
from hf_bitdistill import BitNetConfig, apply_bitnet
from hf_bitdistill.layers import (
    BitLinear,
    enable_ternary_all_gather,
    full_precision,
    set_dead_zone_leak,
    set_quantization_share,
    set_scale_gradient,
)


BFLOAT16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
GRANULARITIES = {
    "tensor": BitNetConfig(sub_norm="all"),
    "row": BitNetConfig(sub_norm="all", weight_granularity="row"),
    "group": BitNetConfig(sub_norm="all", weight_granularity="group", group_size=64),
}
FOLDER = sys.argv[1]


def student(granularity: str = "tensor", seed: int = 0):
    """Odd numbers of rows, so that the shards are of unequal size."""
    model = tiny_model("llama", seed, intermediate_size=91, vocab_size=97, tie_word_embeddings=False)
    return apply_bitnet(model, GRANULARITIES[granularity])


def shard(model, codes: bool = True, policy: MixedPrecisionPolicy | None = None, reshard: bool = True):
    if codes:
        assert enable_ternary_all_gather(model) == []
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    options = {"mesh": mesh, "mp_policy": policy or MixedPrecisionPolicy(), "reshard_after_forward": reshard}
    for layer in model.model.layers:
        fully_shard(layer, **options)
    return fully_shard(model, **options)


def ternary(model) -> dict[str, BitLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, BitLinear)}


@contextmanager
def seen_weights(model):
    """Codes and scales as the layers have them in their forward passes, by name."""
    found, handles = {}, []
    for name, layer in ternary(model).items():

        def look(layer, args, name=name):
            found[name] = tuple(tensor.clone() for tensor in layer.ternarize())

        handles.append(layer.register_forward_pre_hook(look))
    yield found
    for handle in handles:
        handle.remove()


@contextmanager
def counted():
    """Bytes that this process gives to all-gathers, and its all-reduces."""
    totals = {"gathered": 0, "reductions": 0}
    names = [name for name in ("all_gather_into_tensor", "all_gather_single") if hasattr(dist, name)]
    originals = {name: getattr(dist, name) for name in (*names, "all_reduce")}
    depth = [0]

    def gathering(original):
        def call(output, part, *args, **kwargs):
            # (One may be the other by another name.)
            totals["gathered"] += part.nbytes if depth[0] == 0 else 0
            depth[0] += 1
            try:
                return original(output, part, *args, **kwargs)
            finally:
                depth[0] -= 1

        return call

    def reducing(*args, **kwargs):
        totals["reductions"] += 1
        return originals["all_reduce"](*args, **kwargs)

    for name in names:
        setattr(dist, name, gathering(originals[name]))
    dist.all_reduce = reducing
    try:
        yield totals
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)


def same_weights(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys() and found
    for name, pair in expected.items():
        assert all(map(torch.equal, found[name], pair)), name


def codes_are_those_of_one_process():
    for granularity in GRANULARITIES:
        whole = student(granularity)
        for policy in (None, BFLOAT16):
            sharded = shard(student(granularity), policy=policy)
            for mode in (True, False):
                whole.train(mode), sharded.train(mode)
                with seen_weights(whole) as expected, seen_weights(sharded) as found:
                    logits = [model(random_tokens()).logits for model in (whole, sharded)]
                same_weights(found, expected)
                if policy is None:
                    assert torch.equal(*logits), granularity


CHECKS = {check.__name__: check for check in (codes_are_those_of_one_process,)}


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    results = {}
    for name in sys.argv[2:]:
        try:
            CHECKS[name]()
            results[name] = "passed"
        except Exception:
            results[name] = traceback.format_exc()
        with open(f"{FOLDER}/results-{dist.get_rank()}.json", "w") as file:
            json.dump(results, file)
        dist.barrier()
    sys.stdout.flush()
    # (torch can hang when it frees gloo's group with what belongs to it.)
    os._exit(0)


if __name__ == "__main__":
    main()
