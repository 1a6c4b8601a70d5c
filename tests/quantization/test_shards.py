import pytest
import torch

from hf_bitdistill.quantization import (
    GatheredWeight,
    ShardLayout,
    absmean_scale,
    expand_weight_scale,
    fake_quantized_linear,
    leaking_linear,
    leaking_weight,
    mixed_linear,
    mixed_weight,
    row_sums,
    scale_of_row_sums,
    ternarize,
    ternary_codes,
)


SHAPES = [(1, 1), (1, 5000), (3, 7), (4, 64), (10, 130), (4100, 3)]
GRANULARITIES = [("tensor", None), ("row", None), ("group", 64)]


def gathered(weight, processes: int, granularity: str, group_size: int | None):
    """Layout, what all processes send together, and the scale where there is one."""
    layout = ShardLayout(*weight.shape, processes, granularity, group_size)
    shards = [weight[layout.first_row(n) : layout.first_row(n + 1)] for n in range(processes)]
    scale = None
    if granularity == "tensor":
        scale = scale_of_row_sums(torch.cat([row_sums(shard.abs()) for shard in shards]), weight.shape[1])
    sent = [
        layout.pack(shard, absmean_scale(shard, granularity, group_size) if scale is None else scale)
        for shard in shards
    ]
    assert {len(part) for part in sent} == {layout.code_bytes + 4 * layout.scales}
    return layout, torch.cat(sent), scale


@pytest.mark.parametrize("processes", [1, 2, 3, 5, 8])
@pytest.mark.parametrize(("granularity", "group_size"), GRANULARITIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_and_scales_of_any_number_of_shards(shape, granularity, group_size, processes):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    layout, sent, scale = gathered(weight, processes, granularity, group_size)
    packed, scales = layout.split(sent)
    codes, expected_scale = ternarize(weight, granularity, group_size)
    assert torch.equal(scale if scales is None else scales, expected_scale)
    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        assert torch.equal(layout.unpacked(packed, dtype).float(), codes)


def test_five_codes_a_byte_and_a_scale_a_group():
    assert ShardLayout(512, 1024, 8, "tensor", None).code_bytes == -(-512 // 8 * 1024 // 5)
    layout = ShardLayout(512, 1024, 8, "group", 64)
    assert layout.scales == 64 * 16


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("scale_gradient", [False, True])
@pytest.mark.parametrize(
    ("linear", "own"),
    [
        (fake_quantized_linear, {}),
        (leaking_linear, {"leak": torch.tensor(0.25)}),
        (mixed_linear, {"share": torch.tensor(0.5)}),
    ],
)
@pytest.mark.parametrize(("granularity", "group_size"), GRANULARITIES)
def test_the_product_is_that_of_the_latent_weight(granularity, group_size, linear, own, scale_gradient, half):
    """Bit for bit, and so are its gradients, a row of zeros and zeros in others included."""
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(9, 130, generator=generator), torch.randn(4, 130, generator=generator)
    weight[2], weight[:, 5] = 0.0, 0.0
    grad = torch.randn(4, 9, generator=generator)
    options = {"granularity": granularity, "group_size": group_size, **own}
    if linear is not mixed_linear:
        options["scale_gradient"] = scale_gradient

    latent, its_x = weight.clone().requires_grad_(), x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        expected = linear(its_x, latent, **options)
    expected.backward(grad.to(expected.dtype))

    layout, sent, scale = gathered(weight, 2, granularity, group_size)
    packed, scales = layout.split(sent)
    scale = scales if scale is None else scale
    codes, divisor = ternary_codes(weight, scale, group_size), expand_weight_scale(scale, 130, group_size)
    held = codes
    if linear is mixed_linear:
        held = mixed_weight(weight, codes, divisor, **own)
    elif linear is leaking_linear:
        held = leaking_weight(weight, codes, divisor, **own)
    signs = torch.stack([layout.pack_codes(part.sign()) for part in (weight[:5], weight[5:])])
    what = GatheredWeight(layout, scale, packed, held is not codes, signs if scale_gradient else None)
    parameter, our_x = held.clone().requires_grad_(), x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        found = linear(our_x, parameter, gathered=what, **options)
    found.backward(grad.to(found.dtype))

    assert torch.equal(found, expected)
    assert torch.equal(our_x.grad, its_x.grad) and torch.equal(parameter.grad, latent.grad)
