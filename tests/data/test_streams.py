import json
import tracemalloc
from itertools import islice

import pytest
from datasets import Dataset, IterableDataset
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

from hf_bitdistill.data import load_corpus, pack_corpus
from hf_bitdistill.data.streams import POSITION, Position, Readers, Stream


def numbered(shards, rows=6):
    """Rows of numbers; shard s has `rows + s` of them, from 100 * s."""

    def generate(starts, read=None):
        for start in starts:
            for number in range(start, start + rows + start // 100):
                yield {"number": number}

    return IterableDataset.from_generator(generate, gen_kwargs={"starts": [100 * shard for shard in range(shards)]})


def everything(dataset):
    return sorted(row["number"] for row in dataset)


def passes_of(stream, readers, reader, passes, start=None):
    """The numbers that a reader hands out in each pass."""
    found = [[] for _ in range(passes)]
    for row in stream.rows(start or Position(reader), readers):
        if row[POSITION].passes == passes:
            return found
        found[row[POSITION].passes].append(row["number"])


@pytest.mark.parametrize("by_shard", [True, False])
@pytest.mark.parametrize(
    ("shards", "processes", "workers"), [(1, 1, 1), (5, 1, 1), (4, 2, 1), (5, 2, 2), (1, 2, 1), (4, 6, 1), (2, 2, 2)]
)
def test_every_row_once_in_a_pass(shards, processes, workers, by_shard):
    dataset, readers = numbered(shards), Readers(processes, workers)
    stream = Stream(dataset, seed=3, by_shard=by_shard)
    parts = [passes_of(stream, readers, reader, 3) for reader in range(readers.count)]
    for number in range(3):
        assert sorted(row for part in parts for row in part[number]) == everything(dataset)
    for part in parts:  # which reader has what does not change
        assert sorted(part[0]) == sorted(part[1]) == sorted(part[2])
    assert stream.sharers(readers) == {(1, 2): 2, (4, 6): 3, (2, 4): 2}.get((shards, readers.count), 1)


def test_one_shard_is_read_in_the_order_of_one_process():
    stream, readers = Stream(numbered(1, rows=8)), Readers(2, 1)
    one, two = (passes_of(stream, readers, reader, 1)[0] for reader in range(2))
    assert [number for pair in zip(one, two, strict=True) for number in pair] == list(range(8))


def test_the_order_of_shards_is_that_of_the_seed_and_the_pass():
    def order(seed):
        found = passes_of(Stream(numbered(8), seed, by_shard=True), Readers(), 0, 3)
        for rows in found:  # whole shards
            assert [row for row in rows if row < 100] == list(range(6))
        return [list(dict.fromkeys(row // 100 for row in rows)) for rows in found]

    one = order(1)
    assert one == order(1) != order(2)
    assert len({tuple(shards) for shards in one}) == 3
    # Without it: as the dataset gives them.
    assert passes_of(Stream(numbered(8)), Readers(), 0, 1)[0] == [row["number"] for row in numbered(8)]


@pytest.mark.parametrize("by_shard", [True, False])
@pytest.mark.parametrize("readers", [Readers(), Readers(2, 1), Readers(6, 1)], ids=str)
def test_a_reader_goes_on_from_any_row(readers, by_shard):
    dataset = numbered(4)
    if not by_shard:
        dataset = dataset.shuffle(seed=0, buffer_size=7)
    stream, reader = Stream(dataset, by_shard=by_shard), readers.count - 1
    rows = list(islice(stream.rows(Position(reader), readers), 75))
    assert rows[-1][POSITION].passes >= 2
    for after in (1, 7, 30, 50, 74):
        position = Position(*json.loads(json.dumps(rows[after - 1][POSITION])))
        assert position.rows == after
        assert list(islice(stream.rows(position, readers), 75 - after)) == rows[after:]
        assert list(islice(stream.rows(Position(reader), readers, skip=after), 75 - after)) == rows[after:]


def test_a_place_in_a_corpus_is_found_without_reading_what_was_finished(tiny_tokenizer):
    read = []

    def documents(files):
        for file in files:
            read.append(file)
            yield from ({"text": f"{file} has document {i} ."} for i in range(20))

    texts = IterableDataset.from_generator(documents, gen_kwargs={"files": list(range(6))})
    stream = Stream(pack_corpus(texts, tiny_tokenizer, 16), seed=0, by_shard=True)
    rows = list(islice(stream.rows(Position(0), Readers()), 200))
    place = next(row[POSITION] for row in rows[150:] if row[POSITION].shard == 4)
    assert place.passes == 1
    read.clear()
    assert next(stream.rows(place, Readers()))["input_ids"] == rows[place.rows]["input_ids"]
    assert len(read) == 1


@pytest.mark.parametrize("by_shard", [True, False])
def test_workers_of_a_loader(by_shard):
    stream, readers = Stream(numbered(4), by_shard=by_shard), Readers(2, 2)
    rows = [list(islice(stream.rows(Position(reader), readers), 40)) for reader in range(4)]

    def batches(process, **going_on):
        dataset = stream.shared(readers, **going_on).shard(2, process)  # as accelerate does
        loader = DataLoader(dataset, batch_size=5, num_workers=2, collate_fn=list)
        return list(islice(loader, 6))

    # Of process 1: readers 2 and 3 in turn.
    expected = [rows[2 + number % 2][5 * (number // 2) : 5 * (number // 2) + 5] for number in range(9)]
    assert batches(1) == expected[:6]
    starts = {2: rows[2][9][POSITION], 3: rows[3][4][POSITION]}
    assert batches(1, starts=starts, first=1) == expected[3:]


def test_a_dataset_that_was_split_before_is_not_split_again():
    dataset = numbered(4)
    found = []
    for process in range(2):
        stream = Stream(split_dataset_by_node(dataset, process, 2))
        found += passes_of(stream, Readers(2, 1), process, 1)[0]
    assert sorted(found) == everything(dataset)


def test_iterated_by_hand():
    dataset = numbered(3)
    rows = list(islice(Stream(dataset), 40))
    count = len(everything(dataset))
    assert set(rows[0]) == {"number"} and everything(rows[:count]) == everything(dataset)
    assert everything(rows[count : 2 * count]) == everything(dataset)[: 40 - count] or len(rows) == 40


def test_too_few_rows_and_other_datasets():
    stream = Stream(numbered(1, rows=3))
    with pytest.raises(ValueError, match="reader 5 of 5 has no row of the stream, of 1 shard"):
        next(stream.rows(Position(4), Readers(5, 1)))
    with pytest.raises(TypeError, match=r"of a datasets\.IterableDataset, not of a Dataset"):
        Stream(Dataset.from_dict({"number": [1]}))


def test_memory_does_not_grow_with_the_corpus(tiny_tokenizer, tmp_path):
    def peak(count):
        for number in range(4):
            lines = (json.dumps({"text": f"document {i} " + "filler words " * 50}) for i in range(count))
            (tmp_path / f"train-{number:05d}-of-00004.jsonl").write_text("\n".join(lines))
        blocks = pack_corpus(load_corpus(tmp_path, streaming=True), tiny_tokenizer, 64, batch_size=8)
        stream = Stream(blocks, by_shard=True)
        for _ in islice(stream.rows(Position(0), Readers(2, 1)), 2):
            pass
        tracemalloc.start()
        for row in stream.rows(Position(0), Readers(2, 1)):
            if row[POSITION].passes:
                break
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(120) < 1.5 * peak(12)
