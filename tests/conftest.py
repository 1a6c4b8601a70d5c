"""Fixtures shared by all tests. Nothing here, and no test, may need the network."""

import gc
import os
import tempfile
import types
from pathlib import Path

import pytest


# Before transformers and datasets are imported, because both read these variables once. The cache is this run's own.
_CACHE = tempfile.TemporaryDirectory(prefix="hf-bitdistill-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = _CACHE.name
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The models are tiny: threads that wait for each other cost more than they bring, most of all on busy machines.
os.environ.setdefault("OMP_NUM_THREADS", "1")


SENTENCES = [
    "the little robot waters a green plant near the window .",
    "a warm and funny film that the whole family will enjoy .",
    "a dull story with no ideas and a very slow ending .",
    "my neighbour bakes bread every morning before the sun rises .",
    "nobody in the village remembers who built the old stone bridge .",
    "Review: Sentiment (negative or positive): Premise: Hypothesis: Relation Question: Sentence: Text: Article: Summary",
    "entailment, neutral or contradiction not_entailment of the article in one sentence in a few sentences Answers it",
]


# Files that take ten seconds and more, the longest first: one of them at the end leaves a worker alone with it.
_LONG = (
    "test_cpp.py",
    "test_recipe_resume.py",
    "test_run_recipe.py",
    "test_compile.py",
    "test_trainer_runs.py",
    "test_ternary_runs.py",
    "test_verify.py",
    "test_notebooks.py",
    "test_architectures.py",
    "test_overwriting.py",
    "test_run_given_models.py",
    "test_engines.py",
    "test_warm_start.py",
    "test_config_keys.py",
    "test_accuracy.py",
    "test_surgery.py",
    "test_quickstart_run.py",
    "test_out_of_core.py",
    "test_ternary_gather.py",
    "test_streamed_rows.py",
    "test_transformers_examples.py",
    "test_transformers_checkpoint.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """What asks for `shared_dir` is marked, before `-m` chooses; long files come first."""
    for item in items:
        if "shared_dir" in item.fixturenames:
            item.add_marker("needs_shared")
    items.sort(key=lambda item: _LONG.index(item.path.name) if item.path.name in _LONG else len(_LONG))


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Garbage is looked for when all is imported: among so many new objects, which all stay, it takes a quarter of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.fixture(scope="module", autouse=True)
def few_objects_to_collect():
    """`Trainer` collects garbage at every end of a training, which looks at all that the libraries have made since they were imported. Of each file
    again: what the files before it have imported, compiled and cached makes a training of a second take three."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder ``shared`` beside the repository, with real data and models; skips where it is missing."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the folder {folder}, which is not part of the repository")
    return folder


@pytest.fixture(scope="session")
def _tiny_backend() -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(SENTENCES, trainer)
    return backend.to_str()


@pytest.fixture
def tiny_tokenizer(_tiny_backend):
    """A byte-level BPE tokenizer of 384 tokens (any text can be encoded) with <pad>=0, <s>=1, </s>=2; adds none."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_tiny_backend), pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


@pytest.fixture
def tiny_llama_config():
    """A Llama of 2 layers, width 32, grouped queries (4 heads, 2 for keys and values), for ``tiny_tokenizer``."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=384,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


@pytest.fixture
def warm_worker(monkeypatch):
    """The processes in which `verify` tries both loaders have imported them already. (`test_a_sound_one` starts real ones.)"""
    import importlib

    import warm

    module = importlib.import_module("hf_bitdistill.verify.verify")
    monkeypatch.setattr(module, "subprocess", types.SimpleNamespace(run=warm.run))


@pytest.fixture
def warm_measure(monkeypatch):
    """The processes in which `evaluation.speed` measures have imported what they need already, so memory is not theirs alone."""
    import importlib

    import warm

    module = importlib.import_module("hf_bitdistill.evaluation.speed.systems")
    monkeypatch.setattr(module, "subprocess", types.SimpleNamespace(run=warm.run))


@pytest.fixture
def native_decoder():
    """Skips where the native library, or its decoder, is missing."""
    from hf_bitdistill.runtime import UnsupportedModelError
    from hf_bitdistill.runtime.native_decoder import load_library

    try:
        load_library()
    except UnsupportedModelError as error:
        pytest.skip(str(error))
