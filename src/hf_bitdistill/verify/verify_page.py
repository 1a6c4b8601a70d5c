"""The page of a verification: the checks, the table of layers, and a picture of both."""

from __future__ import annotations

import html
from pathlib import Path

from ..pages.figures import plot_panels
from ..pages.html import image, write_page
from ..pages.tables import html_table
from .verify import Verification, table


HEADER = ["layer", "rows x columns", "zeros", "scales"]


def write_verification(found: Verification, file: Path) -> None:
    """Write an HTML page, with its figure inside."""
    checks = [[{True: "ok", False: "FAILED", None: "not told"}[c.passed], c.name, c.found] for c in found.checks]
    parts = [html_table(["", "check", "found"], checks)]
    if found.layers:
        number = list(range(len(found.layers)))
        panels = [
            ("zeros, %", {"share of zeros": (number, [100 * layer.zeros for layer in found.layers])}),
            (
                "weight scale",
                {
                    "largest": (number, [layer.largest_scale for layer in found.layers]),
                    "smallest": (number, [layer.smallest_scale for layer in found.layers]),
                },
            ),
        ]
        figure = plot_panels("Packed layers, in the order of the table", file.with_suffix(".png"), panels)
        parts += [image(figure), html_table(HEADER, list(table(found.layers)))]
        figure.unlink()
    write_page(file, f"Verification of {html.escape(Path(found.model).name)}", parts)
