"""Run by `test_agreement.py` in two processes: what they must have alike, and what they share. Usage: agreement_run.py FOLDER

FOLDER holds `data` and `models` of `agreement_data.py`. Disks of their own are working folders of their own.
"""

import contextlib
import copy
import io
import json
import os
import shutil
import sys
from pathlib import Path

import torch
from agreement_data import make_trainer, read_tokenizer, task_rows
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from hf_bitdistill.cli import main as cli
from hf_bitdistill.data import get_task
from hf_bitdistill.evaluation import evaluate_task, perplexity, share_rows
from hf_bitdistill.evaluation.answers import predict_answers
from hf_bitdistill.machine import agreement, processes
from hf_bitdistill.machine.environment import default_device
from hf_bitdistill.training.teacher.cache import cache_teacher_logits


KEPT = []


def message(work) -> str:
    try:
        return f"nothing: {work()}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def in_place_of_its_own(folder: Path, work) -> str:
    """Each process in a folder of its own, as on disks of their own."""
    own = folder / f"disk{processes.rank()}"
    own.mkdir(parents=True, exist_ok=True)
    processes.wait()
    before = os.getcwd()
    os.chdir(own)
    try:
        return message(work)
    finally:
        os.chdir(before)
        processes.wait()


def checks(folder: Path) -> dict:
    """Of `agreement`, each with what differs."""
    rank = processes.rank()
    torch.manual_seed(0)
    model, other = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    with torch.no_grad():
        other.weight.copy_(model.weight)
        other.bias.copy_(model.bias)
        other.weight[3, 3] += rank
    parts = {
        "alike": lambda: [
            agreement.versions(),
            agreement.options({"a": 1, "b": object()}),
            agreement.model("it", model),
        ],
        "options": lambda: [agreement.options({"rate": rank, "name": rank, "b": 1}, apart=["name"])],
        "rows": lambda: [agreement.rows({"the rows": [{"a": index} for index in range(9 + rank)]})],
        "contents": lambda: [agreement.rows({"the rows": {"one": [{"a": 0}, {"a": rank}], "two": None}})],
        "model": lambda: [agreement.model("the models", other)],
        "ids": lambda: [agreement.sequences("the prompts", [[1, 2], [3 + rank]])],
    }
    found = {name: message(lambda make=make: agreement.check_alike(make())) for name, make in parts.items()}
    found["shared"] = message(lambda: agreement.check_shared(folder / "one", "Share it."))
    found["apart"] = in_place_of_its_own(folder, lambda: agreement.check_shared("out", "Share it."))
    processes.wait()
    found["left"] = sorted(str(file.relative_to(folder)) for file in folder.rglob("_bitdistill*"))
    return found


def checkpoints(folder: Path) -> dict:
    """Of trainers: which checkpoint, on one disk and on several."""
    found = {}

    def train(output: str | Path, asked=None, steps=2, **options):
        trainer = make_trainer(output, max_steps=steps, **options)
        KEPT.append(trainer)
        trainer.train(resume_from_checkpoint=asked)
        return trainer.state.global_step

    def find(output: str | Path, asked=True, **options):
        trainer = make_trainer(output, **options)
        KEPT.append(trainer)
        return trainer.find_checkpoint(asked)

    found["trained"] = message(lambda: train(folder / "run"))
    found["found"] = message(lambda: find(folder / "run"))
    found["apart"] = in_place_of_its_own(folder, lambda: train("out"))
    own = folder / f"disk{processes.rank()}" / "out"
    # The checkpoint of the first process alone, of the second alone, another one in each, a copy in each.
    for name, places in {
        "of the first": [2, None],
        "of the second": [None, 2],
        "another": [2, "damaged"],
        "copies": [2, 2],
    }.items():
        shutil.rmtree(own, ignore_errors=True)
        chosen = places[processes.rank()]
        if chosen is not None:
            shutil.copytree(folder / "run" / "checkpoint-2", own / "checkpoint-2")
        if chosen == "damaged":
            file = own / "checkpoint-2" / "model.safetensors"
            file.write_bytes(file.read_bytes() + b" ")
        found[name] = in_place_of_its_own(folder, lambda: find("out"))
    found["each node"] = in_place_of_its_own(folder, lambda: train("out", True, 3, save_on_each_node=True))
    found["options"] = message(lambda: train(folder / "x", learning_rate=1e-3 * (1 + processes.rank())))
    found["data"] = message(lambda: train(folder / "x", rows=8 + processes.rank()))
    found["teacher"] = message(lambda: train(folder / "x", teacher_seed=processes.rank()))
    found["begun"] = [file.name for file in (folder / "x").iterdir()]
    return found


def scores(folder: Path) -> dict:
    """Each evaluation, shared, and of one process."""
    tokenizer = read_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(folder / "models" / "student")
    classifier = AutoModelForSequenceClassification.from_pretrained(folder / "models" / "classifier")
    asked, rows = get_task(str(folder / "data" / "tone.yaml")), task_rows()
    written = get_task(str(folder / "data" / "words.yaml"))
    texts = [row["sentence"] for row in rows]
    blocks = [{"input_ids": tokenizer(text)["input_ids"]} for text in texts]
    labelled = task_rows(tokenizer)

    def all_of_them() -> dict:
        quiet = {"batch_size": 3, "progress": False, "return_predictions": True}
        found = {
            "classes": evaluate_task(model, tokenizer, asked, rows, **quiet),
            "head": evaluate_task(classifier, tokenizer, asked, rows, head="sequence_classification", **quiet),
            "texts": evaluate_task(model, tokenizer, written, rows, max_new_tokens=4, **quiet),
            "answers": predict_answers(model, tokenizer, labelled, 3),
            "perplexity": perplexity(model, tokenizer, texts, 16, progress=False),
            "few": perplexity(model, tokenizer, blocks[:1], progress=False),
        }
        for name in ("classes", "head", "texts"):
            found[name].pop("seconds"), found[name].pop("tokens_per_second")
        return found

    alone = all_of_them()
    forwards = []
    handle = model.register_forward_hook(lambda *_: forwards.append(1))
    with share_rows():
        shared = all_of_them()
        handle.remove()
        both = sum(processes.gather(len(forwards)))
        with torch.no_grad():
            before = model.lm_head.weight[0, 0].item()
            model.lm_head.weight[0, 0] += processes.rank()
            found = {"another model": message(lambda: perplexity(model, tokenizer, texts, 16, progress=False))}
            model.lm_head.weight[0, 0] = before
        sharded = fully_shard(copy.deepcopy(model), mesh=init_device_mesh("cpu", (processes.world_size(),)))
        found["in shards"] = perplexity(sharded, tokenizer, texts, 16, progress=False) == alone["perplexity"]
        own = texts[: len(texts) - processes.rank()]
        found["other text"] = message(lambda: perplexity(model, tokenizer, own, 16, progress=False))
    return {**found, "same": shared == alone, "alone": alone["perplexity"], "forwards": [len(forwards), both]}


def native(folder: Path) -> bool:
    """The native decoder's evaluation, shared, against that of one process."""
    from optimum.bitnet import BitNetModelForCausalLM

    tokenizer = read_tokenizer(folder)
    model = BitNetModelForCausalLM.from_pretrained(folder / "packed")
    texts = [row["sentence"] for row in task_rows()]
    alone = perplexity(model, tokenizer, texts, 16, progress=False)
    with share_rows():
        return perplexity(model, tokenizer, texts, 16, progress=False) == alone


def cache(folder: Path) -> dict:
    """A teacher's cache that both are asked to write."""
    tokenizer = read_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(folder / "models" / "student").eval()
    forwards = []
    model.register_forward_hook(lambda *_: forwards.append(1))
    info = cache_teacher_logits(
        model, task_rows(tokenizer), folder / "cache", tokenizer, k=4, shard_examples=4, progress=False
    )
    found = {"positions": info.positions, "complete": info.complete, "forwards": len(forwards)}
    forwards.clear()

    def shared(name: str, rows) -> object:
        options = {"k": 4, "shard_examples": 4, "batch_size": 2, "progress": False, "share": True}
        return cache_teacher_logits(model, rows, folder / name, tokenizer, **options)

    rows = task_rows(tokenizer)
    found["shared"] = (shared("shared", rows) == shared("shared", rows), len(forwards))
    # The second one's only shard, and other rows.
    found["bad"] = message(lambda: shared("bad", [*rows.select(range(4)), {"input_ids": [1, 999], "labels": [1, 1]}]))
    found["other"] = message(lambda: shared("other", rows.select(range(8 + processes.rank()))))
    return found


def commands(folder: Path) -> dict:
    """The commands in processes that have met: status, and what each process prints."""
    found = {}

    def command(*arguments) -> list:
        out, said = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
            status = cli.main(list(map(str, arguments)))
        processes.wait()
        lines = [line for line in said.getvalue().splitlines() if line.startswith("bitdistill")]
        return [status, out.getvalue(), lines]

    student, data = folder / "models" / "student", folder / "data"
    found["wrong"] = command("evaluate", student, "--task", data / "nothing.yaml")
    place = data if processes.is_first() else folder / "other"
    found["data"] = command("evaluate", student, "--task", data / "tone.yaml", "--data_dir", place)
    found["pack"] = command("pack", student, folder / "packed")
    asked = ("--task", data / "tone.yaml", "--data_dir", data, "--eval_batch_size", "3")
    found["evaluate"] = command("evaluate", student, *asked, "--output_file", folder / "score.json")
    found["text"] = command("evaluate", folder / "packed", "--corpus", data / "validation.jsonl", "--text_column", "sentence", "--block_size", "16")  # fmt: skip
    found["cache"] = command("cache-teacher", "--model_name_or_path", student, *asked[:4], "--output_dir", folder / "command", "--shard_examples", "4")  # fmt: skip
    found["device"] = str(default_device())
    return found


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    found = {
        "checks": checks(folder / "checks"),
        "checkpoints": checkpoints(folder / "checkpoints"),
        "scores": scores(folder),
        "cache": cache(folder),
        "commands": commands(folder),
        "native": native(folder),
    }
    (folder / f"{processes.rank()}.json").write_text(json.dumps(found))
    processes.wait()
    # (torch can hang where it frees a DDP model and gloo's group.)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


main()
