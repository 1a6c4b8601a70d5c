"""A row of the native decoder's logits is the same bit for bit, however its text is cut, whatever texts are computed beside it, on any number
of threads and with every instruction set."""

import pytest
import torch

from architectures import VOCAB_SIZE
from hf_bitdistill.runtime import load_decoder
from hf_bitdistill.runtime import native_decoder as decoder_module
from hf_bitdistill.runtime.native_decoder import load_library
from students import VARIANTS, open_student


pytestmark = pytest.mark.usefixtures("native_decoder")


@pytest.fixture
def each_isa():
    """Calls a function once for every instruction set of this CPU."""
    library = load_library()

    def each(function):
        for isa in library.supported_isas:
            library.set_isa(isa)
            function(isa)

    yield each
    library.set_isa(library.supported_isas[0])


def text(count, seed=0):
    return torch.randint(3, VOCAB_SIZE, (count,), generator=torch.Generator().manual_seed(seed))


def cuts(count, longest):
    """Lengths of pieces, of all sizes up to `longest`."""
    generator, sizes = torch.Generator().manual_seed(longest), []
    while sum(sizes) < count:
        size = int(torch.randint(1, longest + 1, (1,), generator=generator))
        sizes.append(min(size, count - sum(sizes)))
    return sizes


def logits(decoder, tokens, sizes):
    """Of all tokens of one text, given in pieces of these sizes."""
    cache = decoder.new_cache(1)
    pieces = tokens.split(sizes)
    return torch.cat([decoder.forward(cache, p, torch.zeros_like(p), torch.arange(len(p))) for p in pieces])


@pytest.mark.parametrize("number", range(len(VARIANTS)), ids=[name for name, _ in VARIANTS])
@torch.no_grad()
def test_prompts_pieces_and_steps(saved, each_isa, number):
    model_type, options = VARIANTS[number]
    kv_dtype, head_bits = (("float16", 16), ("float32", 8), ("int8", 4), ("float32", 32))[number % 4]
    # More than a page of the cache, where that does not change the architecture.
    positions = 64 if "rope_parameters" in options else 100
    _, folder = saved(model_type, **{"max_position_embeddings": positions, **options})
    decoder = load_decoder(open_student(folder), head_bits, kv_dtype, num_threads=1)
    tokens = text(positions)

    def check(isa):
        steps = logits(decoder, tokens, 1)
        for sizes in ([positions], cuts(positions, 4), cuts(positions, 40)):
            assert torch.equal(logits(decoder, tokens, sizes), steps), (isa, sizes)

    each_isa(check)


@pytest.mark.parametrize(
    "model_type, options",
    [
        ("llama", {"options": {"weight_granularity": "group", "group_size": 64}}),
        ("llama", {"head_dim": 40, "num_attention_heads": 6, "options": {"sub_norm": "all"}}),
        ("qwen3_moe", {"options": {"modules_to_not_convert": ["self_attn.o_proj", "experts.2"]}}),
    ],
)
@torch.no_grad()
def test_batches_threads_and_calls(saved, each_isa, monkeypatch, model_type, options):
    """Large enough that every part of a layer is divided among threads, and a prompt among calls."""
    sizes = {"hidden_size": 96, "intermediate_size": 160, "max_position_embeddings": 640, "num_hidden_layers": 2}
    _, folder = saved(model_type, **{**sizes, **options})
    decoder = load_decoder(open_student(folder), num_threads=1)
    rows = [text(count, seed=count) for count in (70, 530, 9)]
    sequences = torch.repeat_interleave(torch.arange(3), torch.tensor([len(row) for row in rows]))
    wanted = torch.tensor([0, 69, 70, 320, 511, 512, 513, 581, 582, 599, 600, 608])

    def check(isa):
        decoder.num_threads = 1
        alone = torch.cat([logits(decoder, row, [len(row)]) for row in rows])[wanted]
        for threads, calls in ((1, 97), (2, 512)):
            decoder.num_threads = threads
            monkeypatch.setattr(decoder_module, "CHUNK", calls)
            together = decoder.forward(decoder.new_cache(3), torch.cat(rows), sequences, wanted)
            assert torch.equal(together, alone), (isa, threads)
        monkeypatch.undo()

    each_isa(check)
