"""Damaged GGUF files end in one line that names the file, quickly and without memory."""

import random
import resource
import struct

import pytest
from gguf_files import GgufModel

from hf_bitdistill.files.tensor_headers import CheckpointError
from hf_bitdistill.importing import import_gguf
from hf_bitdistill.importing.gguf_config import config_of
from hf_bitdistill.importing.gguf_decoding import tensor_formats
from hf_bitdistill.importing.gguf_reading import GgufFile


MUTANTS = 200
HEADER = 24


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    file = tmp_path_factory.mktemp("gguf") / "model.gguf"
    extra = {"tokenizer.ggml.model": "none", "some.numbers": [1, 2, 3], "some.words": ["a", "bc"]}
    return GgufModel("llama", "Q2_0-128", extra=extra).save(file).read_bytes()


def start_of_data(content):
    """The first tensor's bytes; all before is the header."""
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.gguf"
        file.write_bytes(content)
        return min(tensor.start for tensor in GgufFile(file).tensors.values())


def opened(file):
    """All that an import looks at before it reads a tensor."""
    source = GgufFile(file)
    config_of(source)
    return source, tensor_formats(source)


def put(content, place, layout, value):
    return content[:place] + struct.pack(layout, value) + content[place + struct.calcsize(layout) :]


def after(content, name):
    """Where what follows a name in the header begins."""
    return content.index(struct.pack("<Q", len(name)) + name.encode()) + 8 + len(name)


def test_the_whole_file_is_read(content, tmp_path):
    (tmp_path / "a.gguf").write_bytes(content)
    source, formats = opened(tmp_path / "a.gguf")
    assert source.metadata["some.numbers"] == [1, 2, 3] and source.metadata["some.words"].count == 2
    assert {block.name for block in formats.values()} == {"F32", "F16", "Q8_0", "Q2_0 (blocks of 128)"}


@pytest.mark.parametrize(
    "message, damage",
    [
        ("is no GGUF file", lambda c: b"GGML" + c[4:]),
        ("has 10 bytes", lambda c: c[:10]),
        ("GGUF of version 1;", lambda c: put(c, 4, "<I", 1)),
        ("of a big-endian machine", lambda c: put(c, 4, ">I", 3)),
        ("tensors cannot be in", lambda c: put(c, 8, "<Q", 1 << 60)),
        ("keys cannot be in", lambda c: put(c, 16, "<Q", 1 << 60)),
        ("key 0 ends beyond the file", lambda c: put(c, HEADER, "<Q", 1 << 62)),
        ("key 'some.numbers' cannot be", lambda c: put(c, after(c, "some.numbers") + 8, "<Q", 1 << 50)),
        ("key 'some.words' cannot be", lambda c: put(c, after(c, "some.words") + 8, "<Q", 1 << 50)),
        ("key 'some.words' ends beyond the file", lambda c: put(c, after(c, "some.words") + 16, "<Q", 1 << 40)),
        ("value of type 77, which GGUF does not have", lambda c: put(c, after(c, "some.numbers"), "<I", 77)),
        ("list of values of type 9, which is not read", lambda c: put(c, after(c, "some.numbers") + 4, "<I", 9)),
        ("tensor 'output.weight' has 9 dimensions", lambda c: put(c, after(c, "output.weight"), "<I", 9)),
        ("tensor 'output.weight' has the shape", lambda c: put(c, after(c, "output.weight") + 4, "<Q", 0)),
        ("tensor 'output.weight' has the shape", lambda c: put(c, after(c, "output.weight") + 4, "<Q", 1 << 61)),
        ("tensor 'output.weight' starts at byte", lambda c: put(c, after(c, "output.weight") + 24, "<Q", 1 << 40)),
        ("tensor 'output.weight' starts at byte", lambda c: put(c, after(c, "output.weight") + 24, "<Q", 1)),
        ("two tensors start at the same place", lambda c: put(c, after(c, "output.weight") + 24, "<Q", 0)),
        ("tensor 'blk.1.ffn_norm.weight' (is trunc|starts)", lambda c: c[:-100]),
        ("tensor '[a-z.0-9_]+' starts at byte", lambda c: c[:-2000]),
        ("tensor 'blk.0.ffn_up.weight' of type 42", lambda c: put(c, after(c, "blk.0.ffn_up.weight") + 4, "<Q", 384)),
        ("rows of 255 weights are no multiple of 32", lambda c: put(c, after(c, "output.weight") + 4, "<Q", 255)),
        ("tensor 'output.weight' is truncated", lambda c: put(c, after(c, "output.weight") + 12, "<Q", 1 << 20)),
        ("tensor 'token_embd.weight' is missing", lambda c: c.replace(b"token_embd.w", b"token_embd.v")),
        ("llama.block_count is 'a', which", lambda c: c.replace(b"llama.block_count" + struct.pack("<II", 4, 2), b"llama.block_count" + struct.pack("<IQ", 8, 1) + b"a")),
        ("attention.head_count=0 must be", lambda c: put(c, after(c, "llama.attention.head_count") + 4, "<I", 0)),
        ("key 'llama.context_length' twice", lambda c: c.replace(b"llama.rope.freq_base", b"llama.context_length")),
    ],
)  # fmt: skip
def test_damage(tmp_path, content, message, damage):
    file = tmp_path / "a.gguf"
    file.write_bytes(damage(content))
    with pytest.raises(CheckpointError, match=message) as error:
        opened(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def mutant(content, seed):
    """A file of which some bytes of the header are others, or which is cut, or longer."""
    draw = random.Random(seed)
    data, end = bytearray(content), start_of_data_cached(content)
    kind = draw.randrange(4)
    if kind == 0:
        return bytes(data[: draw.randrange(len(data))])
    for _ in range(draw.choice([1, 1, 2, 8])):
        place = draw.randrange(4, end - 8)
        if kind == 1:
            data[place] ^= 1 << draw.randrange(8)
        elif kind == 2:
            data[place : place + 8] = struct.pack(
                "<Q", draw.choice([0, 1, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 64) - 1])
            )
        else:
            length = draw.randrange(1, 40)
            del data[place : place + length]
    return bytes(data)


_STARTS = {}


def start_of_data_cached(content):
    if id(content) not in _STARTS:
        _STARTS[id(content)] = start_of_data(content)
    return _STARTS[id(content)]


def test_mutants(tmp_path, content):
    """Whatever stands in the header: a clean refusal, at the first look or later, or a file that is still one."""
    file, refused, ended = tmp_path / "a.gguf", 0, 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(MUTANTS):
        file.write_bytes(mutant(content, seed))
        try:
            opened(file)
            import_gguf(file, tmp_path / "out", answers=False)
            ended += 1
        except CheckpointError as error:
            assert str(file) in str(error) and "\n" not in str(error), seed
            refused += 1
    assert refused > MUTANTS / 2 and ended > 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000
