"""The gradient of a table that embedding and output layer share: the bits that autograd gives, in one table's memory."""

import pytest
import torch
from torch import nn

from architectures import random_tokens, tiny_model
from hf_bitdistill.scale.live_bytes import LiveBytes
from hf_bitdistill.training.losses.head_losses import HeadPlan, TokenWeights, head_token_losses
from hf_bitdistill.training.losses.head_tap import HeadTap
from hf_bitdistill.training.losses.logits_tail import LogitsTail
from hf_bitdistill.training.losses.tied_table import TiedTable
from hf_bitdistill.training.losses.token_losses import TokenLosses


ROWS, WIDTH = 4001, 64


def make(dtype=torch.float32, padding_idx=None):
    torch.manual_seed(0)
    table = nn.Embedding(ROWS, WIDTH, padding_idx=padding_idx, dtype=dtype)
    ids = torch.randint(12, (3, 40))  # each many times
    ids[0, :5] = torch.tensor([ROWS - 1, 3, 3, 0, 7])
    return table, ids, torch.randint(ROWS, (ids.numel(),))


def losses_of(table, ids, labels, tied, weight=None):
    """A loss of the output layer, from states that come of the lookup."""
    rows = table(ids) if tied is None else tied.rows
    states = torch.tanh(rows).flatten(0, 1)
    plan = HeadPlan(states.dtype, LogitsTail(), TokenWeights(), 4, 2)
    weight = table.weight if weight is None else weight
    cross_entropy, _, tie = head_token_losses(states, weight, None, labels, TokenLosses(), plan, tied)
    return cross_entropy / len(labels) + tie, rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("padding_idx", [None, 3])
def test_the_gradient_is_autograds(dtype, padding_idx):
    """Bit for bit, accumulated over micro-batches, and where other losses read the lookup too, or alone."""
    found = []
    for is_tied in (False, True):
        table, ids, labels = make(dtype, padding_idx)
        for part in range(3):
            tied = TiedTable.of(table, (ids,), {}, table) if is_tied else None
            loss, rows = losses_of(table, ids, labels, tied)
            other = (rows.square() * torch.arange(WIDTH)).sum()
            (loss if part == 0 else other if part == 1 else loss + other).backward()
        found.append(table.weight.grad)
    assert torch.equal(*found)
    assert padding_idx is None or found[0].abs().sum() > 0


def test_no_ids_at_all():
    table, _, _ = make()
    tied = TiedTable.of(table, (torch.zeros(0, 2, dtype=torch.long),), {}, table)
    tied.rows.sum().backward()
    assert torch.equal(table.weight.grad, torch.zeros(ROWS, WIDTH))


def test_one_gradient_for_hooks():
    """Whoever hooks the parameter sees the whole gradient, once."""
    table, ids, labels = make()
    seen = []
    table.weight.register_hook(lambda gradient: seen.append(gradient.clone()))
    table.weight.register_post_accumulate_grad_hook(lambda weight: seen.append(weight.grad.clone()))
    losses_of(table, ids, labels, TiedTable.of(table, (ids,), {}, table))[0].backward()
    assert len(seen) == 2 and torch.equal(*seen) and torch.equal(seen[0], table.weight.grad)


def test_a_pass_that_wants_nothing_of_the_table_leaves_nothing():
    table, ids, labels = make()
    tied = TiedTable.of(table, (ids,), {}, table)
    loss, rows = losses_of(table, ids, labels, tied)
    torch.autograd.grad(loss, rows, retain_graph=True)  # (the output layer's gradient of the table is nobody's)
    rows.sum().backward()
    expected = torch.zeros(ROWS, WIDTH).index_add_(0, ids.flatten(), torch.ones(ids.numel(), WIDTH))
    assert torch.equal(table.weight.grad, expected)


def test_gradients_of_the_table_alone():
    table, ids, labels = make()
    expected = torch.autograd.grad(losses_of(table, ids, labels, None)[0], table.weight)
    tied = TiedTable.of(table, (ids,), {}, table)
    assert torch.equal(torch.autograd.grad(losses_of(table, ids, labels, tied)[0], table.weight)[0], expected[0])


class Doubling(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids) * 2


def test_who_is_left_to_autograd():
    table, ids, _ = make()
    assert TiedTable.of(table, (ids,), {}, table) is not None
    others = [
        nn.Embedding(ROWS, WIDTH),  # not tied
        Doubling(ROWS, WIDTH),
        nn.Embedding(ROWS, WIDTH, sparse=True),
        nn.Embedding(ROWS, WIDTH, scale_grad_by_freq=True),
        nn.Embedding(ROWS, WIDTH, max_norm=1.0),
        nn.Embedding(ROWS, WIDTH).bfloat16(),
        nn.Embedding(ROWS, WIDTH).requires_grad_(False),
    ]
    assert TiedTable.of(others[0], (ids,), {}, table) is None
    assert all(TiedTable.of(other, (ids,), {}, other) is None for other in others[1:])
    assert TiedTable.of(table, (), {"input": ids}, table) is None
    with torch.no_grad():
        assert TiedTable.of(table, (ids,), {}, table) is None


def test_another_weight_than_the_lookups_has_its_own_gradient():
    table, ids, labels = make()
    tied = TiedTable.of(table, (ids,), {}, table)
    other = nn.Parameter(table.weight.detach().clone())
    losses_of(table, ids, labels, tied, other)[0].backward()
    assert other.grad is not None and table.weight.grad[100:4000].abs().sum() == 0


def test_hooks_on_the_embedding_still_change_what_was_looked_up():
    """As NEFTune adds noise."""
    model = tiny_model("llama", tie_word_embeddings=True)
    handle = model.get_input_embeddings().register_forward_hook(lambda module, args, output: output * 3)
    ids, seen = random_tokens(2, 5), []
    tap = HeadTap(model, is_derived=True)
    with tap.taking(lambda states, head, products: seen.append((tap.tied, states))):
        model(ids)
    handle.remove()
    assert seen[0][0] is not None and tap.tied is None
    expected = model.model(inputs_embeds=model.get_input_embeddings()(ids) * 3).last_hidden_state
    assert torch.equal(seen[0][1], expected)
    assert not model.get_input_embeddings()._forward_hooks


def test_a_second_lookup_has_its_own_gradient():
    model = tiny_model("llama", tie_word_embeddings=True)
    tap = HeadTap(model, is_derived=True)
    embedding, ids = model.get_input_embeddings(), random_tokens(2, 5)
    with tap.taking(lambda *_: None):
        first, second = embedding(ids), embedding(ids)
        assert tap.tied.rows is first and second is not first
        (first + second).sum().backward()
    assert torch.equal(embedding.weight.grad.sum(), torch.tensor(2.0 * first.numel()))


@pytest.mark.parametrize("has_gradient", [False, True])
def test_one_more_table_is_all_that_a_step_takes(has_gradient):
    """Bytes counted: above what is there, at most the gradient of the output layer, and what does not grow with the table."""
    bytes_of_table = ROWS * WIDTH * 4
    peaks = []
    for is_tied in (True, False):
        table, ids, labels = make()
        if has_gradient:
            table.weight.grad = torch.zeros_like(table.weight)
        with LiveBytes() as live, live.part() as step:
            tied = TiedTable.of(table, (ids,), {}, table) if is_tied else None
            losses_of(table, ids, labels, tied)[0].backward()
        peaks.append(step.peak)
    products = 4 * ROWS * 4  # of a chunk of tokens; their softmaxes are no larger
    assert peaks[0] < bytes_of_table + 6 * products < 1.5 * bytes_of_table
    assert peaks[1] > 2 * bytes_of_table
