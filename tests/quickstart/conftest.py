"""A base model that is made in a second, and settings for a run of a few steps."""

from __future__ import annotations

import pytest

from hf_bitdistill.quickstart.corpus import Document, extract, split_texts


@pytest.fixture(scope="session")
def documents() -> list[Document]:
    """Docstrings of a small part of two libraries."""
    return extract(["python", "numpy"], max_bytes=400_000)


@pytest.fixture(scope="session")
def base_folder(documents, tmp_path_factory):
    """An untrained base model with a tokenizer of 512 tokens."""
    from hf_bitdistill.quickstart.base_model import new_base_model, train_tokenizer

    folder = tmp_path_factory.mktemp("base")
    tokenizer = train_tokenizer(split_texts(documents, "train")[:200], 512)
    tokenizer.save_pretrained(folder)
    new_base_model(tokenizer, hidden_size=64, layers=2).save_pretrained(folder)
    return folder
