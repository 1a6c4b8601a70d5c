"""Streamed training data in one process: pass after pass, and a resumed training is the one without interruption, bit for bit."""

import json
import shutil

import pytest
import torch
from datasets import IterableDataset
from transformers import TrainerCallback, default_data_collator

from hf_bitdistill.data.streams import Stream
from hf_bitdistill.files.tensor_headers import CheckpointError
from hf_bitdistill.training import PretrainingConfig, ReliableTrainer


SHARDS, ROWS = 3, 5  # 15 rows, 2 a step and half a step's: a pass ends within a step


def rows(shards, read):
    for shard in shards:
        read.append(shard)
        for number in range(ROWS):
            ids = torch.randint(3, 384, (8,), generator=torch.Generator().manual_seed(10 * shard + number)).tolist()
            yield {"input_ids": ids, "labels": ids}


def source(read):
    return IterableDataset.from_generator(rows, gen_kwargs={"shards": list(range(SHARDS)), "read": Reads(read)})


class Reads:
    """A list that `datasets` does not divide."""

    def __init__(self, kept):
        self.append = kept.append


class Seen(TrainerCallback):
    def __init__(self):
        self.epochs = []

    def on_step_end(self, args, state, control, **kwargs):
        self.epochs.append(state.epoch)


@pytest.fixture
def train(make_model, tmp_path):
    """Train to a step, in a folder, from a checkpoint; returns `(weights, batches, shards opened, epochs)`."""

    def run(data, steps, folder="run", checkpoint=None, **options):
        batches, read, seen = [], [], Seen()

        def collate(each):
            batch = default_data_collator(each)
            batches.append(batch["input_ids"].tolist())
            return batch

        trainer = ReliableTrainer(
            model=make_model(0, attention_dropout=0.2),
            args=PretrainingConfig(
                output_dir=str(tmp_path / folder),
                use_cpu=True,
                report_to=[],
                disable_tqdm=True,
                max_steps=steps,
                learning_rate=1e-2,
                lr_scheduler_type="constant",
                per_device_train_batch_size=2,
                gradient_accumulation_steps=2,
                **{"save_steps": 1, **options},
            ),
            train_dataset=data(read),
            data_collator=collate,
            callbacks=[seen],
        )
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(tmp_path / checkpoint))
        weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        return weights, batches, read, seen.epochs

    return run


def by_shard(read):
    return Stream(source(read), seed=1, by_shard=True)


@pytest.mark.parametrize("data", [source, by_shard])
def test_going_on_in_a_later_pass(train, data):
    whole, batches, read, epochs = train(data, 9)
    assert len(read) > 2 * SHARDS  # the third pass
    rows_of_a_pass = [tuple(row) for batch in batches for row in batch][: SHARDS * ROWS]
    assert len(set(rows_of_a_pass)) == SHARDS * ROWS
    assert epochs == [step / 9 for step in range(1, 10)]
    for after in (2, 5):  # in the first pass and in the second
        again, others, reread, counted = train(data, 9, "again", f"run/checkpoint-{after}")
        assert all(torch.equal(again[name], value) for name, value in whole.items())
        assert others == batches[2 * after :] and counted == epochs[after:]
        finished = (4 * after - 1) // ROWS  # shards; of the last row of one it is not known that it is the last
        kept = finished if data is by_shard else finished // SHARDS * SHARDS
        assert reread == read[kept:]


def test_a_checkpoint_without_a_place_and_a_stream_that_is_dealt_out_otherwise(train, tmp_path, caplog):
    whole, batches, read, _ = train(by_shard, 6)
    folder = tmp_path / "run/checkpoint-5"
    place = folder / "stream_position_0.json"
    content = json.loads(place.read_text())
    assert content["positions"] == [[0, 20, 1, 0, 5]] and content["stream"]["shards"] == SHARDS
    (folder / "bitdistill_checkpoint.json").unlink()

    def again(edit):
        caplog.clear()
        shutil.rmtree(tmp_path / "again", ignore_errors=True)
        edit()
        found = train(by_shard, 6, "again", "run/checkpoint-5")
        return found, [record.message for record in caplog.records if "stream" in record.message]

    # As many rows as were read are left out, which here are the very ones.
    (weights, others, reread, _), warnings = again(place.unlink)
    assert all(torch.equal(weights[name], value) for name, value in whole.items())
    assert others == batches[10:] and reread == read
    assert warnings == [
        f"{folder} does not say where in the stream it was: what 5 steps read is read again and left out."
    ]

    content["stream"]["processes"] = 2
    _, warnings = again(lambda: place.write_text(json.dumps(content)))
    assert len(warnings) == 1 and "dealt out otherwise now (processes 2, now 1)" in warnings[0]
    with pytest.raises(CheckpointError, match=r"stream_position_0\.json is damaged"):
        again(lambda: place.write_text("{}"))


def test_strategies_by_epoch_are_refused(train):
    with pytest.raises(ValueError, match="save_strategy='epoch': a streamed dataset is read without an end"):
        train(source, 3, save_strategy="epoch")


def test_workers_go_on_where_they_were(train):
    # What the workers collate is not seen here: the weights tell.
    whole, *_ = train(by_shard, 6, dataloader_num_workers=2)
    again, *_ = train(by_shard, 6, "again", "run/checkpoint-3", dataloader_num_workers=2)
    assert all(torch.equal(again[name], value) for name, value in whole.items())
