"""An HTML page in one file: a content security policy in it forbids any request."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable
from pathlib import Path


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>
body {{ font-family: sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff; }}
img {{ max-width: 100%; background: #fff; }}
table {{ border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }}
th, td {{ border: 1px solid #ccc; padding: 0.2rem 0.6rem; text-align: left; }}{style}
@media (prefers-color-scheme: dark) {{
body {{ color: #ddd; background: #1e2129; }}
a {{ color: #8ab4f8; }}
th, td {{ border-color: #555; }}
}}
</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""


def html_page(title: str, body: str, style: str = "") -> str:
    """A page.

    Args:
        title: As text.
        body: As HTML.
        style: More rules of CSS.
    """
    return _PAGE.format(title=html.escape(f"hf-bitdistill: {title}"), body=body, style=style)


def image(file: Path) -> str:
    """A PNG file, embedded."""
    data = base64.b64encode(file.read_bytes()).decode()
    return f'<p><img alt="{html.escape(file.stem)}" src="data:image/png;base64,{data}"></p>'


def write_page(file: Path, title: str, parts: Iterable[str]) -> None:
    """Write a page.

    Args:
        title: As text.
        parts: HTML; empty ones are left out.
    """
    file.write_text(html_page(title, "\n".join(part for part in parts if part)), encoding="utf-8")
