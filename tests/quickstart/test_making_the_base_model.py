"""What makes the shipped base model stands beside the package, not in it."""

import re
from pathlib import Path

import hf_bitdistill
from hf_bitdistill.quickstart.settings import TEACHER_FOLDER


def test_the_package_carries_no_code_that_makes_its_base_model():
    making = re.compile(r"\btrain_from_iterator\b|\bBpeTrainer\b|import.*\btrainers\b")
    package = Path(hf_bitdistill.__file__).parent
    assert not [str(file) for file in package.rglob("*.py") if making.search(file.read_text(encoding="utf-8"))]


def test_a_tokenizer_writes_back_what_it_reads(base_folder):
    from transformers import AutoTokenizer

    for folder in (base_folder, TEACHER_FOLDER):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        for text in ("Return x ** 2, or -1.", "  αβγ \n\tdef f(): 2024", "naïve 🙂"):
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
        digits = tokenizer.convert_ids_to_tokens(tokenizer("2024")["input_ids"])
        assert [digit.lstrip("Ġ") for digit in digits] == list("2024")


def test_whole_words_are_single_tokens():
    from quickstart_base_model import train_tokenizer

    tokenizer = train_tokenizer(["some words of some text"] * 3, 320, ["networkx", "pyarrow"])
    assert all(len(tokenizer(f" {word}")["input_ids"]) == 1 for word in ("networkx", "pyarrow"))
    assert len(tokenizer(" matplotlib")["input_ids"]) > 1
