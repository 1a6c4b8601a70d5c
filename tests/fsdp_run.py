"""Run by `test_fsdp.py` in each of two processes: an online student under FSDP2, against the same student in one piece.

Usage: fsdp_run.py RANK FOLDER (the processes meet in a file in FOLDER; results go to FOLDER/results-RANK.json)
"""

import copy
import json
import os
import sys
import traceback
from datetime import timedelta
from types import SimpleNamespace


os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM

from architectures import random_tokens, tiny_model
from hf_bitdistill import BitNetConfig, apply_bitnet
from hf_bitdistill.training.both_passes import BothPasses
from hf_bitdistill.training.losses.terms import Progress
from hf_bitdistill.training.losses.terms.cross_entropy import CrossEntropyTerm
from hf_bitdistill.training.losses.terms.logits import LogitsTerm
from hf_bitdistill.training.teacher.teacher_placement import PlacedTeacher


LAYER = "model.layers.0.mlp.up_proj"
GATHER = StateDictOptions(full_state_dict=True, cpu_offload=True)


def student(seed: int, shard: bool, reshard: bool | None = None):
    # Odd numbers of rows, so that the shards of the two processes are of unequal size.
    model = tiny_model("llama", seed, intermediate_size=91, vocab_size=97, tie_word_embeddings=False)
    model = apply_bitnet(model, BitNetConfig(sub_norm="all", weight_granularity="row"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "rms_norm" in name:
                parameter.uniform_(0.5, 1.5)
    if shard:
        mesh = init_device_mesh("cpu", (2,))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh, reshard_after_forward=reshard)
    return model.eval()


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(random_tokens()).logits


def gather(model) -> dict:
    """The full state dict in process 0, nothing in the other."""
    return get_model_state_dict(model, options=GATHER)


def assert_same(state: dict, expected: dict, **tolerance) -> None:
    assert state.keys() == expected.keys(), state.keys() ^ expected.keys()
    for name, tensor in expected.items():
        assert state[name].shape == tensor.shape, (name, state[name].shape, tensor.shape)
        torch.testing.assert_close(state[name], tensor, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def assert_sharded(model) -> None:
    weight = model.get_submodule(LAYER).weight
    assert weight.shape == (91, 48) and weight.to_local().shape[0] < 91


def the_forward_is_the_same(rank, folder):
    sharded = student(0, shard=True)
    assert_sharded(sharded)
    assert torch.equal(logits(sharded), logits(student(0, shard=False)))


def the_gathered_state_is_the_state_of_one_piece(rank, folder):
    """Names, values, and shapes (those on disk)."""
    full = gather(student(0, shard=True))
    if rank == 0:
        assert full[f"{LAYER}.weight"].numel() == 91 * 48
        assert_same(full, student(0, shard=False).state_dict(), rtol=0, atol=0)


def the_gathered_state_can_be_saved(rank, folder):
    """As Trainer saves it."""
    full = gather(student(0, shard=True))
    if rank == 0:
        whole = student(0, shard=False)
        whole.save_pretrained(f"{folder}/plain")
        student(7, shard=False).save_pretrained(f"{folder}/gathered", state_dict=full)
        with (
            safe_open(f"{folder}/plain/model.safetensors", "pt") as plain,
            safe_open(f"{folder}/gathered/model.safetensors", "pt") as gathered,
        ):
            assert set(plain.keys()) == set(gathered.keys())
            for name in plain.keys():  # noqa: SIM118 (no mapping)
                assert torch.equal(plain.get_tensor(name), gathered.get_tensor(name)), name
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(f"{folder}/gathered")), logits(whole))


def process_0_broadcasts_its_state(rank, folder):
    """As accelerate loads a FULL_STATE_DICT checkpoint: only process 0 has read it."""
    # No forward before this: it leaves the root's parameters gathered, and torch cannot load into those.
    whole, sharded = student(0, shard=False), student(7, shard=True)
    assert not torch.equal(logits(student(7, shard=False)), logits(whole))
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(sharded, copy.deepcopy(whole.state_dict()) if rank == 0 else {}, options=options)
    assert torch.equal(logits(sharded), logits(whole))
    assert_sharded(sharded)


def every_process_has_the_state(rank, folder):
    whole, sharded = student(0, shard=False), student(7, shard=True)
    state = copy.deepcopy(whole.state_dict())
    set_model_state_dict(sharded, state, options=StateDictOptions(full_state_dict=True))
    assert torch.equal(logits(sharded), logits(whole))
    assert_sharded(sharded)


def training_is_the_same(rank, folder):
    whole, sharded = student(0, shard=False), student(0, shard=True)
    before = copy.deepcopy(whole.state_dict())
    for model in (whole, sharded):
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for seed in (1, 2):
            tokens = random_tokens(seed=seed)
            model(tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    full = gather(sharded)
    if rank == 0:
        assert not torch.equal(full[f"{LAYER}.weight"], before[f"{LAYER}.weight"])
        assert_same(full, whole.state_dict(), rtol=1e-4, atol=1e-6)


def losses_at_the_output_layer_are_the_same(rank, folder):
    """Taken inside of the sharded forward, whether it keeps the root's weights until the backward pass or not."""
    options = {"logits_divergence": "forward_kl", "temperature": 2.0, "logits_loss_weight": 3.0, "ce_loss_weight": 0.5}
    args = SimpleNamespace(**options, jsd_beta=0.5, kl_chunk_size=None, label_smoothing_factor=0.0)
    terms = [CrossEntropyTerm(args), LogitsTerm(args)]
    teacher = student(3, shard=False).requires_grad_(False)
    tokens = random_tokens()
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    states = []
    for model in (student(0, False), student(0, True), student(0, True, reshard=True)):
        model.train()
        is_sharded = hasattr(model, "unshard")
        passes = BothPasses(args, "causal_lm", teacher, PlacedTeacher(teacher))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            wanted = "none" if is_sharded else "labelled"
            found = passes(model, model, inputs, tokens, tokens > 0, terms, Progress(), wanted)
            loss = sum(term.weight(Progress()) * term.sums(found).total for term in terms) / tokens.numel()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert passes.refusal is None and (found.logits is None) is is_sharded
        states.append(gather(model) if is_sharded else model.state_dict())
    if rank == 0:
        assert_same(states[1], states[0], rtol=1e-4, atol=1e-6)
        assert_same(states[2], states[0], rtol=1e-4, atol=1e-6)


CHECKS = {
    check.__name__: check
    for check in (
        the_forward_is_the_same,
        the_gathered_state_is_the_state_of_one_piece,
        the_gathered_state_can_be_saved,
        process_0_broadcasts_its_state,
        every_process_has_the_state,
        training_is_the_same,
        losses_at_the_output_layer_are_the_same,
    )
}


def main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    results = {}
    for name, check in CHECKS.items():
        try:
            check(rank, folder)
            results[name] = "passed"
        except Exception:
            results[name] = traceback.format_exc()
        with open(f"{folder}/results-{rank}.json", "w") as file:
            json.dump(results, file)
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
