"""What engines refuse, without one (in several processes: `tests/distributed`)."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.utils import DistributedType

from hf_bitdistill.files.tensor_headers import CheckpointError
from hf_bitdistill.training.engines.engine import Engine, check_engine, check_resumable


def accelerator(kind: DistributedType, **state) -> SimpleNamespace:
    return SimpleNamespace(distributed_type=kind, state=SimpleNamespace(**state), device=SimpleNamespace(type="cpu"))


def fsdp(version: int = 2, states: str = "SHARDED_STATE_DICT") -> SimpleNamespace:
    plugin = SimpleNamespace(fsdp_version=version, state_dict_type=f"StateDictType.{states}")
    return accelerator(DistributedType.FSDP, fsdp_plugin=plugin)


def deepspeed(**config) -> SimpleNamespace:
    plugin = SimpleNamespace(deepspeed_config=config)
    return accelerator(DistributedType.DEEPSPEED, deepspeed_plugin=plugin)


def arguments(**options) -> SimpleNamespace:
    return SimpleNamespace(**{"world_size": 2, "fsdp": None, "optim": "adamw_torch", **options})


def test_engines():
    plain = Engine.of(accelerator(DistributedType.MULTI_GPU))
    assert plain == Engine.of(accelerator(DistributedType.NO)) and not plain.shards_weights
    sharded = Engine.of(fsdp())
    assert (sharded.name, sharded.shards_weights, sharded.has_sharded_checkpoints) == ("FSDP2", True, True)
    assert not Engine.of(fsdp(states="FULL_STATE_DICT")).has_sharded_checkpoints
    stages = [Engine.of(deepspeed(zero_optimization={"stage": stage})) for stage in (1, 2, 3)]
    assert [stage.shards_weights for stage in stages] == [False, False, True]
    assert stages[2].name == "DeepSpeed ZeRO-3"


@pytest.mark.parametrize(
    ("made", "options", "message"),
    [
        (fsdp(version=1), {}, "FSDP1 is not supported.*fsdp_version: 2"),
        (fsdp(), {"optim": "paged_adamw_8bit"}, "paged_adamw_8bit.*bitsandbytes.*sharded.*adamw_torch_8bit"),
        (deepspeed(tensor_parallel={"autotp_size": 2}), {}, "autotp_size"),
        (deepspeed(zero_optimization={"stage": 3, "zero_quantized_weights": True}), {}, "zero_quantized_weights"),
        (accelerator(DistributedType.MEGATRON_LM), {}, "not supported: train with DDP, FSDP2 or DeepSpeed"),
    ],
)
def test_what_an_engine_cannot_do_is_refused(made, options, message):
    with pytest.raises(ValueError, match=message):
        check_engine(made, arguments(**options))


def test_what_an_engine_can_do_is_not_refused():
    for made in (fsdp(), deepspeed(zero_optimization={"stage": 3}), accelerator(DistributedType.MULTI_CPU)):
        check_engine(made, arguments(optim="adamw_torch_8bit"))
    check_engine(deepspeed(), arguments(optim="paged_adamw_8bit"))


def checkpoint(folder: Path, *files: str) -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


STATES = {
    "plain": ["model.safetensors", "optimizer.pt"],
    "full": ["pytorch_model_fsdp.bin", "optimizer.bin"],
    "sharded": ["pytorch_model_fsdp_0/.metadata", "optimizer_0/.metadata"],
    "zero2": ["global_step2/mp_rank_00_model_states.pt"]
    + [f"global_step2/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(2)],
    "zero3": [
        f"global_step2/zero_pp_rank_{rank}_mp_rank_00_{part}_states.pt"
        for rank in range(2)
        for part in ("model", "optim")
    ],
}
RUNS = {
    "plain": Engine(),
    "full": Engine("fsdp", 2),
    "sharded": Engine("fsdp", 2, True),
    "zero2": Engine("deepspeed", 2),
    "zero3": Engine("deepspeed", 3),
}


@pytest.mark.parametrize("written", STATES)
@pytest.mark.parametrize("here", RUNS)
def test_a_checkpoint_of_another_engine_is_refused(tmp_path, written, here):
    folder = checkpoint(tmp_path / "checkpoint-2", *STATES[written])
    if written == here:
        check_resumable(folder, RUNS[here], 2)
        return
    with pytest.raises(CheckpointError, match=r"was written by .*, and this training runs with"):
        check_resumable(folder, RUNS[here], 2)


def test_states_that_an_engine_cannot_read(tmp_path):
    weights = checkpoint(tmp_path / "weights", "model.safetensors")
    check_resumable(weights, RUNS["plain"], 2)
    for here in ("full", "sharded", "zero2"):
        with pytest.raises(CheckpointError, match="weights alone"):
            check_resumable(weights, RUNS[here], 2)
    with pytest.raises(CheckpointError, match=r"written by 2 process.*there are 4"):
        check_resumable(checkpoint(tmp_path / "zero", *STATES["zero2"]), RUNS["zero2"], 4)
