import gc
import gzip
import json
import tracemalloc

import pytest
from datasets import Dataset, IterableDataset
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

from hf_bitdistill.data import collate, load_corpus, pack_corpus


TEXTS = [f"document {i} says {'again and ' * (i * 7 % 23)}enough ." for i in range(40)]


def stream(tokenizer, texts, eos=2):
    return [token for text in texts for token in [*tokenizer(text, add_special_tokens=False)["input_ids"], eos]]


def joined(blocks):
    return [token for block in blocks for token in block["input_ids"]]


def corpus_files(folder, texts, count):
    size = len(texts) // count
    for i in range(count):
        lines = [json.dumps({"text": text}) for text in texts[i * size : (i + 1) * size]]
        (folder / f"train-{i:05d}-of-{count:05d}.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    return folder


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("block_size", [2, 17, 64])
@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_every_token_once_and_in_order(tiny_tokenizer, streaming, block_size, batch_size):
    dataset = Dataset.from_dict({"text": TEXTS})
    if streaming:
        dataset = dataset.to_iterable_dataset()
    expected = stream(tiny_tokenizer, TEXTS)

    packed = pack_corpus(dataset, tiny_tokenizer, block_size, batch_size=batch_size)
    assert isinstance(packed, IterableDataset if streaming else Dataset)
    blocks = list(packed)
    assert {len(block["input_ids"]) for block in blocks} == {block_size}
    assert joined(blocks) == expected[: len(expected) // block_size * block_size]
    assert all(block["labels"] == block["input_ids"] for block in blocks)

    kept = list(pack_corpus(dataset, tiny_tokenizer, block_size, batch_size=batch_size, drop_remainder=False))
    rest = len(expected) % block_size
    assert joined(kept) == (expected if rest != 1 else expected[:-1])
    assert len(kept) == len(blocks) + (rest > 1)


def test_end_of_text_and_begin_of_block(tiny_tokenizer):
    dataset = Dataset.from_dict({"text": ["one two", "", None, "three"]})
    packed = pack_corpus(dataset, tiny_tokenizer, 5, bos_per_block=True, drop_remainder=False)
    content = [block["input_ids"] for block in packed]
    assert all(block[0] == tiny_tokenizer.bos_token_id for block in content)
    assert [token for block in content for token in block[1:]] == stream(tiny_tokenizer, ["one two", "three"])
    packed = pack_corpus(dataset, tiny_tokenizer, 2, append_eos=False, drop_remainder=False)
    assert 2 not in joined(packed)


def test_streaming_reads_nothing_ahead_and_starts_over(tiny_tokenizer):
    read = []

    def documents():
        for i in range(1000):
            read.append(i)
            yield {"text": f"number {i} ."}

    packed = pack_corpus(IterableDataset.from_generator(documents), tiny_tokenizer, 16, batch_size=10)
    assert read == []
    first = next(iter(packed))
    assert 0 < len(read) <= 20
    # Iterating again begins again: nothing is left over in a buffer from the iterations before.
    assert next(iter(packed)) == first
    assert list(packed.take(20)) == list(packed.take(20))


def test_streaming_memory_does_not_grow_with_the_corpus(tiny_tokenizer):
    def documents(count):
        for i in range(count):
            yield {"text": f"document {i} " + "filler words " * 50}

    def peak(count):
        source = IterableDataset.from_generator(documents, gen_kwargs={"count": count})
        packed = pack_corpus(source, tiny_tokenizer, 64, batch_size=8)
        for _ in packed.take(2):  # imports and caches of the first use are not the corpus
            pass
        tracemalloc.start()
        for _ in packed:
            gc.collect()  # garbage is not the corpus: when it goes depends on what else is in memory
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(400) < 1.5 * peak(40)


def test_shards_of_files_are_shared_among_workers_and_nodes(tiny_tokenizer, tmp_path):
    corpus = load_corpus(corpus_files(tmp_path, TEXTS, 4), streaming=True)
    assert corpus.num_shards == 4
    packed = pack_corpus(corpus, tiny_tokenizer, 16)
    assert packed.num_shards == 4

    def blocks(dataset):
        return sorted(tuple(block["input_ids"]) for block in dataset)

    by_shard = []
    for i in range(4):
        tokens = stream(tiny_tokenizer, TEXTS[i * 10 : (i + 1) * 10])
        by_shard += [tuple(tokens[j : j + 16]) for j in range(0, len(tokens) - 15, 16)]
    assert blocks(packed) == sorted(by_shard)
    # Each worker packs its own shards; none is read twice or left out.
    loader = DataLoader(packed, batch_size=None, num_workers=2)
    assert blocks(loader) == sorted(by_shard)
    nodes = [blocks(split_dataset_by_node(packed, rank, 2)) for rank in range(2)]
    assert sorted(nodes[0] + nodes[1]) == sorted(by_shard)
    shards = [block for i in range(4) for block in blocks(packed.shard(4, i))]
    assert sorted(shards) == sorted(by_shard)


@pytest.mark.parametrize("after", [0, 3, 11, 25])
def test_resume_continues_at_the_exact_block(tiny_tokenizer, tmp_path, after):
    corpus_files(tmp_path, TEXTS, 4)

    def packed():
        return pack_corpus(load_corpus(tmp_path, streaming=True), tiny_tokenizer, 32)

    everything = list(packed())
    dataset = packed()
    iterator = iter(dataset)
    for _ in range(after):
        next(iterator)
    state = json.loads(json.dumps(dataset.state_dict()))
    resumed = packed()
    resumed.load_state_dict(state)
    assert len(everything) > 25
    assert list(resumed) == everything[after:]


def test_map_style_in_several_processes(tiny_tokenizer):
    dataset = Dataset.from_dict({"text": TEXTS})
    packed = pack_corpus(dataset, tiny_tokenizer, 16, num_proc=2)
    expected = []
    for part in (TEXTS[:20], TEXTS[20:]):
        tokens = stream(tiny_tokenizer, part)
        expected += tokens[: len(tokens) // 16 * 16]
    assert joined(packed) == expected


def test_packed_blocks_collate(tiny_tokenizer):
    packed = pack_corpus(Dataset.from_dict({"text": TEXTS}), tiny_tokenizer, 16)
    batch = collate(tiny_tokenizer)([packed[0], packed[1]])
    assert batch["input_ids"].shape == batch["labels"].shape == (2, 16)
    assert (batch["labels"] == batch["input_ids"]).all()
    assert batch["attention_mask"].all()


def test_bad_input(tiny_tokenizer):
    dataset = Dataset.from_dict({"text": TEXTS})
    with pytest.raises(ValueError, match=r"no column 'content'; the dataset has \['text'\]"):
        pack_corpus(dataset, tiny_tokenizer, 16, text_column="content")
    unknown = IterableDataset.from_generator(lambda: iter([{"words": "a b"}]))
    with pytest.raises(ValueError, match="no column 'text'"):
        list(pack_corpus(unknown, tiny_tokenizer, 16))
    with pytest.raises(ValueError, match="block_size"):
        pack_corpus(dataset, tiny_tokenizer, 1)
    with pytest.raises(ValueError, match="fewer tokens than one block"):
        pack_corpus(Dataset.from_dict({"text": ["a"]}), tiny_tokenizer, 1000)
    with pytest.raises(ValueError, match="the corpus is empty"):
        pack_corpus(Dataset.from_dict({"text": []}), tiny_tokenizer, 16)
    with pytest.raises(TypeError, match="takes a Dataset"):
        pack_corpus(TEXTS, tiny_tokenizer, 16)
    numbers = IterableDataset.from_generator(lambda: iter([{"text": 3}]))
    with pytest.raises(TypeError, match="must hold str, found int"):
        list(pack_corpus(numbers, tiny_tokenizer, 16))
    tiny_tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end-of-text token"):
        pack_corpus(dataset, tiny_tokenizer, 16)


@pytest.mark.parametrize("streaming", [False, True])
def test_load_corpus_from_files(tmp_path, streaming):
    text = tmp_path / "book.txt"
    text.write_text("first line\nsecond line\n\nnew paragraph\n")
    by = {
        "document": ["first line\nsecond line\n\nnew paragraph\n"],
        "line": ["first line", "second line", "", "new paragraph"],
    }
    for sample_by, expected in by.items():
        loaded = load_corpus(text, streaming=streaming, sample_by=sample_by)
        assert [row["text"] for row in loaded] == expected
    assert len(list(load_corpus(text, streaming=streaming, sample_by="paragraph"))) == 2
    (tmp_path / "validation.jsonl").write_text('{"text": "held out"}\n')
    assert [row["text"] for row in load_corpus(str(tmp_path), "validation", streaming=streaming)] == ["held out"]


def test_load_corpus_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        load_corpus(tmp_path / "gone.jsonl")
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        load_corpus("gone.txt")
    with pytest.raises(FileNotFoundError, match="no file for the split 'train'; it holds no files"):
        load_corpus(tmp_path)
    with pytest.raises(ConnectionError, match="no local path and cannot be loaded from the Hub"):
        load_corpus("some-owner/some-corpus", streaming=True)


def test_real_corpus(shared_dir, tiny_tokenizer):
    corpus = load_corpus(shared_dir / "data" / "corpus", "validation", streaming=True)
    blocks = list(pack_corpus(corpus, tiny_tokenizer, 64).take(50))
    expected = stream(tiny_tokenizer, [row["text"] for row in corpus.take(20)])
    assert joined(blocks) == expected[: 50 * 64]
