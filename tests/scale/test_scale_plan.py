"""`bitdistill run --plan` for machines that are not at hand."""

import dataclasses
import json
import re

import pytest
from transformers import LlamaConfig

from hf_bitdistill.cli.main import main
from hf_bitdistill.scale.engine_memory import ENGINES, MOMENTS, PARTS, Training, memory, wire
from hf_bitdistill.scale.memory_plan import Row, _Planner
from hf_bitdistill.scale.micro_step import Losses, MicroStep
from hf_bitdistill.scale.shapes import Weights


WEIGHTS = Weights(1_000_000, 0, 100_000, 100_000, 100_000, 0, 0, 1_200_000, 100_000, 100_000, 100_000)
STEP = MicroStep(10, 20, 1_000_000, 30, 40, 50, 60, 300, 350, 70, 80)
BY_NAME = {engine.name: engine for engine in ENGINES}


def found(name, processes=4, accumulation=1, bf16=False, checkpointing=True):
    return memory(BY_NAME[name], WEIGHTS, STEP, Training(processes, 1, accumulation, bf16, checkpointing), 100)


def test_shares():
    """Persistent parts at the optimizer's step, in bytes a weight."""
    weights = WEIGHTS.all
    wanted = {
        # latents and what is computed with, optimizer, teacher
        ("DDP", True): (4, 8, 4),
        ("FSDP2", True): (1, 2, 1),
        ("ZeRO-1", False): (4 + 1, 2, 4),
        ("ZeRO-2", True): (2 + 1, 2, 2),
        ("ZeRO-3", True): (0.5 + 1, 2, 0.5),
        ("ZeRO-3", False): (1 + 1, 2, 1),
    }
    for (name, bf16), bytes_a_weight in wanted.items():
        result = found(name, bf16=bf16)
        assert set(result.parts) == set(PARTS) and set(result.moments) == set(MOMENTS)
        assert result.total == sum(result.parts.values()) == max(result.moments.values())
        if result.moment != "setup":
            for part, number in zip(("latents", "optimizer", "teacher"), bytes_a_weight, strict=True):
                assert result.parts[part] == pytest.approx(number * weights, rel=1e-3), (name, part)


def test_one_process_gathers_nothing():
    assert found("DDP", processes=1).parts["gathered"] == 0
    assert found("DDP").parts["gathered"] == 4 * WEIGHTS.all


def test_logits_are_whole_under_zero_3_alone():
    large = MicroStep(0, 0, 0, 0, 0, 50_000_000, 0, 70_000_000, 90_000_000, 0, 0)
    training = Training(4, 1, 1, False, False)
    for name, engine in BY_NAME.items():
        result = memory(dataclasses.replace(engine, bucket=0), WEIGHTS, large, training, 100)
        assert result.moment == "logits"
        assert result.parts["logits"] == (90_000_000 if name == "ZeRO-3" else 50_000_000), name


def test_a_teacher_of_another_shape():
    """Its weights and tables, and that it computes nothing of the student's size."""
    weights = dataclasses.replace(
        WEIGHTS, teacher=5_000_000, teacher_layer=500_000, teacher_embedding=400_000, teacher_head=0
    )
    training = Training(4, 1, 1, False, True)
    for name, share in (("DDP", 1), ("FSDP2", 4), ("ZeRO-3", 4)):
        alike, larger = (memory(BY_NAME[name], each, STEP, training, 100) for each in (WEIGHTS, weights))
        for moment in ("optimizer", "losses"):
            assert larger.moments[moment] - alike.moments[moment] == 4 * (5_000_000 - 1_200_000) // share
    alike, larger = (memory(BY_NAME["FSDP2"], each, STEP, training, 100).moments for each in (WEIGHTS, weights))
    of_shares = 3_800_000
    # Its output layer is there while the student's losses are taken; it is tied, so that its table is there with two layers.
    assert larger["logits"] - alike["logits"] == of_shares + 4 * (400_000 - 100_000)
    assert larger["teacher"] - alike["teacher"] == of_shares + 4 * (2 * 500_000 + 400_000) - 4 * 2 * 100_000
    sent = [wire(BY_NAME["FSDP2"], each, training).teacher for each in (WEIGHTS, weights)]
    assert sent[1] / sent[0] == pytest.approx(5 / 1.2)


def test_the_teachers_configuration_is_read(config, tmp_path, capsys):
    teacher, place = tmp_path / "teacher", tmp_path / "plan.json"
    LlamaConfig(
        vocab_size=520, hidden_size=128, intermediate_size=192, num_hidden_layers=5, num_attention_heads=4, tie_word_embeddings=True
    ).save_pretrained(teacher)  # fmt: skip
    options = [
        "--gpus",
        "2",
        "--gpu_memory",
        "1",
        "--max_length",
        "32",
        "--batch_size",
        "2",
        "--output_file",
        str(place),
    ]
    assert run(config, *options, "--teacher", str(teacher / "config.json")) == 0
    plan = json.loads(place.read_text())
    layer, table = 4 * 128 * 128 + 3 * 128 * 192 + 2 * 128, 520 * 128
    assert plan["weights"]["teacher_layer"] == layer and plan["weights"]["teacher"] == 5 * layer + table + 128
    assert (plan["weights"]["teacher_embedding"], plan["weights"]["teacher_head"]) == (table, 0)
    first = plan["engines"][0]
    assert first["engine"] == "DDP" and first["bytes"]["teacher"] == 4 * plan["weights"]["teacher"]
    # Two a weight and token of the teacher, six of the student.
    assert first["operations"] == 32 * (6 * plan["weights"]["all"] + 2 * plan["weights"]["teacher"])


def test_bytes_on_the_wire():
    training = Training(4, 1, 2, True, False)
    ddp, fsdp = wire(BY_NAME["DDP"], WEIGHTS, training), wire(BY_NAME["FSDP2"], WEIGHTS, training)
    # An all-reduce once a step: three quarters of the gradients, twice.
    assert ddp.total == 2 * 0.75 * 4 * WEIGHTS.all
    # Twice each of two micro batches, a fifth of a byte each.
    assert fsdp.ternary == pytest.approx(2 * 2 * 0.75 * 0.2 * WEIGHTS.ternary)
    assert fsdp.ternary_bfloat16 == pytest.approx(10 * fsdp.ternary)
    assert fsdp.teacher == 2 * 0.75 * 4 * WEIGHTS.teacher
    assert wire(BY_NAME["DDP"], WEIGHTS, Training(1, 1, 2, True, False)).total == 0


def test_the_largest_micro_batch_that_fits():
    class Planner(_Planner):
        tried: list[int]

        def _try(self, engine, checkpointing, rows, micro):
            self.tried.append(micro)
            training = Training(4, micro, rows // micro, False, checkpointing)
            return Row(engine, training, found("DDP"), wire(engine, WEIGHTS, training), micro <= limit, 0.0)

    for limit, wanted in ((0, 1), (1, 1), (5, 4), (12, 12), (99, 24)):
        planner = Planner(None, None, Losses(), 4, False, 0.0)
        planner.tried = []
        row = planner.row(ENGINES[0], False, 24)
        assert (row.training.micro, row.training.accumulation) == (wanted, 24 // wanted)
        assert row.fits == (limit > 0) and len(planner.tried) <= 4


def test_price():
    """Computing twice is worth it where it saves much to send; rounded weights never are."""

    def row(name, checkpointing, accumulation):
        training = Training(8, 1, accumulation, True, checkpointing)
        sent = wire(BY_NAME[name], WEIGHTS, training)
        return Row(BY_NAME[name], training, found(name), sent, True, 1e6 * (10 if checkpointing else 8))

    assert row("FSDP2", False, 1).price < row("FSDP2", True, 1).price < row("FSDP2", False, 8).price
    assert row("ZeRO-1", False, 1).price > row("FSDP2", True, 8).price


@pytest.fixture
def config(tmp_path):
    """A configuration without weights."""
    LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2
    ).save_pretrained(tmp_path / "shape")  # fmt: skip
    return tmp_path / "shape" / "config.json"


def run(config, *options):
    return main(["run", "--model", str(config), "--plan", *options])


def test_command(config, tmp_path, capsys):
    place = tmp_path / "plan.json"
    memory = ["--gpu_memory", "0.004", "--max_length", "32", "--batch_size", "4"]
    assert (
        run(config, "--nodes", "2", "--gpus", "2", *memory, "--tokens_per_second", "100", "--output_file", str(place))
        == 0
    )
    out = capsys.readouterr().out
    assert "cheapest that fits" in out and all(engine.name in out for engine in ENGINES)
    plan = json.loads(place.read_text())
    assert plan["cheapest"] is not None and len(plan["engines"]) == 10 and plan["batch_size"] == 4
    # Two processes of a machine, two models each.
    assert plan["host_bytes"] == 2 * 4 * (plan["weights"]["all"] + plan["weights"]["teacher"])
    assert f"{plan['host_bytes'] / 1e9:.1f} GB of a machine's memory" in out
    fitting = [row for row in plan["engines"] if row["fits"]]
    assert all(row["bytes"]["at once"] <= plan["usable_bytes"] for row in fitting)
    # No weight is rounded where that can be had.
    exact = [row for row in fitting if not row["engine"].startswith("ZeRO")]
    assert plan["cheapest"].startswith("ZeRO") != bool(exact)
    again, once = (row["operations"] for row in plan["engines"][1::-1])
    assert again == 1.25 * once
    for row in plan["engines"]:
        assert row["micro"] * row["accumulation"] * row["processes"] == 4
    tokens = plan["data"]["tokens"]
    assert tokens == 32 * 4 * (6400 // 4 + 6400 // 4) and plan["seconds"] == pytest.approx(tokens / 400)
    assert not (tmp_path / "stages").exists()


FEW = ["--batch_size", "1", "--attention_loss_weight", "0", "--hidden_loss_weight", "0"]


def test_nothing_fits(config, capsys):
    assert run(config, "--gpus", "1", "--gpu_memory", "0.001", "--max_length", "32", *FEW) == 1
    captured = capsys.readouterr()
    assert "nothing fits: the least is" in captured.err and "or for GPUs of" in captured.err
    assert "!" in captured.out


@pytest.mark.parametrize(
    "options,what",
    [
        (["--gpus", "3", "--gpu_memory", "80"], r"16 examples a step cannot be shared .* 3 GPUs: set --batch_size 18 \(or 15\)"),
        (["--gpus", "8"], "--gpu_memory is required"),
        (["--nodes", "2", "--gpu_memory", "80"], "--gpus is required"),
        (["--gpus", "8", "--gpu_memory", "-1"], "gpu_memory must be positive"),
    ],
)  # fmt: skip
def test_refusals(config, options, what, capsys):
    assert run(config, *options) == 1
    assert re.search(what, capsys.readouterr().err)


def test_only_with_plan(config, capsys):
    assert main(["run", "--model", str(config), "--gpus", "8"]) == 1
    assert "--gpus belongs to --plan" in capsys.readouterr().err
