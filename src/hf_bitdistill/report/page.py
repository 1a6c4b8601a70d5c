"""An HTML page without a single request to anywhere."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable
from pathlib import Path


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>
body {{ font-family: sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
img {{ max-width: 100%; }}
table {{ border-collapse: collapse; margin: 1rem 0; }}
th, td {{ border: 1px solid #ccc; padding: 0.2rem 0.6rem; text-align: left; }}
</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""


def image(file: Path) -> str:
    """A PNG in the page itself."""
    data = base64.b64encode(file.read_bytes()).decode()
    return f'<p><img alt="{html.escape(file.stem)}" src="data:image/png;base64,{data}"></p>'


def write_page(file: Path, title: str, parts: Iterable[str]) -> None:
    """Write a page.

    Args:
        title: plain text.
        parts: HTML; empty ones are left out.
    """
    body = "\n".join(part for part in parts if part)
    file.write_text(_PAGE.format(title=html.escape(title), body=body), encoding="utf-8")
