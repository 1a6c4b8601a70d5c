"""README.md and docs/ stay short, their links lead somewhere, and their figures are those of the recorded results."""

import ast
import re
import subprocess
import sys

import pytest
import yaml

from pages import PAGES, README, ROOT, anchors, paragraphs, words


sys.path.insert(0, str(ROOT / "scripts"))

MADE = {"cli.md"}  # pages that are made when the site is built


def test_no_paragraph_is_long():
    long = [
        f"{page.relative_to(ROOT)}: {words(paragraph)} words: {paragraph.strip()[:60]}"
        for page in PAGES
        for paragraph in paragraphs(page.read_text(encoding="utf-8"))
        if words(paragraph) > 60
    ]
    assert not long, "\n".join(long)


def test_readme_is_one_page():
    assert len(README.read_text(encoding="utf-8").split()) <= 700


def test_a_design_note_is_short():
    notes = [page for page in PAGES if page.parent.name == "design"]
    assert len(notes) > 50
    assert not [page.name for page in notes if words(page.read_text(encoding="utf-8")) > 200]


def test_links_lead_somewhere():
    wrong = []
    for page in [*PAGES, ROOT / "benchmarks" / "README.md", ROOT / "CONTRIBUTING.md"]:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            name, _, anchor = target.partition("#")
            file = (page.parent / name).resolve() if name else page
            if "://" in target or file.name in MADE:
                continue
            if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
                wrong.append(f"{page.relative_to(ROOT)}: {target}")
    assert not wrong, "\n".join(wrong)


class _Loader(yaml.SafeLoader):
    """`mkdocs.yml` may name Python objects, which are not looked at here."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


def _nav(entries):
    for entry in entries:
        for target in entry.values() if isinstance(entry, dict) else [entry]:
            yield from [target] if isinstance(target, str) else _nav(target)


def test_every_page_is_in_the_navigation():
    config = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), _Loader)
    listed = sorted(_nav(config["nav"]))
    docs = ROOT / "docs"
    assert listed == sorted({str(page.relative_to(docs)) for page in PAGES if page != README} | MADE)


def test_every_error_of_the_page_is_in_the_code():
    """A page that quotes what no code says helps nobody."""
    said = []
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                said.append(_text(node.exc.args[0]))
    quoted = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "errors.md").read_text(encoding="utf-8"), re.M)
    assert len(quoted) > 40
    patterns = {quote: ".*".join(map(re.escape, quote.split("…"))) for quote in quoted}
    assert not [quote for quote, pattern in patterns.items() if not any(re.search(pattern, text) for text in said)]


def _text(node: ast.expr) -> str:
    """A message as it stands in the code, `…` for what is put in."""
    if isinstance(node, ast.Constant):
        return " ".join(str(node.value).split()) if not isinstance(node.value, str) else node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(value.value) if isinstance(value, ast.Constant) else "…" for value in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    return "…"


def test_tables_and_pictures_are_those_of_the_results():
    from documentation.make import stale

    assert list(stale()) == []


def test_a_changed_figure_is_noticed(tmp_path):
    from documentation.charts import digest, save, saved_digest
    from documentation.make import SHOWN

    chart = SHOWN["tokens"]().chart
    for name in ("picture.svg", "picture.png"):
        save(chart, tmp_path / name)
        assert saved_digest(tmp_path / name) == digest(chart)
    assert digest(chart) != digest(SHOWN["batch"]().chart)
    changed = type(chart)(**{**vars(chart), "levels": {"full precision": 1.0}})
    assert digest(changed) != digest(chart)


def test_an_unknown_result_is_refused(tmp_path):
    from documentation.make import made

    page = tmp_path / "page.md"
    page.write_text("<!-- shown: nothing -->\n<!-- end -->\n")
    with pytest.raises(ValueError, match="there is no result 'nothing'"):
        made(page)


def test_the_command_line_page_names_every_command_and_option():
    from documentation.commands import command_lines, page
    from hf_bitdistill_cli import COMMANDS

    text = page()
    assert len(command_lines()) > len(COMMANDS)
    for words_ in command_lines():
        assert f"## bitdistill {' '.join(words_)} {{ #bitdistill-{'-'.join(words_)} }}" in text
    for option in (
        "--effort {quick,standard,thorough}",
        "--table_bits {16,32,8,4}",
        "--keep_massive_ratio",
        "--logits_divergence",
    ):
        assert re.search(re.escape(option.partition(" ")[0]), text), option
    assert "every option of transformers' `TrainingArguments`" in text


def test_links_out_of_docs_lead_to_the_repository(tmp_path):
    from documentation.hooks import outside

    page = ROOT / "docs" / "results" / "index.md"
    text = "[a](../../LICENSE) [b](sst2.md#x) [c](https://example.org) ![d](sst2.svg)\n```\n[e](../../nowhere)\n```\n"
    assert outside(text, page, None).startswith("a [b](sst2.md#x) [c](https://example.org) ![d](sst2.svg)\n")
    assert outside(text, page, "https://example.org/r").startswith("[a](https://example.org/r/blob/main/LICENSE) [b]")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        outside("[e](../../nowhere)", page, None)


def test_names_in_docstrings_are_code():
    griffe = pytest.importorskip("griffe")
    from documentation.docstrings import plain_names, plain_types

    assert griffe
    assert plain_types("    size (`int`, *optional*): of `x`") == "    size (int, optional): of `x`"
    assert plain_names("of [`~a.b.Name`], [`pack`], [`x`](y)") == "of `Name`, `pack`, [`x`](y)"


@pytest.mark.slow
def test_the_site_builds(tmp_path):
    """`make docs`, where its packages are installed."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "site" / "cli.html").is_file()
