"""A base model that is made in a second, and settings for a run of a few steps."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hf_bitdistill.quickstart.corpus import Document, extract, split_texts


sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))


@pytest.fixture(scope="session")
def documents() -> list[Document]:
    """Docstrings of a small part of two libraries."""
    return extract(["python", "numpy"], max_bytes=400_000)


@pytest.fixture(scope="session")
def few_documents(documents):
    """The quickstart reads these, in place of all packages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_bitdistill.quickstart.data.extract", lambda *_: documents)
        yield documents


@pytest.fixture(scope="session")
def base_folder(documents, tmp_path_factory):
    """An untrained base model with a tokenizer of 512 tokens, stored as the shipped one is."""
    from quickstart_base_model import new_base_model, train_tokenizer

    folder = tmp_path_factory.mktemp("base")
    tokenizer = train_tokenizer(split_texts(documents, "train")[:200], 512)
    tokenizer.save_pretrained(folder)
    new_base_model(tokenizer, hidden_size=64, layers=2).bfloat16().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(base_folder, few_documents):
    """Settings of a run of a few steps."""
    from hf_bitdistill.quickstart import QuickstartSettings

    return QuickstartSettings(
        base_model=base_folder,
        threads=1,
        train_examples=50,
        test_examples=20,
        shown_examples=2,
        numbers={
            "batch_size": 4,
            "teacher_examples": 24,
            "corpus_tokens": 192,
            "pretrain_batch_size": 2,
            "block_size": 32,
            "distill_examples": 12,
            "check_teacher": False,
            "speed": False,
        },
    )
