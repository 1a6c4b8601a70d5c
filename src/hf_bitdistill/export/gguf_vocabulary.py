"""A tokenizer as the vocabulary of a GGUF file.

GGUF stores no pre-tokenizer and no normalizer: it names the ones that llama.cpp has in its source. A tokenizer whose parts are not exactly those
of a name is refused, because text would be cut into other tokens than those the student was trained on, and nothing would tell.

| vocabulary | tokenizer it stands for |
|---|---|
| `gpt2` | byte-level BPE: bytes as printable characters, merges by rank, pieces cut by a regular expression that has a name ([`_PRE_TOKENIZERS`]) |
| `llama` | BPE as SentencePiece makes it: spaces as `▁`, bytes as `<0x0A>`; neighbours are merged by the score of what they make |
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from .errors import UnsupportedExportError


_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)

_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_QWEN35 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LOWER, _UPPER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES_BY_REGEX = ("ByteLevel", True)
_BYTES = ("ByteLevel", False)

# Steps of a pre-tokenizer, and whether a piece that is a token is taken whole -> llama.cpp's name.
_PRE_TOKENIZERS: dict[tuple[tuple[Any, ...], bool], str] = {
    ((_BYTES_BY_REGEX,), False): "gpt-2",
    ((("Digits", True), _BYTES_BY_REGEX), False): "smollm",
    ((("Split", _LLAMA3), _BYTES), True): "llama-bpe",
    ((("Split", _LLAMA3), _BYTES), False): "smaug-bpe",
    ((("Split", _QWEN2), _BYTES), False): "qwen2",
    ((("Split", _QWEN35), _BYTES), False): "qwen35",
    ((("Split", _TEKKEN), _BYTES), True): "tekken",
    ((("Split", _GPT4O), _BYTES), False): "gpt-4o",
}


def named_pre_tokenizer(name: str) -> tuple[dict[str, Any], bool] | None:
    """What a name of llama.cpp stands for: the pre-tokenizer as `tokenizer.json` has it, and whether a piece that is a token is taken whole;
    `None`: it is not known here."""
    for (steps, whole), known in _PRE_TOKENIZERS.items():
        if known == name:
            return {"type": "Sequence", "pretokenizers": [_step(*step) for step in steps]}, whole
    return None


def _step(kind: str, option: Any) -> dict[str, Any]:
    if kind == "Split":
        return {"type": kind, "pattern": {"Regex": option}, "behavior": "Isolated", "invert": False}
    if kind == "Digits":
        return {"type": kind, "individual_digits": option}
    return {"type": kind, "add_prefix_space": False, "trim_offsets": True, "use_regex": option}


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of a tokenizer.

    Attributes:
        model: `"gpt2"` or `"llama"`.
        pre: name of the pre-tokenizer.
        tokens, types: one for each row of the embedding.
        merges: of `"gpt2"`. scores: of `"llama"`.
        ids: `"bos"`, `"eos"`, `"unk"`, `"pad"`, `"eot"` -> id, those there are.
        flags: `add_bos_token` and the like.
        chat_template: or `None`; several by name.
        notes: what is not the same in llama.cpp, for people.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str] | None
    scores: list[float] | None
    ids: dict[str, int]
    flags: dict[str, bool]
    chat_template: str | dict[str, str] | None
    notes: list[str] = field(default_factory=list)


def read_vocabulary(
    tokenizer: PreTrainedTokenizerBase, rows: int, end_ids: Sequence[int] = (), pre: str | None = None
) -> Vocabulary:
    """The vocabulary of a tokenizer.

    Args:
        tokenizer: a fast one (`tokenizer.json`).
        rows: of the embedding; ids without a token become unused ones.
        end_ids: which tokens end an answer, by the generation settings.
        pre: name of the pre-tokenizer, where the caller knows better than this module.

    Raises:
        UnsupportedExportError: GGUF has no such tokenizer, or its pre-tokenizer has no name that is known here.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UnsupportedExportError(
            "the tokenizer has no tokenizer.json, which is what is exported: save it as a fast tokenizer."
        )
    parts = json.loads(backend.to_str())
    model = parts["model"]
    if model.get("type") != "BPE":
        raise UnsupportedExportError(f"a tokenizer of type {model.get('type')!r}; only BPE is exported.")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise UnsupportedExportError(f"the tokenizer's {option}={model[option]!r}, which GGUF does not have.")
    notes = list(_notes_of_added(parts["added_tokens"]))
    tokens, types = _tokens(parts, rows)
    flags = _flags(tokenizer)
    ids = {
        name: index
        for name in ("bos", "eos", "unk", "pad")
        if (index := getattr(tokenizer, f"{name}_token_id", None)) is not None and index < rows
    }
    ends = [index for index in end_ids if index < rows]
    if "eos" not in ids and not ends:
        # llama.cpp has a default, which is some token.
        raise UnsupportedExportError(
            "the tokenizer has no token that ends a text (eos_token), and no generation settings name one."
        )
    if "eos" not in ids:
        ids["eos"] = ends[0]
    ids.setdefault("bos", ids["eos"])  # not put anywhere unless `add_bos_token`
    others = [index for index in ends if index != ids["eos"]]
    ids.update(zip(("eot", "eom"), others, strict=False))
    if len(others) > 2:
        notes.append(f"tokens that end an answer and have no place in a GGUF file: {others[2:]}")
    merges = scores = None
    if model.get("byte_fallback"):
        kind, pre = "llama", pre or "default"
        flags["add_space_prefix"] = _space_prefix(parts)
        if flags["add_space_prefix"] and parts["pre_tokenizer"] is not None:
            notes.append(
                "llama.cpp puts a space also before a text that begins with one, and before text behind a special token; this tokenizer "
                "does not always"
            )
        scores = _scores(model, tokens, types)
    else:
        kind, pre = "gpt2", pre or _pre_tokenizer(parts)
        merges = [" ".join(pair) for pair in _merges(model)]
        if parts["normalizer"] is not None:
            notes.append("text that is not in Unicode's normal form C is not brought into it by llama.cpp")
        if pre in ("gpt-2", "llama-bpe", "smaug-bpe"):
            notes.append(f"llama.cpp leaves out spaces before punctuation when it writes tokens of {pre!r} as text")
    return Vocabulary(kind, pre, tokens, types, merges, scores, ids, flags, _chat_template(tokenizer), notes)


def _tokens(parts: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    model = parts["model"]
    tokens: list[str | None] = [None] * rows
    types = [_UNUSED] * rows
    added = {entry["content"]: entry for entry in parts["added_tokens"]}
    entries = [*model["vocab"].items(), *((text, entry["id"]) for text, entry in added.items())]
    for text, index in entries:
        if index >= rows:
            raise UnsupportedExportError(f"token {text!r} has id {index}, but the embedding has {rows} rows.")
        if tokens[index] not in (None, text):
            raise UnsupportedExportError(f"two tokens have id {index}: {tokens[index]!r} and {text!r}.")
        tokens[index], types[index] = text, _type(text, added.get(text), model)
    return [f"[PAD{index}]" if text is None else text for index, text in enumerate(tokens)], types


# Options of an added token of which GGUF has none, and what such a token does.
_ADDED = {
    "lstrip": "take the spaces before them",
    "rstrip": "take the spaces behind them",
    "single_word": "are found as whole words only",
}


def _notes_of_added(entries: list[dict[str, Any]]) -> Iterator[str]:
    for option, what in _ADDED.items():
        texts = [repr(entry["content"]) for entry in entries if entry.get(option)]
        if texts:
            more = f" and {len(texts) - 3} more" if len(texts) > 3 else ""
            yield f"the added tokens {', '.join(texts[:3])}{more} {what} here ({option}), which a GGUF file cannot say"


def _type(text: str, added: dict[str, Any] | None, model: dict[str, Any]) -> int:
    if text == model.get("unk_token") and model.get("byte_fallback"):
        return _UNKNOWN
    if added is not None:
        return _CONTROL if added["special"] else _USER_DEFINED
    is_byte = model.get("byte_fallback") and len(text) == 6 and text.startswith("<0x") and text.endswith(">")
    return _BYTE if is_byte else _NORMAL


def _merges(model: dict[str, Any]) -> list[Any]:
    """Pairs."""
    return [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]


def _steps(pre_tokenizer: dict[str, Any] | None) -> Iterator[tuple[Any, ...]]:
    """The steps of a pre-tokenizer, each with the options that say what it does."""
    if pre_tokenizer is None:
        return
    kind = pre_tokenizer["type"]
    if kind == "Sequence":
        for step in pre_tokenizer["pretokenizers"]:
            yield from _steps(step)
    elif kind == "ByteLevel" and not pre_tokenizer["add_prefix_space"]:
        yield ("ByteLevel", pre_tokenizer["use_regex"])
    elif kind == "Digits":
        yield ("Digits", pre_tokenizer["individual_digits"])
    elif kind == "Split" and pre_tokenizer["behavior"] == "Isolated" and not pre_tokenizer["invert"]:
        yield ("Split", pre_tokenizer["pattern"].get("Regex"))
    else:
        yield (kind, json.dumps(pre_tokenizer, sort_keys=True))


def _pre_tokenizer(parts: dict[str, Any]) -> str:
    normalizer = parts["normalizer"]
    if normalizer is not None and normalizer["type"] != "NFC":
        raise UnsupportedExportError(f"the tokenizer's normalizer {normalizer['type']!r}, which GGUF does not have.")
    steps = tuple(_steps(parts["pre_tokenizer"]))
    name = _PRE_TOKENIZERS.get((steps, bool(parts["model"].get("ignore_merges"))))
    if name is None:
        known = ", ".join(sorted(set(_PRE_TOKENIZERS.values())))
        raise UnsupportedExportError(
            f"the tokenizer's pre-tokenizer is none of those that are known here ({known}): {json.dumps(parts['pre_tokenizer'])[:300]}. If "
            "llama.cpp has it under another name, give that name with --pre_tokenizer."
        )
    return name


def _space_prefix(parts: dict[str, Any]) -> bool:
    """Whether a space is put before a text, of a tokenizer that writes spaces as `▁`."""
    normalizer, pre_tokenizer = parts["normalizer"], parts["pre_tokenizer"]
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    prefix = [step for step in steps if step == {"type": "Prepend", "prepend": "▁"}]
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"} in steps
    others = len(steps) - len(prefix) - int(replaced)
    if pre_tokenizer is None and replaced and not others:
        return bool(prefix)
    is_metaspace = pre_tokenizer is not None and pre_tokenizer["type"] == "Metaspace" and not steps
    if is_metaspace and pre_tokenizer["replacement"] == "▁" and not pre_tokenizer["split"]:
        return pre_tokenizer["prepend_scheme"] != "never"
    raise UnsupportedExportError(
        "the tokenizer prepares a text in another way than SentencePiece does: "
        f"normalizer {json.dumps(normalizer)[:200]}, pre-tokenizer {json.dumps(pre_tokenizer)[:200]}."
    )


def _scores(model: dict[str, Any], tokens: list[str], types: list[int]) -> list[float]:
    """Scores under which merging by score gives what merging by rank gives.

    That needs merges as SentencePiece's are: those that make the same token follow each other, and every way to make a token is one of them.

    Raises:
        UnsupportedExportError: they are not.
    """
    merges = _merges(model)
    order: dict[str, int] = {}
    last = None
    for left, right in merges:
        made = left + right
        if made in order and made != last:
            raise UnsupportedExportError(
                f"the tokenizer's merges make {made!r} at different ranks, which scores cannot say."
            )
        order.setdefault(made, len(order))
        last = made
    normal = {token for token, kind in zip(tokens, types, strict=True) if kind == _NORMAL}
    known = set(merges)
    for token in normal:
        for cut in range(1, len(token)):
            pair = (token[:cut], token[cut:])
            if pair[0] in normal and pair[1] in normal and pair not in known:
                raise UnsupportedExportError(
                    f"the tokenizer does not merge {pair[0]!r} and {pair[1]!r}, which llama.cpp would."
                )
    missing = [byte for byte in range(256) if f"<0x{byte:02X}>" not in model["vocab"]]
    if missing:
        raise UnsupportedExportError(f"the tokenizer has no token for byte {missing[0]}.")
    return [-float(order[token]) if token in order else 0.0 for token in tokens]


def _flags(tokenizer: PreTrainedTokenizerBase) -> dict[str, bool]:
    """Which tokens are put around a text."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    for first in (False, True):
        for last in (False, True):
            before = [tokenizer.bos_token_id] if first else []
            after = [tokenizer.eos_token_id] if last else []
            if whole == before + plain + after:
                return {"add_bos_token": first, "add_eos_token": last}
    raise UnsupportedExportError(
        f"the tokenizer puts other tokens around a text than the first and last one: {whole} for {plain}."
    )


def _chat_template(tokenizer: PreTrainedTokenizerBase) -> str | dict[str, str] | None:
    template = getattr(tokenizer, "chat_template", None)
    return template or None
