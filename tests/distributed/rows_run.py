"""Run by `test_streams_and_evaluations.py` in several processes; its functions also in one. Usage: rows_run.py FOLDER

Evaluations of odd numbers of rows, and trainings on streams: with a shard a process and more, with one shard for all, gone on with.
"""

import os
import sys
from pathlib import Path

import torch
from datasets import IterableDataset
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq, PreTrainedTokenizerFast

from architectures import small_llama
from hf_bitdistill.data import pack_corpus
from hf_bitdistill.data.streams import Stream
from hf_bitdistill.machine import processes
from hf_bitdistill.training import DistillationConfig, DistillationTrainer, PretrainingConfig, ReliableTrainer


BATCH, FILES, BLOCK = 2, 5, 8
EVALUATED = (7, 5, 1)
# In two processes the last turn has of seven rows two batches, one of them of one row; of five, and of one, a batch of one row and none.

# Adam makes much of differences in rounding.
ONE_SHARD = {"save_strategy": "no", "dropout": 0.0, "optim": "sgd", "learning_rate": 1.0}

# A DDP model and gloo's group that are freed together can hang, see tests/training/distributed_run.py.
KEPT: list[ReliableTrainer] = []


def tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "<unk>": 1, "</s>": 2, **{f"w{number}": number for number in range(3, 64)}}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    from tokenizers.pre_tokenizers import Whitespace

    backend.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", eos_token="</s>")


def model(seed: int = 0, **options):
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(small_llama(**options))


def arguments(folder: str | Path, **options) -> dict:
    several = processes.world_size() > 1
    return {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "per_device_eval_batch_size": BATCH,
        "ddp_backend": "gloo" if several else None,
        **options,
    }


# ---- Evaluation ----


def rows(count: int) -> list[dict]:
    """Of different lengths, with different numbers of labels."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for length, labelled in ((12, 4), (5, 1), (9, 8), (7, 2), (3, 3), (11, 5), (6, 1))[:count]:
        ids = torch.randint(3, 64, (length,), generator=generator).tolist()
        labels = [-100] * (length - labelled) + ids[length - labelled :]
        found.append({"input_ids": ids, "attention_mask": [1] * length, "labels": labels})
    return found


def streamed_rows(count: int) -> IterableDataset:
    return IterableDataset.from_generator(rows, gen_kwargs={"count": count})


def predictions(prediction) -> dict[str, float]:
    """Sums over the real tokens, which padding does not change."""
    labels, logits, inputs = (
        torch.tensor(part) for part in (prediction.label_ids, prediction.predictions, prediction.inputs)
    )
    return {
        "rows": len(labels),
        "labels": labels[labels > 0].sum().item(),
        "inputs": inputs[inputs > 0].sum().item(),
        "logits": logits[: len(labels), : labels.shape[1]][labels > 0].double().sum().item(),
    }


def evaluate(folder: Path) -> dict[str, dict[str, float]]:
    """The metrics by the number of rows, with predictions; without them; and those of the stock losses."""
    trainer = DistillationTrainer(
        model=model(),
        teacher_model=model(1),
        args=DistillationConfig(
            **arguments(
                folder,
                allow_full_precision_student=True,
                attention_loss_weight=100.0,
                hidden_loss_weight=3.0,
                include_for_metrics=["inputs"],
            )
        ),
        data_collator=DataCollatorForSeq2Seq(tokenizer()),
        compute_metrics=predictions,
    )
    KEPT.append(trainer)
    found = {}
    for count in EVALUATED:
        found[f"{count} rows"] = trainer.evaluate(rows(count))
    found["streamed"] = trainer.evaluate(streamed_rows(7), metric_key_prefix="eval")
    # By name, and to predict.
    found["named"] = trainer.evaluate({"a": streamed_rows(7), "b": streamed_rows(5)})
    found["predicted"] = trainer.predict(streamed_rows(7)).metrics
    trainer.compute_metrics = None
    found["losses"] = trainer.evaluate(rows(7))
    stock = ReliableTrainer(  # with the losses of the model itself
        model=model(), args=PretrainingConfig(**arguments(folder)), data_collator=DataCollatorForSeq2Seq(tokenizer())
    )
    KEPT.append(stock)
    found["stock"] = stock.evaluate(rows(7))
    times = ("runtime", "per_second", "preparation_time")
    return {
        name: {key: value for key, value in metrics.items() if not key.endswith(times)}
        for name, metrics in found.items()
    }


# ---- Streams ----


class Texts:
    """The documents of numbered files, and which files were read here."""

    def __init__(self):
        self.files: list[int] = []

    def read(self, files, documents):
        for file in files:
            self.files.append(file)
            for document in range(documents + file):
                yield {"text": " ".join(f"w{3 + (7 * file + 5 * document + word) % 61}" for word in range(9))}


TEXTS = Texts()


def read(files, documents):
    yield from TEXTS.read(files, documents)


def corpus(files: int = FILES, documents: int = 6) -> IterableDataset:
    texts = IterableDataset.from_generator(read, gen_kwargs={"files": list(range(files)), "documents": documents})
    return pack_corpus(texts, tokenizer(), BLOCK)


def train(folder: Path, data, steps: int, checkpoint: Path | None = None, batch: int = BATCH, **options) -> dict:
    """Blocks by batch, files that were opened, weights and losses of a training."""
    batches = []
    collate = DataCollatorForSeq2Seq(tokenizer())

    def keeping(rows):
        batches.append([row["input_ids"] for row in rows])
        return collate(rows)

    TEXTS.files.clear()
    student = model(attention_dropout=options.pop("dropout", 0.2))
    args = PretrainingConfig(
        **arguments(
            folder,
            max_steps=steps,
            logging_steps=1,
            lr_scheduler_type="constant",
            **{"save_strategy": "steps", "save_steps": 1, "learning_rate": 1e-2, **options},
            per_device_train_batch_size=batch,
        )
    )
    trainer = ReliableTrainer(model=student, args=args, train_dataset=data, data_collator=keeping)
    KEPT.append(trainer)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return {
        "batches": batches,
        "files": list(TEXTS.files),
        "weights": {
            name: value.clone() for name, value in trainer.accelerator.unwrap_model(trainer.model).state_dict().items()
        },
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }


def stream() -> Stream:
    return Stream(corpus(), seed=5, by_shard=True)


def main(folder: Path) -> None:
    found = {"metrics": evaluate(folder / "evaluation")}
    found["whole"] = train(folder / "run", stream(), 20, save_steps=9)
    found["again"] = train(folder / "again", stream(), 20, folder / "run/checkpoint-18")
    # The same training with the plain dataset, whose shards are read as `datasets` reads them.
    found["plain"] = train(folder / "plain", corpus(), 3, save_strategy="no")
    found["one shard"] = train(folder / "one", corpus(1, 40), 3, **ONE_SHARD)
    torch.save(found, folder / f"{processes.rank()}.pt")
    processes.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
