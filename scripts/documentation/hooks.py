"""Hooks of MkDocs: the page of the command line, and links to files of the repository that are no pages.

A link to a file outside of `docs/` leads to the repository where `[project.urls]` of pyproject.toml names one, and is shown as text where not.
Either way the file has to be there.
"""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path


try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
log = logging.getLogger("mkdocs.hooks.documentation")

_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]+)\]\((?P<target>[^)\s]+)\)")
_FENCE = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)


def repository() -> str | None:
    """Its address, if pyproject.toml says one."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"].get("urls", {})
    return next((url.rstrip("/") for name, url in urls.items() if name.lower() in ("repository", "source")), None)


def outside(markdown: str, page: Path, address: str | None) -> str:
    """Links to files of the repository that are not in docs/, as the site has them.

    Raises:
        FileNotFoundError: a file or folder that is not there.
    """

    def link(match: re.Match) -> str:
        target = match["target"]
        name, _, anchor = target.partition("#")
        if "://" in target or not name or target.startswith("mailto:"):
            return match[0]
        file = (page.parent / name).resolve()
        if file.is_relative_to(ROOT / "docs"):
            return match[0]  # (MkDocs looks at these)
        if not file.exists():
            raise FileNotFoundError(f"{page}: links to {target}, which is not there")
        if address is None:
            return match["text"]
        inside = file.relative_to(ROOT).as_posix()
        return f"[{match['text']}]({address}/blob/main/{inside}{'#' + anchor if anchor else ''})"

    parts = _FENCE.split(markdown)
    return "".join(part if part.startswith("```") else _LINK.sub(link, part) for part in parts)


def on_page_markdown(markdown: str, page, config, files) -> str:
    file = Path(config["docs_dir"]) / page.file.src_uri
    try:
        return outside(markdown, file, repository())
    except FileNotFoundError as error:
        log.warning(str(error))
        return markdown


def on_files(files, config):
    """The page of the command line, made from the parsers of the commands."""
    from mkdocs.structure.files import File

    sys.path.insert(0, str(ROOT / "scripts"))
    from documentation.commands import page

    files.append(File.generated(config, "cli.md", content=page()))
    return files
