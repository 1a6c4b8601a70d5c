"""Bytes that are counted on fake tensors are those of real ones; what a micro batch takes grows as it should."""

import gc

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import LlamaConfig, Qwen3MoeConfig

from hf_bitdistill import BitNetConfig
from hf_bitdistill.scale.live_bytes import LiveBytes
from hf_bitdistill.scale.micro_step import Losses, MicroBatch, Precision, micro_step
from hf_bitdistill.scale.shapes import Shape


LAYERS = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2
)  # fmt: skip
MIXTURE = Qwen3MoeConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, num_experts=4, num_experts_per_tok=1,
)  # fmt: skip


def test_live_bytes():
    def work() -> tuple[int, int, int]:
        weight = torch.zeros(100, 10, requires_grad=True)
        with LiveBytes() as live:
            with live.part() as forward:
                y = (weight * 2.0).exp().view(-1)  # the product is let go, a view is no copy
            with live.part() as backward:
                y.sum().backward()
            del y
        gc.collect()
        return forward.peak, forward.kept, backward.kept, live.now

    real = work()
    with FakeTensorMode():
        assert work() == real
    # Twice 4000 bytes, then one of them; in the end the gradient.
    assert real[:2] == (8000, 4000) and real[3] == 4000


def test_memory_grows_with_layers_rows_and_experts():
    """What is told by two layers and few experts is what all of them take."""
    batch, losses = MicroBatch(2, 16, 16, Precision(), False, "cpu"), Losses()
    for config, name in ((LAYERS, "layers"), (MIXTURE, "experts")):
        few, whole = Shape(config, BitNetConfig()), Shape(config, BitNetConfig())
        assert few.counted_depths == (1, 2)
        if name == "experts":
            assert few.counted_experts == (1, 2) and few.experts == 4
            whole._expert_key = None
        whole.is_uniform = False
        assert whole.counted_depths == (config.num_hidden_layers,) and whole.counted_experts == (None,)
        found, wanted = (micro_step(shape, batch, losses) for shape in (few, whole))
        assert abs(found.kept / wanted.kept - 1) < (0.02 if name == "layers" else 0.1), name
        assert found.relations == wanted.relations and found.logits == wanted.logits


def test_codes_that_were_gathered_are_not_kept():
    """Nothing of a weight is; but each product has its own input, where layers otherwise share one. Scales of groups cannot leave the product,
    whose weight is kept then."""
    for precision, itemsize in ((Precision(), 4), (Precision(autocast=True), 2)):
        for granularity in ("tensor", "row", "group"):
            shape = Shape(LAYERS, BitNetConfig(weight_granularity=granularity))
            whole, gathered = (
                micro_step(shape, MicroBatch(2, 16, 16, precision, False, "cpu", with_codes), Losses())
                for with_codes in (False, True)
            )
            share = (whole.kept - gathered.kept) / (itemsize * shape.weights.ternary)
            assert share == 0 if granularity == "group" else 0.5 < share <= 1, (granularity, share)


def test_a_teacher_of_another_shape():
    """What it leaves and takes are those of a plan in which it is the student too, and the student's own are as they were."""
    wider = LlamaConfig(
        **{**LAYERS.to_dict(), "hidden_size": 64, "head_dim": 16, "num_hidden_layers": 6, "vocab_size": 80}
    )
    batch, losses = MicroBatch(2, 16, 16, Precision(), False, "cpu"), Losses(hidden=False)
    alone = micro_step(Shape(LAYERS, BitNetConfig()), batch, losses)
    large = micro_step(Shape(wider, BitNetConfig()), batch, losses)
    both = micro_step(Shape(LAYERS, BitNetConfig(), wider), batch, losses)
    assert (both.teacher, both.teacher_peak) == (large.teacher, large.teacher_peak)
    assert (both.kept, both.forward, both.backward) == (alone.kept, alone.forward, alone.backward)
    assert both.whole_logits == 4 * 2 * 16 * (2 * 64 + 80)
    assert alone.logits < both.logits and alone.relations <= both.relations


def test_whole_logits():
    """A chunk of tokens beside three times the logits, however many there are."""
    shape = Shape(LAYERS, BitNetConfig())
    found = [micro_step(shape, MicroBatch(rows, 256, 256, Precision(), False), Losses()) for rows in (2, 4)]
    assert [step.whole_logits for step in found] == [3 * 4 * rows * 256 * 64 for rows in (2, 4)]
    extra = [step.whole_losses - step.whole_logits for step in found]
    assert extra[0] == extra[1] > 3 * 4 * 256 * 64


def test_checkpointing_and_precision():
    shape = Shape(LAYERS, BitNetConfig())

    def step(precision, checkpointing=False, losses=None):
        return micro_step(shape, MicroBatch(2, 16, 8, precision, checkpointing), losses or Losses())

    single = Precision()
    whole, again = step(single), step(single, checkpointing=True)
    assert again.kept < whole.kept / 5 and again.backward > whole.backward
    half = step(Precision(False, torch.bfloat16, torch.bfloat16))
    assert half.kept < 0.8 * whole.kept and half.whole_logits == whole.whole_logits / 2
    alone = step(single, losses=Losses(False, False, False))
    assert alone.teacher_peak == alone.relations == alone.hidden == 0 and alone.kept <= whole.kept


def test_weights():
    weights = Shape(MIXTURE, BitNetConfig(weight_granularity="row")).weights
    expert = 3 * 16 * 32
    attention = (4 + 2 + 2 + 4) * 8 * 32
    assert weights.largest_ternary == 4 * expert + attention and weights.ternary == 3 * weights.largest_ternary
    assert weights.embedding == weights.head == 64 * 32
    # SubLNs, which the teacher has none of: of output projections.
    assert weights.all - weights.teacher == 3 * (4 * 16 + 32)
    assert weights.scales == 3 * (4 * (16 + 16 + 32) + (32 + 16 + 16 + 32))
    assert Shape(LlamaConfig(**{**LAYERS.to_dict(), "tie_word_embeddings": True}), BitNetConfig()).weights.head == 0
