"""A data view as one self-contained HTML page."""

from __future__ import annotations

import html
import tempfile
from pathlib import Path

from ...files.atomic import write_text
from ...pages.figures import plot_bars, plot_histogram
from ...pages.html import html_page, image
from ...pages.tables import html_table
from . import facts
from .look import DataView, Sample
from .view_text import shorten, visible


_LONGEST = 6000
_STYLE = """
pre { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid #ccc; padding: 0.5rem; background: #fafafa; }
td { white-space: pre-wrap; }
.trained { background: #c9ecc9; }
.special { color: #92278f; font-weight: bold; }
@media (prefers-color-scheme: dark) {
pre { background: #15171d; border-color: #555; }
.trained { background: #20502a; }
.special { color: #e39bdc; }
}
"""


def write_page(view: DataView, output: Path) -> Path:
    """Write the page; an older one is replaced at once."""
    with tempfile.TemporaryDirectory() as folder:
        body = "\n".join(_body(view, Path(folder)))
    write_text(output, html_page(f"{view.source} for {view.model}", body, _STYLE))
    return output


def _body(view: DataView, figures: Path) -> list[str]:
    escape = html.escape
    parts = [
        "<h2>Recognised</h2>",
        html_table(["", ""], facts.recognized_rows(view)),
        "<h2>Rows</h2>",
        html_table(facts.SPLIT_HEADER, facts.split_rows(view)),
        f"<p>{escape(facts.held_out_text(view))}</p>",
        "<h2>Examples</h2>",
        '<p>What is <span class="trained">marked</span> is trained on; <span class="special">special tokens</span> are bold.</p>',
    ]
    for number, sample in enumerate(view.samples, 1):
        parts.append(f"<h3>Example {number}: {sample.tokens:,} tokens, {sample.trained:,} trained on</h3>")
        parts.append(f"<pre>{_render(sample)}</pre>")
    split = facts.lengths_of(view)
    if split is not None:
        file = plot_histogram(
            f"Lengths of the {split.name} rows",
            figures / "lengths.png",
            facts.histogram(split.lengths),
            "length, tokens",
            "rows",
            ("max_length", view.max_length),
        )
        parts += ["<h2>Lengths</h2>", html_table(facts.LENGTH_HEADER, facts.length_rows(view)), image(file)]
        if cuts := facts.cut_rows(view):
            parts += ["<p>What other limits would cut of the training rows:</p>", html_table(facts.CUT_HEADER, cuts)]
    if labels := facts.label_rows(view):
        parts += ["<h2>Labels</h2>", html_table(facts.LABEL_HEADER, labels)]
        if len(view.splits[0].labels) <= 20:
            counts = {shorten(word, 24): float(count) for word, count in view.splits[0].labels.items()}
            parts.append(image(plot_bars("Labels of the train rows", figures / "labels.png", counts, "rows")))
    parts += ["<h2>Duplicates</h2>", f"<p>{escape(facts.duplicate_text(view))}</p>"]
    if view.recognized.task is not None:
        parts += ["<h2>As a task file</h2>", f"<pre>{escape(facts.task_file(view.recognized.task))}</pre>"]
    return parts


def _render(sample: Sample) -> str:
    spans = []
    for part, trained, special in sample.parts:
        names = [name for name, is_so in (("trained", trained), ("special", special)) if is_so]
        text = html.escape(visible(shorten(part, _LONGEST)))
        spans.append(f'<span class="{" ".join(names)}">{text}</span>' if names else text)
    return "".join(spans)
