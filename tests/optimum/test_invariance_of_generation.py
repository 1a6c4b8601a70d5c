"""Greedy decoding on the native decoder is one thing, token for token and bit for bit: alone, in any batch and padding, cut in any way, with
prompt lookup and with an assistant."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from architectures import VOCAB_SIZE
from hf_bitdistill import BitNetConfig, apply_bitnet, pack
from hf_bitdistill.architectures import NATIVE
from hf_bitdistill.modeling.cache_name import CACHE_NAME
from optimum.bitnet import BitNetModelForCausalLM


pytestmark = pytest.mark.usefixtures("native_decoder")

NEW_TOKENS = 16


def greedy(model, tokens, new_tokens=NEW_TOKENS, **options):
    """New tokens `[B, n]` and their logits `[B, n, vocab_size]`."""
    out = model.generate(
        tokens,
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )
    return out.sequences[:, tokens.shape[1] :], torch.stack(out.logits, dim=1)


def text(count, seed, vocab_size=VOCAB_SIZE):
    """Random tokens that repeat, so that prompt lookup finds something."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, vocab_size, (max(2, count // 3),), generator=generator).repeat(4)[:count]


def padded(rows, side):
    width = max(len(row) for row in rows)
    tokens, mask = torch.zeros(len(rows), width, dtype=torch.int64), torch.zeros(len(rows), width, dtype=torch.int64)
    for number, row in enumerate(rows):
        columns = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        tokens[number, columns], mask[number, columns] = row, 1
    return tokens, mask


def check(model, assistants, vocab_size=VOCAB_SIZE):
    rows = [text(count, count, vocab_size) for count in (17, 5, 30)]
    alone = [greedy(model, row[None]) for row in rows]

    def equal(got, number, row=0):
        assert got[0][row].tolist() == alone[number][0][0].tolist()
        assert torch.equal(got[1][row], alone[number][1][0])

    for side in ("left", "right"):
        tokens, mask = padded(rows, side)
        together = greedy(model, tokens, attention_mask=mask)
        for number in range(len(rows)):
            equal(together, number, number)
    for number, row in enumerate(rows):
        equal(greedy(model, row[None], prompt_lookup_num_tokens=5), number)
        adaptive = {"prompt_lookup_num_tokens": 10, "num_assistant_tokens_schedule": "heuristic"}
        equal(greedy(model, row[None], **adaptive), number)
    for assistant in assistants:
        equal(greedy(model, rows[0][None], assistant_model=assistant), 0)


@pytest.mark.parametrize("model_type", sorted(NATIVE))
def test_greedy_decoding_is_one_thing(pair, tmp_path, model_type):
    pair(model_type, max_position_embeddings=96)
    model = BitNetModelForCausalLM.from_pretrained(tmp_path / model_type)
    _, stranger = pair("qwen2" if model_type == "llama" else "llama", max_position_embeddings=96)
    check(model, [model, stranger])


def test_a_trained_model(shared_dir, tmp_path):
    student = apply_bitnet(AutoModelForCausalLM.from_pretrained(shared_dir / "models" / "stories260K"), BitNetConfig())
    pack(student).save_pretrained(tmp_path)
    model = BitNetModelForCausalLM.from_pretrained(tmp_path)
    check(model, [model], student.config.vocab_size)
    tokens = text(350, 1, student.config.vocab_size)[None]
    prompt = model(tokens).logits[0]
    cache, rows = None, []
    for token in tokens[0]:
        out = model(token[None, None], cache=cache)
        cache = getattr(out, CACHE_NAME)
        rows.append(out.logits[0, 0])
    assert torch.equal(torch.stack(rows), prompt)
