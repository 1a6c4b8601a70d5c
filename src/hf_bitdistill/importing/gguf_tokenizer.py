"""The tokenizer of a GGUF file, made by transformers."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from ..export.gguf_vocabulary import named_pre_tokenizer
from .gguf_config import EMBEDDING, graph_of
from .gguf_reading import GgufFile, Strings


# Other names that llama.cpp has for the same pre-tokenizer.
_SAME = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "falcon3": "llama-bpe", "deepseek-r1-qwen": "qwen2"}
_FILE = "tokenizer.gguf"
# Kinds of tokens that are taken whole, and those that llama.cpp begins a text of these pre-tokenizers with unless the file says otherwise.
_CONTROL, _USER_DEFINED = 3, 4
_BEGINS = ("llama-bpe", "tekken")
_NAMED_TEMPLATE = "tokenizer.chat_template."


class TokenizerError(ValueError):
    """A file has no tokenizer that transformers reads as llama.cpp does."""


def tokenizer_of(file: GgufFile) -> PreTrainedTokenizerFast:
    """The tokenizer of a file, with its chat template.

    Raises:
        TokenizerError: there is none, or one whose text would be cut otherwise than by llama.cpp.
    """
    kind = file.metadata.get("tokenizer.ggml.model")
    if kind is None:
        raise TokenizerError(f"{file.path} has no tokenizer")
    if kind == "gpt2" and named_pre_tokenizer(_pre(file)) is None:
        raise TokenizerError(
            f"{file.path}: how its tokenizer splits text (tokenizer.ggml.pre={_pre(file)!r}) is not known"
        )
    with tempfile.TemporaryDirectory() as folder:
        # The tensors, some of types that transformers does not know, and an architecture, are none of a tokenizer's business.
        file.write_metadata(Path(folder) / _FILE, ["tokenizer."], graph_of(file).model_type)
        try:
            return _as_it_computes(AutoTokenizer.from_pretrained(folder, gguf_file=_FILE), file)
        except Exception as error:  # of any kind, and naming no file
            line = " ".join(str(error).split())
            raise TokenizerError(
                f"{file.path}: transformers makes no tokenizer of it ({type(error).__name__}: {line})"
            ) from error


def _pre(file: GgufFile) -> str:
    name = str(file.metadata.get("tokenizer.ggml.pre", "default"))
    return _SAME.get(name, name)


def _as_it_computes(tokenizer: PreTrainedTokenizerBase, file: GgufFile) -> PreTrainedTokenizerFast:
    """The same tokenizer without its class, which has tokens of its own that the file need not have, and which, loaded again, would go by what its
    models usually are."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    count = tokens.count if isinstance(tokens, Strings) else 0
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < count]
    kind = file.metadata["tokenizer.ggml.model"]
    # (Not every transformers reads these; where the file says nothing, these are llama.cpp's defaults.)
    flags = {
        "add_bos_token": kind == "llama" or (kind == "gpt2" and _pre(file) in _BEGINS),
        "add_eos_token": False,
    }
    flags = {name: bool(file.metadata.get(f"tokenizer.ggml.{name}", default)) for name, default in flags.items()}
    if kind == "gpt2":
        _add_whole_tokens(content, file.metadata.get("tokenizer.ggml.token_type") or ())
        # (transformers takes GPT-2's for what it does not know, and never takes pieces whole.)
        known = named_pre_tokenizer(_pre(file))
        assert known is not None  # (others were refused before)
        content["pre_tokenizer"], content["model"]["ignore_merges"] = known
    elif kind == "llama":
        # (transformers puts no space before a text that begins with one.)
        prefix = file.metadata.get("tokenizer.ggml.add_space_prefix", True)
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        steps = [{"type": "Prepend", "prepend": "▁"}, replace] if prefix else [replace]
        content["normalizer"], content["pre_tokenizer"] = {"type": "Sequence", "normalizers": steps}, None
    backend = Tokenizer.from_str(json.dumps(content))
    if backend.get_vocab_size() > file.tensors[EMBEDDING].shape[0]:
        raise ValueError(f"{backend.get_vocab_size()} tokens, more than the embedding has")
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {name: file.metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in names.items()}
    special = {name: backend.id_to_token(token) for name, token in ids.items() if isinstance(token, int)}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=_chat_template(tokenizer, file),
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **flags,
        **{name: token for name, token in special.items() if token is not None},
    )


def _add_whole_tokens(content: dict[str, Any], types: Sequence[int]) -> None:
    """Add the control and user-defined tokens of a byte-level vocabulary that transformers has spelled in bytes and not added: those with
    characters that stand for no byte.

    Args:
        content: of a `tokenizers.Tokenizer`; changed in place.
        types: of each token, as the file has them.
    """
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    vocabulary, added = content["model"]["vocab"], {token["id"] for token in content["added_tokens"]}
    whole = {index for index, kind in enumerate(types) if kind in (_CONTROL, _USER_DEFINED)} - added
    for spelled, index in [(token, index) for token, index in vocabulary.items() if index in whole]:
        try:
            text = bytes(byte_of[character] for character in spelled).decode()
        except (KeyError, UnicodeDecodeError):
            text = spelled
        del vocabulary[spelled]
        vocabulary[text] = index
        options = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        content["added_tokens"].append({"id": index, "content": text, **options, "special": types[index] == _CONTROL})
    content["added_tokens"].sort(key=lambda token: token["id"])


def _chat_template(tokenizer: PreTrainedTokenizerBase, file: GgufFile) -> Any:
    """The template, or all of them by name where the file has more than one."""
    named = {
        key.removeprefix(_NAMED_TEMPLATE): str(text)
        for key, text in file.metadata.items()
        if key.startswith(_NAMED_TEMPLATE)
    }
    default = tokenizer.chat_template
    return {**({"default": default} if default else {}), **named} if named else default
