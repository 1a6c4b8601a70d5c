"""README.md and the pages of docs/, as the tests read them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]

_BLOCK = re.compile(r"^(?:<!-- (?P<mark>not run|long): (?P<reason>[^>]+) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.S | re.M)  # fmt: skip


@dataclass(frozen=True)
class Block:
    """One block of code.

    Args:
        mark: `"not run"` or `"long"`, by a comment in front of the block, which says why.
    """

    page: str
    line: int
    language: str
    code: str
    mark: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(str(page.relative_to(ROOT)), text.count("\n", 0, m.start("code")) + 1, m["language"], m["code"], m["mark"])
        for m in _BLOCK.finditer(text)
    ]  # fmt: skip


def paragraphs(text: str) -> Iterator[str]:
    """Paragraphs and items of lists; not code, tables, headings and comments."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    for part in re.split(r"\n\s*\n", text):
        for item in re.split(r"\n(?=\s*(?:[-*]|\d+\.) )", part):
            if item.strip() and not item.lstrip().startswith(("|", "#", ":::")):
                yield item


def words(text: str) -> int:
    """As a reader counts them: without the addresses of links."""
    return len(re.sub(r"\]\([^)]*\)", "]", text).split())


def anchors(page: Path) -> set[str]:
    """Of the headings of a page, as GitHub and MkDocs make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    found = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.M):
        plain = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        found.add(re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip()))
    return found
