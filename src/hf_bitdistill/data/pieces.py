"""Cuts long texts into pieces whose tokens, one after the other, are those of the whole text.

A tokenizer needs fifty bytes and more for each byte of a text at once. Where a text may be cut depends on the tokenizer (one keeps
line breaks together, another puts a space in front of every text), so a border is not guessed but tried: the text around it must
have the same tokens cut and uncut. What a tokenizer does at one place does not depend on text far away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Characters tokenized at once: of one text, and of all texts of a call.
PIECE = 1 << 16
CALL = 1 << 20

# Characters on either side of a border that are looked at, and how many borders of each kind are tried.
_CONTEXT = 256
_TRIES = 24

Encode = Callable[[list[str]], list[list[int]]]


def text_encoder(tokenizer: PreTrainedTokenizerBase, parse_special_tokens: bool = False) -> Encode:
    """A function of texts to their token ids, without special tokens around them, and none for their names in them unless asked for."""

    def encode(texts: list[str]) -> list[list[int]]:
        # verbose=False: a text longer than the model's context is cut later, a warning would mislead.
        return tokenizer(
            texts,
            add_special_tokens=False,
            return_attention_mask=False,
            verbose=False,
            split_special_tokens=not parse_special_tokens,
        )["input_ids"]

    return encode


class PieceCutter:
    """Cuts documents, which may come in parts, into pieces of at most about :data:`PIECE` characters.

    Args:
        encode: The tokenizer: texts to token ids, without special tokens around them.
    """

    def __init__(self, encode: Encode):
        self._encode = encode
        self._rest = ""

    def cut(self, parts: Iterable[tuple[str, bool]]) -> Iterator[tuple[str, bool]]:
        """Pieces of parts. The end of a part that goes on is kept until the next one is there, or :meth:`finish`.

        Args:
            parts: ``(text, continues)``: a document, or a part of one that goes on in the next.

        Yields:
            ``(text, continues)`` again.
        """
        for part, continues in parts:
            text, start = self._rest + part, 0
            while len(text) - start > PIECE:
                end, skipped = _border(text[start : start + PIECE + _CONTEXT], self._encode)
                yield text[start : start + end], True
                start += end + skipped
            self._rest = text[start:]
            if not continues:
                yield from self.finish(True)

    def finish(self, ended: bool = False) -> Iterator[tuple[str, bool]]:
        """What is left of the last document; nothing, if it ``ended`` before."""
        rest, self._rest = self._rest, ""
        if rest or ended:
            yield rest, False


def _border(text: str, encode: Encode) -> tuple[int, int]:
    """Where a text may be cut: `(end of the first piece, characters between it and the next)`.

    Spaces first, the last one first; where no space will do, after anything that is no letter; at last anywhere. If every place
    changes tokens, it is cut in front of the last space all the same, or where it ends.
    """
    last, first = len(text) - _CONTEXT, len(text) // 2
    spaces = [at for at in range(last, first, -1) if text[at].isspace() and not text[at - 1].isspace()][:_TRIES]
    marks = [at for at in range(last, first, -1) if not text[at - 1].isalnum()][:_TRIES]
    for at in [*spaces, *marks, *range(last, max(first, last - _TRIES), -1)]:
        before, after = text[max(0, at - _CONTEXT) : at], text[at : at + _CONTEXT]
        # In front of the space, behind it, or (a tokenizer that puts one in front of every text) without it.
        choices = [(0, 0), (1, 0), (0, 1)] if after[:1].isspace() else [(0, 0)]
        for kept, skipped in choices:
            left, right = before + after[:kept], after[kept + skipped :]
            whole, *halves = encode([before + after, left, right])
            if halves[0] + halves[1] == whole:
                return at + kept, skipped
    return (spaces or [last])[0], 0


def calls(parts: Iterable[tuple[str, bool]]) -> Iterator[list[tuple[str, bool]]]:
    """Lists of parts of about :data:`CALL` characters together."""
    group: list[tuple[str, bool]] = []
    size = 0
    for part in parts:
        group.append(part)
        size += len(part[0])
        if size >= CALL:
            yield group
            group, size = [], 0
    if group:
        yield group
