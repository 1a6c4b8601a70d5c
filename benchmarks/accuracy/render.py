"""Tables and plots of all accuracy results: `make results`. Reads only their JSON, states only what is in it.

python benchmarks/accuracy/render.py [benchmarks/results/accuracy]
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib import colormaps

from hf_bitdistill.pages.figures import draw_curves, new_figure, save_figure
from hf_bitdistill.pages.tables import markdown_table


Row = dict[str, Any]


def mean_and_spread(values: Iterable[float], digits: int = 4) -> str:
    """The mean, and the standard deviation over seeds where there are several."""
    values = list(values)
    if not values:
        return ""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def by_arm(rows: list[Row]) -> dict[str, list[Row]]:
    arms: dict[str, list[Row]] = {}
    for row in rows:
        arms.setdefault(row["arm"], []).append(row)
    return arms


def stage(row: Row, kind: str) -> Row:
    return next((entry for entry in row["stages"] if entry["kind"] == kind), {})


def tokens_read(row: Row) -> int:
    """By optimiser steps on plain text, the warm start's included, unless it reads the task's examples."""
    start = stage(row, "start")
    of_warm_start = (
        0 if "teacher_stage" in start.get("settings", {}) else start.get("warm_start", {}).get("trained_tokens", 0)
    )
    return of_warm_start + stage(row, "pretrain").get("tokens", 0)


def millions(tokens: int) -> str:
    return f"{tokens / 1e6:g} M"


def nats(row: Row, text: str, kind: str | None = None) -> float:
    perplexity = row["perplexity"] if kind is None else stage(row, kind)["perplexity"]
    return perplexity[text]["nll_per_token"]


def language_model_table(rows: list[Row], text: str) -> str:
    """Nats a token by arm: of the student at the start, and after continual pre-training (for every budget)."""
    # Arms of a task share students; a row without a student is full precision.
    rows = [row for row in rows if row["arm"] == "full precision" or stage(row, "start")]
    budgets = sorted({row["budget"] for row in rows if row["budget"]}) or [None]
    table = []
    for arm, mine in by_arm(rows).items():
        if arm == "full precision":
            table.append([mine[0]["title"], f"{nats(mine[0], text):.3f}", *[""] * len(budgets)])
            continue
        starts: dict[int | None, list[float]] = {}
        for row in mine:
            # Only a warm start depends on the budget.
            key = row["budget"] if stage(row, "start").get("warm_start") else None
            starts.setdefault(key, []).append(nats(row, text, "start"))
        start = "; ".join(
            mean_and_spread(set(values), 3) + (f" ({millions(key)})" if len(starts) > 1 else "")
            for key, values in starts.items()
        )
        cells = []
        for budget in budgets:
            values = [nats(r, text) for r in mine if r["budget"] == budget and stage(r, "pretrain")]
            cells.append(f"{mean_and_spread(values, 3)} (n={len(values)})" if values else "")
        table.append([mine[0]["title"], start, *cells])
    after = [f"after {millions(b)} tokens" if b else "after continual pre-training" for b in budgets]
    return markdown_table(["", "before continual pre-training", *after], table)


def plot_language_model(title: str, rows: list[Row], text: str, file: Path) -> None:
    """Nats a token against tokens, one point a budget (mean over seeds); the legend in the order of the last points."""
    figure, (axes,) = new_figure(width=11, height=4.6)
    curves = {}
    for arm, mine in by_arm(rows).items():
        budgets = sorted({row["budget"] for row in mine if row["budget"]})
        if arm == "full precision":
            axes.axhline(nats(mine[0], text), color="black", linestyle=":", label="full precision")
        elif budgets:
            means = [statistics.fmean(nats(r, text) for r in mine if r["budget"] == b) for b in budgets]
            curves[mine[0]["title"]] = (budgets, means)
    curves = dict(sorted(curves.items(), key=lambda item: item[1][1][-1], reverse=True))
    # More arms than the default has colours.
    axes.set_prop_cycle(color=colormaps["tab20"].colors)
    draw_curves(
        axes, curves, xlabel="tokens read by the optimiser, warm start included", ylabel="nats a token", marker="o"
    )
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.01, 0.5))
    axes.set_xscale("log")
    ticks = sorted({budget for budgets, _ in curves.values() for budget in budgets})
    axes.set_xticks(ticks, [millions(tick) for tick in ticks])
    axes.minorticks_off()
    save_figure(figure, title, file)


def task_table(result: Row) -> str:
    """The task's metric by arm."""
    rows, metric = result["rows"], result["metric"]
    header = ["", metric, "seeds", "learning rate", "tokens of plain text", "fine-tuning examples", "training, s"]
    table = []
    for mine in by_arm(rows).values():
        rates = {
            entry["settings"]["learning_rate"]
            for row in mine
            for entry in row["stages"]
            if entry["kind"] == "finetune"
        }
        table.append(
            [
                mine[0]["title"],
                mean_and_spread(row["evaluation"][metric] for row in mine),
                str(len({row["seed"] for row in mine})),
                ", ".join(f"{rate:g}" for rate in sorted(rates)),
                f"{tokens_read(mine[0]):,}" if tokens_read(mine[0]) else "",
                f"{mine[0]['stages'][-1].get('examples', 0):,}" if mine[0]["stages"][-1].get("examples") else "",
                f"{statistics.fmean(row['seconds'] for row in mine):.0f}"
                if mine[0]["arm"] != "full precision"
                else "",
            ]
        )
    return markdown_table(header, table)


def machines(rows: list[Row]) -> str:
    """What the stages were run on, each kind of machine with the first and the last date."""
    dates: dict[str, set[str]] = {}
    for row in rows:
        for entry in row["stages"]:
            machine = dict(entry["machine"])
            date = machine.pop("date")
            dates.setdefault(", ".join(f"{key} {value}" for key, value in machine.items()), set()).add(date)
    return "; ".join(
        f"date {' to '.join(sorted({min(days), max(days)}))}, {machine}" for machine, days in dates.items()
    )


def render(file: Path) -> None:
    """Write the Markdown (and the plots) of one result beside it."""
    result = json.loads(file.read_text(encoding="utf-8"))
    settings, rows = result["settings"], result["rows"]
    parts = [f"# {settings['title']}"]
    if settings["task"]:
        first = rows[0]["evaluation"]
        chance = "" if first.get("chance_level") is None else f", chance level {first['chance_level']:.4f}"
        parts += [task_table(result), f"{first['n']:,} examples of the validation split{chance}."]
        parts.append(
            "± is the standard deviation over seeds. Where several learning rates were tried, the best one is chosen by this "
            "same metric with the first seed, which flatters every row alike."
        )
    for text in rows[0]["perplexity"]:
        parts.append(f"## Nats a token on `{text}`")
        parts.append(language_model_table(rows, text))
        if len(settings["budgets"]) > 1:
            image = file.with_name(f"{file.stem}_{text}.png")
            plot_language_model(settings["title"], rows, text, image)
            parts.append(f"![{settings['title']}]({image.name})")
        parts.append(
            f"{rows[0]['perplexity'][text]['tokens']:,} held-out tokens in blocks of {settings['text']['block_size']}."
        )
    if settings["budgets"]:
        parts.append(
            "A budget counts every token that an optimiser step reads, in continual pre-training and in every window of a warm "
            "start. ± is the standard deviation over seeds (n of them)."
        )
    parts.append(
        f"Machine: {machines(rows)}."
        + (f" {result['note'][0].upper()}{result['note'][1:]}." if result["note"] else "")
    )
    parts.append(f"All settings, stages, curves and times: `{file.name}`.")
    file.with_suffix(".md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(file.with_suffix(".md"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=Path("benchmarks/results/accuracy"))
    for file in sorted(parser.parse_args().results.glob("*.json")):
        render(file)


if __name__ == "__main__":
    main()
