"""The tokenizer of a GGUF file, made by transformers."""

from __future__ import annotations

import tempfile
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .gguf_config import architecture_of
from .gguf_file import GgufFile


# How text is split before its pieces are merged, by the names that llama.cpp gives to it: those that transformers reads as llama.cpp does. Of
# others it takes GPT-2's, silently.
_SPLITS = ("gpt-2", "llama-bpe", "llama3", "llama-v3", "falcon3", "qwen2", "deepseek-r1-qwen")
_FILE = "tokenizer.gguf"


class TokenizerError(ValueError):
    """A file has no tokenizer that transformers reads as llama.cpp does."""


def tokenizer_of(file: GgufFile) -> PreTrainedTokenizerBase:
    """The tokenizer of a file, with its chat template.

    Raises:
        TokenizerError: there is none, or one whose text would be cut otherwise than by llama.cpp.
    """
    kind, split = (file.metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if kind is None:
        raise TokenizerError(f"{file.path} has no tokenizer")
    if kind == "gpt2" and split not in _SPLITS:
        raise TokenizerError(f"{file.path}: how its tokenizer splits text (tokenizer.ggml.pre={split!r}) is not known")
    with tempfile.TemporaryDirectory() as folder:
        # The tensors, some of types that transformers does not know, and an architecture, are none of a tokenizer's business.
        file.write_metadata(Path(folder) / _FILE, ["tokenizer."], architecture_of(file).model_type)
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=_FILE)
        except Exception as error:  # of any kind, and naming no file
            line = " ".join(str(error).split())
            raise TokenizerError(
                f"{file.path}: transformers makes no tokenizer of it ({type(error).__name__}: {line})"
            ) from error
    tokenizer.name_or_path = ""
    vocabulary = file.tensors["token_embd.weight"].shape[0]
    if len(tokenizer) > vocabulary:
        raise TokenizerError(f"{file.path}: its tokenizer has {len(tokenizer)} tokens, its embedding {vocabulary}")
    return tokenizer
