"""Pre-trains the small Llama that the quickstart ships: `python scripts/train_quickstart_teacher.py`.

Text: the docstrings of Python's standard library and of the packages listed below, as far as they are installed, minus
every paragraph that the quickstart holds out (`hf_bitdistill.quickstart.corpus.split_of`). Stopped and started again,
it goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import platform
import shutil
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from datasets import Dataset
from quickstart_base_model import new_base_model, train_tokenizer
from transformers import AutoTokenizer, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from hf_bitdistill.data import pack_corpus
from hf_bitdistill.evaluation import perplexity
from hf_bitdistill.quickstart.corpus import QUICKSTART_PACKAGES, extract, split_texts
from hf_bitdistill.quickstart.settings import TEACHER_FOLDER
from hf_bitdistill.recipe.train import Machine, training_arguments


# Dependencies of this project: what it is installed with. Their licences are BSD, MIT, Apache-2.0 or PSF.
PACKAGES = [
    "python",
    "numpy",
    "torch",
    "transformers",
    "pandas",
    "sympy",
    "matplotlib",
    "networkx",
    "pyarrow",
    "nltk",
    "datasets",
    "PIL",
    "accelerate",
    "peft",
    "mpmath",
    "huggingface_hub",
    "optimum",
    "aiohttp",
    "setuptools",
    "fsspec",
    "httpx",
    "tqdm",
    "jinja2",
    "evaluate",
    "fontTools",
    "joblib",
    "regex",
    "click",
    "rich",
]
BLOCK_SIZE = 128

README = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# Base model of the quickstart

A Llama of {parameters:.2f} M parameters ({layers} layers of width {width}, vocabulary {vocabulary}), in bfloat16, with which
`bitdistill quickstart` shows the whole pipeline in minutes. It writes text that looks like Python documentation; it is good
for nothing else.

- **Trained by** `{command}` of this project, finished on {date},
  on {threads} thread(s) of a CPU (Python {python}, torch {torch}, transformers {transformers}).
- **Text**: {characters:.1f} M characters of docstrings ({documents} documents) of Python's standard library and of these
  installed packages:
  {packages}.
  Paragraphs that the quickstart holds out (test 12 %, validation 4 %, by a hash of their first words:
  `quickstart/corpus.py`) are not in it.
- **Training**: {tokens:.2f} M tokens ({steps} steps of {batch_size} blocks of {block_size}, {epochs:.2f} epochs), AdamW, peak
  learning rate {learning_rate:g}, linear decay over the last quarter, seed {seed}.
- **Result**: training loss {train_loss:.3f}, validation loss {validation_loss:.3f} nats a token (perplexity
  {perplexity:.2f}, blocks of {block_size}, {validation_tokens} tokens).

## Licence

The weights are published under the project's licence (Apache-2.0). The text belongs to the authors of the packages, whose
licences (BSD, MIT, Apache-2.0, PSF and similar) allow its use; none of it is contained in this folder.
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=TEACHER_FOLDER, help="folder of the finished model")
    parser.add_argument("--work", type=Path, default=Path("quickstart_teacher"), help="checkpoints")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--hidden-size", type=int, default=192)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)

    documents = extract(PACKAGES)
    texts = split_texts(documents, "train")
    validation = split_texts(documents, "validation")
    print(f"{len(texts)} training documents, {sum(map(len, texts)) / 1e6:.1f} M characters", flush=True)
    tokenizer_folder = arguments.work / "tokenizer"
    if tokenizer_folder.is_dir():
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    else:
        tokenizer = train_tokenizer(texts, arguments.vocab_size, QUICKSTART_PACKAGES)
        tokenizer.save_pretrained(tokenizer_folder)
    with tempfile.TemporaryDirectory() as cache:
        corpus = Dataset.from_dict({"text": texts}).shuffle(seed=arguments.seed)
        blocks = pack_corpus(corpus.flatten_indices(cache_file_name=f"{cache}/corpus.arrow"), tokenizer, BLOCK_SIZE)
        print(f"{len(blocks) * BLOCK_SIZE / 1e6:.2f} M tokens", flush=True)
        train(arguments, tokenizer, documents, texts, validation, blocks)


def train(arguments, tokenizer, documents, texts, validation, blocks) -> None:
    model = new_base_model(tokenizer, arguments.hidden_size, arguments.layers, arguments.seed)
    settings = training_arguments(
        TrainingArguments,
        arguments.work,
        Machine(bf16=False),
        steps=arguments.steps,
        batch=arguments.batch_size,
        micro=arguments.batch_size,
        rate=arguments.learning_rate,
        adam_beta2=0.95,
        seed=arguments.seed,
        train_sampling_strategy="random",
        # Constant, then linear to zero: started again with fewer or more --steps, a stopped run still ends well.
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": arguments.steps // 4, "decay_type": "linear"},
        warmup_steps=min(100, arguments.steps // 4),
        weight_decay=0.1,
        logging_steps=50,
        save_strategy="steps",
        save_steps=arguments.save_steps,
        use_cpu=True,
        disable_tqdm=not sys.stderr.isatty(),
    )
    trainer = Trainer(model=model, args=settings, train_dataset=blocks)
    last = get_last_checkpoint(settings.output_dir) if Path(settings.output_dir).is_dir() else None
    result = trainer.train(resume_from_checkpoint=last)

    model.to(torch.bfloat16)
    # What is measured is what is shipped, the rounded weights; computed in float32, which a CPU does faster.
    rounded = copy.deepcopy(model).float()
    measured = perplexity(rounded, tokenizer, validation, BLOCK_SIZE, batch_size=32, max_blocks=500, progress=False)
    staging = arguments.work / "finished"
    shutil.rmtree(staging, ignore_errors=True)
    model.save_pretrained(staging)
    tokenizer.save_pretrained(staging)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    tokens = arguments.steps * arguments.batch_size * BLOCK_SIZE
    card = README.format(
        parameters=model.num_parameters() / 1e6,
        layers=arguments.layers,
        width=arguments.hidden_size,
        vocabulary=len(tokenizer),
        command=f"scripts/{Path(sys.argv[0]).name} {' '.join(_public_options(sys.argv[1:]))}".strip(),
        date=datetime.date.today().isoformat(),
        threads=arguments.threads,
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        characters=sum(map(len, texts)) / 1e6,
        documents=len(texts),
        packages=", ".join(dict.fromkeys(document.source for document in documents if document.source != "python")),
        tokens=tokens / 1e6,
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        block_size=BLOCK_SIZE,
        epochs=tokens / (len(blocks) * BLOCK_SIZE),
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
        train_loss=sum(losses[-4:]) / max(1, len(losses[-4:])),
        validation_loss=measured["nll_per_token"],
        validation_tokens=measured["tokens"],
        perplexity=measured["perplexity"],
    )
    (staging / "README.md").write_text(card)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for file in staging.iterdir():
        shutil.copy2(file, arguments.output / file.name)
    print(f"{arguments.output}: {result.global_step} steps, {measured}", flush=True)


def _public_options(options: list[str]) -> list[str]:
    """The command without folders of this machine."""
    kept, skip = [], False
    for option in options:
        if skip or option.startswith(("--output", "--work")):
            skip = option in ("--output", "--work")
            continue
        kept.append(option)
    return kept


if __name__ == "__main__":
    main()
