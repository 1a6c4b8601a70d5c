"""A table and a plot of what `bench_decode.py` measured: NAME.md and NAME.png beside NAME.json.

python benchmarks/decode/render.py benchmarks/results/decode.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from hf_bitdistill.pages.figures import new_figure, save_figure
from hf_bitdistill.pages.tables import markdown_table


Row = dict[str, Any]


def label(row: Row) -> str:
    """System, and its kernels."""
    return f"{row['system']}, {row['isa']}" if row.get("isa") else row["system"]


def by_label(rows: list[Row], shape: str) -> dict[str, dict[int, Row]]:
    """Rows of a shape: label -> threads -> row."""
    found: dict[str, dict[int, Row]] = {}
    for row in rows:
        if row["shape"] == shape:
            found.setdefault(label(row), {})[row["threads"]] = row
    return found


def table(rows: list[Row]) -> str:
    """Decode and prefill in tokens a second, by shape and threads."""
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    threads = sorted({row["threads"] for row in rows})
    header = ["", *(f"{shape} {what}" for shape in shapes for what in ("decode", "prefill"))]
    cells = []
    for name in dict.fromkeys(label(row) for row in rows):
        line = [name]
        for shape in shapes:
            mine = by_label(rows, shape).get(name, {})
            for rate, digits in (("decode_tps", 1), ("prefill_tps", 0)):
                line.append(" / ".join(f"{mine[n][rate]:.{digits}f}" for n in threads if n in mine))
        cells.append(line)
    return markdown_table(header, cells)


def sentence(rows: list[Row]) -> str:
    """What the numbers were measured on."""
    first = rows[0]
    threads = sorted({row["threads"] for row in rows})
    reads = ", ".join(f"{next(row for row in rows if row['threads'] == n)['read_gbps']:.1f}" for n in threads)
    return (
        f"Tokens a second with {' / '.join(map(str, threads))} threads of an {first['cpu']}, {first['date'][:10]}; random weights, a prompt of "
        f"{first['prompt_tokens']}, {first['new_tokens']} new tokens, medians of {len(first['decode_tps_rounds'])} interleaved rounds; "
        f"read bandwidth {reads} GB/s; other processes kept {max(row['other_busy_cpus'] for row in rows):.2f} CPUs busy."
    )


def plot(rows: list[Row], file: Path) -> Path:
    """Bars with the most threads, a panel for decoding and one for prefill, of the first shape."""
    shape, threads = rows[0]["shape"], max(row["threads"] for row in rows)
    mine = [row for row in rows if row["shape"] == shape and row["threads"] == threads]
    figure, panels = new_figure(2, width=5.6, height=0.32 * len(mine) + 1.4)
    for axes, rate, what in zip(panels, ("decode_tps", "prefill_tps"), ("decode", "prefill"), strict=True):
        names = [label(row) for row in mine]
        bars = axes.barh(
            names,
            [row[rate] for row in mine],
            color=["tab:blue" if "hf-bitdistill" in name else "tab:gray" for name in names],
        )
        axes.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize="small")
        axes.set_xlabel(f"{what}, tokens a second")
        axes.margins(x=0.15)
        axes.invert_yaxis()
        axes.tick_params(labelsize="small")
    panels[1].set_yticklabels([])
    return save_figure(figure, f"{shape}, {threads} threads, {rows[0]['cpu']}", file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path)
    file = parser.parse_args().record
    rows = json.loads(file.read_text())
    file.with_suffix(".md").write_text(f"# Speed of whole models\n\n{sentence(rows)}\n\n{table(rows)}\n")
    plot(rows, file.with_suffix(".png"))


if __name__ == "__main__":
    main()
