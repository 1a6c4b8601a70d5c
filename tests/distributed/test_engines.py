"""Each engine in two processes (gloo, CPU) against one process: losses, weights, resuming, packing; and what an engine cannot do."""

from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from engines_run import KINDS, save_models, training
from launching import run_script, run_warm
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hf_bitdistill import pack
from hf_bitdistill.nn import TernaryLinear


if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("needs torch.distributed with gloo", allow_module_level=True)

deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs deepspeed (extra `distributed`)")


def _launched(folder: Path, *names: str, processes: int = 2, start=run_script) -> dict[str, list[dict]]:
    """What came of each in every process."""
    start("engines_run.py", processes, str(folder), *names)
    found = {
        name: [torch.load(folder / f"{name}-{rank}.pt", weights_only=False) for rank in range(processes)]
        for name in names
    }
    for results in found.values():
        for result in results:
            assert "error" not in result, result["error"]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where all trainings of the module are; they begin with the same models."""
    path = tmp_path_factory.mktemp("engines")
    save_models(path)
    return path


@pytest.fixture(scope="module")
def one(folder):
    """One process."""
    return training(folder / "one", use_cpu=True)


def _same_losses(found: list[dict], expected: list[dict], rel: float = 1e-5) -> None:
    for step, other in zip(found, expected, strict=True):
        assert step == pytest.approx(other, rel=rel)


def _check(folder: Path, name: str, found: list[dict], one: dict, reference: str = "one") -> None:
    for result in found:
        _same_losses(result["losses"], one["losses"])
        assert result["evaluations"] == pytest.approx(one["evaluations"], rel=1e-5)
        assert result["resumed"] == result["losses"]
        assert not result["teacher_gradients"]
    is_sharded = name.removeprefix("tied-").startswith(("fsdp", "zero3"))
    held = [result["teacher_weights"] for result in found]
    if is_sharded:
        # (Nothing is left gathered after the last pass.)
        assert not any(result["is_whole"] for result in found)
        assert abs(held[0] - held[1]) < 0.02 * one["teacher_weights"]
        assert sum(held) == pytest.approx(one["teacher_weights"], rel=0.01)
    else:
        assert all(result["is_whole"] for result in found) and set(held) == {one["teacher_weights"]}
    whole, trained = (
        load_file(folder / reference / "model.safetensors"),
        load_file(folder / name / "model.safetensors"),
    )
    assert whole.keys() == trained.keys()
    for key, tensor in whole.items():
        torch.testing.assert_close(trained[key], tensor, rtol=0, atol=1e-5)
    resumed = load_file(folder / f"{name}-again" / "model.safetensors")
    assert all(torch.equal(resumed[key], tensor) for key, tensor in trained.items())
    # A normal model folder: it loads, packs, and computes.
    student = AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32)
    tokens = torch.arange(3, 15)[None]
    with torch.no_grad():
        expected = student.eval()(tokens).logits
        packed = pack(student, table_bits=32)
        assert any(isinstance(module, TernaryLinear) for module in packed.modules())
        torch.testing.assert_close(packed(tokens).logits, expected, rtol=0, atol=0)


def test_ddp_after_an_evaluation_and_fsdp2_in_shards(folder, one):
    found = _launched(folder, "guards-ddp", "fsdp_sharded", "guards-fsdp", start=run_warm)
    first, second = found["guards-ddp"]
    assert torch.equal(first["weights"], second["weights"])
    for result in (first, second):
        _same_losses(result["losses"], one["losses"])
    assert first["evaluated"] == second["evaluated"]
    _check(folder, "fsdp_sharded", found["fsdp_sharded"], one)
    checkpoint = found["fsdp_sharded"][0]["checkpoint"]
    assert {"config.json", "optimizer_0", "pytorch_model_fsdp_0"} <= set(checkpoint)
    assert "model.safetensors" not in checkpoint
    # The last one is a model, for what a run that was killed after it has to show.
    assert (folder / "fsdp_sharded" / "checkpoint-4" / "model.safetensors").is_file()
    assert all(result["refusal"] is None for result in found["fsdp_sharded"])
    for result in found["guards-fsdp"]:
        assert "evaluate() before train() is not possible with FSDP2" in result["evaluate"]
        assert "eval_on_start" in result["evaluate"]
        assert "was written by no engine (one process, or DDP), and this training runs with FSDP2" in result["foreign"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp_full", "fsdp_checkpointing", "fsdp_root"])
def test_torch(folder, one, name):
    found = _launched(folder, name)
    _check(folder, name, found[name], one)
    assert all(result["refusal"] is None for result in found[name])


@pytest.mark.slow
@deepspeed
def test_deepspeed(folder, one):
    names = ("zero1", "zero2", "zero3")
    found = _launched(folder, *names, "guards-zero")
    for name in names:
        _check(folder, name, found[name], one)
        # Logits are made as a whole where the weights of the output layer are there for its own pass alone.
        assert all((result["refusal"] is None) is (name != "zero3") for result in found[name])
    for rank, result in enumerate(found["guards-zero"]):
        assert "evaluate() before train() is not possible with DeepSpeed ZeRO-2" in result["evaluate"]
        assert "was written by ZeRO-3, and this training runs with DeepSpeed ZeRO-2" in result["stage"]
        # DeepSpeed leaves a step out itself, unless it was told not to look.
        assert "FloatingPointError: step 2" in result["nan"] and "Stopped (nan_patience=1)" in result["nan"]
        assert "FloatingPointError: step 2" in result["nan_unchecked"]
        assert "DeepSpeed ZeRO-1 has taken the step" in result["nan_unchecked"]
        assert "FloatingPointError: step 2" in result["nan_3"]
        assert "train() after evaluate() is not possible with DeepSpeed ZeRO-3" in result["train"], rank
    assert found["guards-zero"][0]["evaluated"] == found["guards-zero"][1]["evaluated"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsdp_sharded", pytest.param("zero3", marks=deepspeed)])
def test_tied_embeddings(folder, name):
    save_models(folder / "tied", tied=True)
    one = training(folder / "tied" / "one", use_cpu=True)
    found = _launched(folder, f"tied-{name}")
    _check(folder, f"tied-{name}", found[f"tied-{name}"], one, "tied/one")


@pytest.fixture(scope="module")
def wide(folder):
    """The folder, with models of which 8-bit optimizers keep 8 bits, in one share and in two: of less than 4096 numbers, and where these are
    no multiple of 256, the states are kept in full."""
    save_models(folder / "wide", width=128, words=68)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes (extra `bitsandbytes`)")
def test_paged_optimizers(wide):
    """On a CPU they are not paged, which a warning of theirs says."""
    one = training(wide / "wide" / "paged", use_cpu=True, optim="paged_adamw_8bit")
    assert one["resumed"] == one["losses"]
    for result in _launched(wide, "paged-ddp")["paged-ddp"]:
        _same_losses(result["losses"], one["losses"], rel=1e-4)
        assert result["resumed"] == result["losses"]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("torchao") is None, reason="needs torchao (extra `torchao`)")
def test_optimizers_of_low_bits(wide):
    folder = wide
    # (Compiling the step for each shape would take minutes.)
    with torch.compiler.set_stance("force_eager"):
        one = training(folder / "wide" / "one", use_cpu=True, optim="adamw_torch_8bit")
        full = training(folder / "wide" / "full", use_cpu=True)
    assert one["resumed"] == one["losses"] and one["losses"] != full["losses"]
    start = partial(run_script, env={"TORCHDYNAMO_DISABLE": "1"})
    found = _launched(folder, "low_bits-fsdp_sharded", start=start)["low_bits-fsdp_sharded"]
    for result in found:
        _same_losses(result["losses"], one["losses"], rel=1e-4)
        assert result["resumed"] == result["losses"]


@pytest.mark.slow
def test_a_teacher_in_bfloat16(folder):
    """In shards it is sent in bfloat16, and answers as a whole one does, under autocast."""
    one = training(folder / "half-one", use_cpu=True, **KINDS["half"])
    for result in _launched(folder, "half-fsdp_sharded")["half-fsdp_sharded"]:
        _same_losses(result["losses"][:1], one["losses"][:1], rel=1e-5)
        _same_losses(result["losses"], one["losses"], rel=1e-3)


@pytest.mark.slow
def test_a_model_is_gathered_once_and_in_one_process(folder):
    # Resident memory holds what was freed too, as long as the allocator keeps it. Left to itself, glibc learns from the first large block
    # that is freed to keep such blocks for later: up to 30 MB in each process, whatever the model's size is. With a threshold that is set
    # it gives them back at once. What is left of buffers (gloo's, those of digests) is 10 MB.
    start = partial(run_script, env={"MALLOC_MMAP_THRESHOLD_": str(1 << 20)})
    first, second = _launched(folder, "memory", start=start)["memory"]
    assert first["tensors"] and not second["tensors"]
    assert 0.95 < first["gathered"] < 1.06 and first["saved"] < 1.1, first
    assert second["saved"] < 0.1, second
