"""`forward` on the native decoder: masks, positions, selections of columns, caches."""

import copy

import pytest
import torch
from test_generation import prompts

from architectures import random_tokens
from hf_bitdistill import pack
from hf_bitdistill.modeling.cache_name import CACHE_NAME
from optimum.bitnet import BitNetCache, BitNetModelForCausalLM
from students import assert_close, make_student


pytestmark = pytest.mark.usefixtures("native_decoder")


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("model_type", ["llama", "gemma2", "smollm3"])
@torch.no_grad()
def test_padding_takes_no_part(pair, side, model_type):
    packed, native = pair(model_type)
    tokens, mask = prompts(side)
    logits = native(tokens, attention_mask=mask).logits
    assert logits.dtype == torch.float32 and not logits[mask == 0].any()
    for row in range(2):
        alone = packed(tokens[row][mask[row] == 1][None]).logits[0]
        assert_close(logits[row][mask[row] == 1], alone)
    assert_close(logits[mask == 1], packed(tokens, attention_mask=mask).logits[mask == 1])


@torch.no_grad()
def test_columns_kept(pair):
    _, native = pair()
    tokens, mask = prompts("left")
    every = native(tokens, attention_mask=mask).logits
    for keep in (1, 3, 20, torch.tensor([8, 2]), torch.tensor([-1])):
        some = native(tokens, attention_mask=mask, logits_to_keep=keep).logits
        expected = every[:, -keep:] if isinstance(keep, int) else every[:, keep]
        assert torch.equal(some, expected), keep
    # The last column is padding: its row's last real token counts.
    tokens, mask = prompts("right")
    last = native(tokens, attention_mask=mask, logits_to_keep=1).logits
    assert torch.equal(last[:, 0], native(tokens, attention_mask=mask).logits[torch.arange(2), [8, 4]])


@torch.no_grad()
def test_loss_and_tuples(pair):
    packed, native = pair()
    tokens, mask = prompts("right")
    labels = tokens.masked_fill(mask == 0, -100)
    ours, theirs = (model(tokens, attention_mask=mask, labels=labels) for model in (native, packed))
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-3, atol=1e-3)
    assert getattr(native(tokens, use_cache=False), CACHE_NAME) is None
    logits, cache = native(tokens, return_dict=False)
    assert logits.shape == (2, 9, 96) and isinstance(cache, BitNetCache)


@torch.no_grad()
def test_a_cache_remembers_padding(pair):
    _, native = pair()
    tokens, mask = prompts("right")
    more = random_tokens(2, 4, seed=3)
    whole, full_mask = torch.cat([tokens, more], 1), torch.cat([mask, torch.ones_like(more)], 1)
    expected = native(whole, attention_mask=full_mask).logits
    first = native(tokens, attention_mask=mask)
    cache = first[CACHE_NAME]
    assert cache.get_seq_length() == 9 and cache.native.lengths == [9, 5]
    assert_close(native(more, attention_mask=full_mask, cache=cache).logits, expected[:, 9:])
    # The older name of the argument and of the output.
    again = native(tokens, attention_mask=mask).past_key_values
    assert_close(native(more, attention_mask=full_mask, past_key_values=again).logits, expected[:, 9:])
    # Cropping into and beyond the padding.
    cache.crop(-6)
    assert cache.get_seq_length() == 7 and cache.native.lengths == [7, 5]
    cache.crop(-3)
    assert cache.native.lengths == [4, 4]
    rest, rest_mask = whole[:, 4:], full_mask
    assert_close(native(rest, attention_mask=rest_mask, cache=cache).logits, expected[:, 4:])
    # Rows change places.
    cache.batch_repeat_interleave(2)
    assert cache.batch_size == 4 and cache.native.lengths == [13, 13, 9, 9]
    cache.batch_select_indices(torch.tensor([3, 0]))
    assert cache.native.lengths == [9, 13] and torch.equal(cache.real, full_mask.bool()[[1, 0]])
    cache.batch_select_indices(torch.tensor([False, True]))
    new = native(more[:1], cache=cache).logits
    assert_close(new, native(torch.cat([whole[:1], more[:1]], 1)).logits[:, 13:])
    cache.reset()
    assert cache.get_seq_length() == 0 and not cache.is_initialized
    assert_close(native(tokens, attention_mask=mask, cache=cache).logits, expected[:, :9])


def test_inputs_that_contradict_each_other(pair):
    packed, native = pair()
    tokens, mask = prompts("left")
    good = mask.cumsum(1) - 1
    native(tokens, attention_mask=mask, position_ids=good)
    with pytest.raises(ValueError, match="position_ids disagree"):
        native(tokens, attention_mask=mask, position_ids=torch.arange(9)[None])
    with pytest.raises(ValueError, match=r"attention_mask has shape \[2, 8\], expected \[2, 9\]"):
        native(tokens, attention_mask=mask[:, 1:])
    with pytest.raises(ValueError, match="zeros and ones"):
        native(tokens, attention_mask=mask * 0.5)
    with pytest.raises(ValueError, match=r"expected \[2, 9\]"):
        native(tokens, attention_mask=mask[:, None, None])
    with pytest.raises(ValueError, match="takes input_ids"):
        native(attention_mask=mask)
    with pytest.raises(ValueError, match="inputs_embeds"):
        native(inputs_embeds=torch.zeros(1, 2, 48))
    cache = native(tokens, attention_mask=mask)[CACHE_NAME]
    changed = torch.ones(2, 10)
    with pytest.raises(ValueError, match="hides or shows other past tokens"):
        native(tokens[:, :1], attention_mask=changed, cache=cache)
    with pytest.raises(ValueError, match="holds 2 rows, input_ids has 1"):
        native(tokens[:1, :1], cache=cache)
    with pytest.raises(ValueError, match="cache of another model"):
        pair("qwen2")[1](tokens[:, :1], cache=cache)
    with pytest.raises(ValueError, match="two names of one argument"):
        native(tokens[:, :1], cache=cache, past_key_values=cache)
    with pytest.raises(ValueError, match="minus the number"):
        cache.crop(3)
    with pytest.raises(TypeError, match="cannot be copied"):
        copy.deepcopy(cache)
    with pytest.raises(TypeError, match="belongs to a native decoder"):
        packed(tokens[:, :1], **{CACHE_NAME: cache})
    with pytest.raises(IndexError, match="token id 96"):
        native(torch.tensor([[96]]))
    assert cache.native.lengths == [9, 5]


def test_what_a_packed_model_is_not(pair):
    _, native = pair()
    assert native.to("cpu") is native and native.to(torch.float32) is native and native.eval() is native
    with pytest.raises(ValueError, match="CPU"):
        native.to("cuda")
    with pytest.raises(ValueError, match="not trainable"):
        native.train()
    assert native.device.type == "cpu" and native.dtype == torch.float32 and native.can_generate()


@torch.no_grad()
def test_padding_predicts_nothing(pair):
    """The loss of rows that are padded on the left is that of the rows themselves."""
    _, native = pair()
    tokens, mask = prompts("left")
    labels = tokens.masked_fill(mask == 0, -100)
    total = count = 0
    for row, kept in zip(tokens, mask.bool(), strict=True):
        alone = row[kept][None]
        total += native(alone, labels=alone).loss * (alone.shape[1] - 1)
        count += alone.shape[1] - 1
    before = labels.clone()
    torch.testing.assert_close(
        native(tokens, attention_mask=mask, labels=labels).loss, total / count, rtol=1e-5, atol=1e-5
    )
    assert torch.equal(labels, before)


@torch.no_grad()
def test_numbers_that_the_cache_cannot_hold(tmp_path):
    """Values above 65504 are infinite in float16: no token is chosen by what comes of them."""
    student = make_student("llama")
    student.model.layers[0].self_attn.v_proj.weight.mul_(1e8)
    pack(student).save_pretrained(tmp_path)
    tokens = random_tokens(1, 7)
    native = BitNetModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(FloatingPointError, match=r"too large for a cache in float16 .kv_dtype='float32'"):
        native.generate(tokens, max_new_tokens=2)
    native = BitNetModelForCausalLM.from_pretrained(tmp_path, kv_dtype="float32")
    assert torch.isfinite(native(tokens).logits).all()
