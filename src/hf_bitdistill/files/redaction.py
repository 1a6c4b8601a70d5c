"""Secrets in options: found by the names they stand under and by their looks, and taken out before anything is written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any


MASK = "<SECRET>"

# `pad_token` and the like are no secrets, but nothing is lost with them either: options of a tokenizer are not looked at here.
_SECRET_NAME = re.compile(
    r"(^|[_-])(token|secret|secret_key|password|passwd|passphrase|api_?key|access_?key|auth|authorization|credentials?|cookie)$",
    re.IGNORECASE,
)
_CREDENTIALS = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]*://)[^/\s@]+@")
_QUERY = re.compile(r"(?P<name>[?&][\w-]*(?:token|secret|password|key|signature|sig)=)[^&\s#]+", re.IGNORECASE)
_MASKED = re.compile(r"<[A-Z_]+>")
#: How a token of the Hub looks, and how it begins.
HUB_TOKEN_PREFIXES = ("hf_", "api_org_")
HUB_TOKEN = re.compile(rf"\b(?:{'|'.join(HUB_TOKEN_PREFIXES)})[A-Za-z0-9]{{16,}}")


def secrets_of(values: Any) -> set[str]:
    """The strings that stand under a secret's name, however deep."""
    found: set[str] = set()
    if isinstance(values, Mapping):
        for name, value in values.items():
            if isinstance(value, str) and value and _SECRET_NAME.search(str(name)):
                found.add(value)
            elif isinstance(value, Mapping) and _SECRET_NAME.search(str(name)):
                found |= {part for part in value.values() if isinstance(part, str) and part}
            found |= secrets_of(value)
    elif isinstance(values, (list, tuple, set)):
        for value in values:
            found |= secrets_of(value)
    return found


def redact_text(text: str, known: AbstractSet[str] = frozenset()) -> str:
    """A text without credentials in addresses, tokens of the Hub, and what is known to be secret."""
    for secret in sorted(known, key=len, reverse=True):
        # What is short may be a word of its own; a secret is not.
        if len(secret) >= 8 or text == secret:
            text = text.replace(secret, MASK)
    text = _CREDENTIALS.sub(rf"\g<scheme>{MASK}@", text)
    text = _QUERY.sub(rf"\g<name>{MASK}", text)
    return HUB_TOKEN.sub(MASK, text)


def redact(values: Any, known: set[str] | None = None, mask: str | None = MASK) -> Any:
    """A copy of options in which `mask` stands for every secret. Objects other than dicts, lists and strings are not copied.

    Args:
        values: dicts, lists, strings; other objects are handed through.
        known: secrets found elsewhere, taken out wherever they stand. Default: those in `values`.
        mask: what stands where a secret was a value of its own; inside of a longer text it is [`MASK`].
    """
    known = secrets_of(values) if known is None else known
    if isinstance(values, str):
        return redact_text(values, known)
    if isinstance(values, Mapping):
        return {
            name: _masked(value, mask) if _SECRET_NAME.search(str(name)) else redact(value, known, mask)
            for name, value in values.items()
        }
    if type(values) in (list, tuple, set):
        return type(values)(redact(value, known, mask) for value in values)
    return values


def _masked(value: Any, mask: str | None) -> Any:
    """`token=True` (the one of the login) and `None` are no secrets, and neither is what was masked before."""
    if value is None or isinstance(value, (bool, int, float)) or not value:
        return value
    if isinstance(value, Mapping):
        return {name: _masked(part, mask) for name, part in value.items()}
    return value if isinstance(value, str) and _MASKED.fullmatch(value) else mask
