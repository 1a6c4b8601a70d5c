"""The page of a verification: the checks, the table of layers, and a picture of these."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from ..pages.figures import plot_panels
from ..pages.html import image, write_page
from ..pages.tables import html_table
from .packed_tensors import LayerFacts
from .verify import Verification, table


HEADER = ["layer", "rows x columns", "zeros", "scales"]


def draw_layers(layers: Sequence[LayerFacts], file: Path) -> Path:
    """A picture of packed layers, in their order: the share of zeros, and the scales."""
    number = list(range(len(layers)))
    panels = [
        ("zeros, %", {"share of zeros": (number, [100 * layer.zeros for layer in layers])}),
        (
            "weight scale",
            {
                "largest": (number, [layer.largest_scale for layer in layers]),
                "smallest": (number, [layer.smallest_scale for layer in layers]),
            },
        ),
    ]
    return plot_panels("Packed layers, by name", file, panels, xlabel="layer")


def write_verification(found: Verification, file: Path) -> None:
    """Write an HTML page, with its figure inside."""
    checks = [[{True: "ok", False: "FAILED", None: "not told"}[c.passed], c.name, c.found] for c in found.checks]
    parts = [html_table(["", "check", "found"], checks)]
    if found.layers:
        figure = draw_layers(found.layers, file.with_suffix(".png"))
        parts += [image(figure), html_table(HEADER, list(table(found.layers)))]
        figure.unlink()
    write_page(file, f"Verification of {html.escape(Path(found.model).name)}", parts)
