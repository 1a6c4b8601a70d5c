"""Writes the tables and pictures of README.md and docs/ from `benchmarks/results`: nothing is measured.

    python -m documentation.make           (in scripts/)
    python -m documentation.make --check   what is out of date is named, and nothing is written

In a page, what stands between `<!-- shown: NAME -->` and `<!-- end -->` is made.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from . import accuracy, readme, recipe_runs, speed, training_steps, whole_models
from .charts import digest, save, saved_digest
from .shown import RESULTS, ROOT, Shown


SHOWN: dict[str, Callable[[], Shown]] = {
    each.__name__.replace("_", "-"): each
    for each in (
        recipe_runs.recipe, recipe_runs.unseen, accuracy.sst2, accuracy.mnli, accuracy.examples, accuracy.plain_text, accuracy.without_text,
        accuracy.ablations, accuracy.levers, accuracy.left_off, accuracy.tokens, accuracy.batch, accuracy.rates,
        accuracy.small_model, accuracy.first_token, accuracy.warm_start, accuracy.sub_norm,
        whole_models.decode, whole_models.mixture, whole_models.isas, speed.kept, speed.generate, speed.modules, speed.kernels,
        speed.registers, speed.one_order, speed.long_context, speed.kv_bits, speed.sizes, speed.tables, speed.head, speed.head_rows, speed.speculation, speed.verification, speed.loading,
        speed.dense, speed.dense_models, speed.training, training_steps.training_step, training_steps.distillation_step, speed.same_answers, speed.llama_cpp,
        speed.other_programs,
    )
}  # fmt: skip
"""Name -> the result, for the pages of docs/."""

README = {"readme-results": readme.results, "readme-speed": readme.speed}
"""The same for README.md, which shows the tables alone."""

QUALITY = ROOT / "docs" / "results" / "quality.png"
"""The picture of README.md, as PNG: it is also shown where SVG is not."""

_BLOCK = re.compile(r"(<!-- shown: (?P<name>[\w-]+)(?P<options>[ \w]*) -->\n).*?(<!-- end -->)", re.DOTALL)


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def picture(name: str) -> Path:
    return ROOT / "docs" / "results" / f"{name}.svg"


def made(page: Path) -> str:
    """The page as it should be.

    Raises:
        ValueError: it names a result that is not there.
    """

    def block(match: re.Match) -> str:
        name = match["name"]
        results = _relative(RESULTS, page)
        if name in README:
            shown = README[name]()
            text = Shown(shown.header, shown.rows, shown.files, shown.measured).markdown(None, results)
            text = text.rpartition("\n\n")[0]  # (README's rows have their machine and date themselves)
        elif name in SHOWN:
            only_table = "table" in match["options"].split()
            text = SHOWN[name]().markdown(None if only_table else _relative(picture(name), page), results)
        else:
            raise ValueError(f"{page}: there is no result {name!r}; there are {', '.join([*README, *SHOWN])}")
        return f"{match[1]}\n{text}\n\n{match[4]}"

    return _BLOCK.sub(block, page.read_text(encoding="utf-8"))


def _relative(path: Path, page: Path) -> str:
    return Path(os.path.relpath(path, page.parent)).as_posix()


def shown_in(page: Path) -> Iterator[str]:
    """Names of the results of a page whose pictures it shows."""
    for match in _BLOCK.finditer(page.read_text(encoding="utf-8")):
        if match["name"] in SHOWN and "table" not in match["options"].split():
            yield match["name"]


def stale() -> Iterator[str]:
    """What is not as the results say, one line each."""
    used = {name for page in pages() for name in shown_in(page)}
    for page in pages():
        if made(page) != page.read_text(encoding="utf-8"):
            yield f"{page.relative_to(ROOT)}: a table is not that of benchmarks/results"
    for name in sorted(used):
        chart, file = SHOWN[name]().chart, picture(name)
        if chart and (not file.is_file() or saved_digest(file) != digest(chart)):
            yield f"{file.relative_to(ROOT)} is missing, or shows other numbers than benchmarks/results"
    if not QUALITY.is_file() or saved_digest(QUALITY) != digest(recipe_runs.quality()):
        yield f"{QUALITY.relative_to(ROOT)} is missing, or shows other numbers than benchmarks/results"
    for file in sorted(picture("any").parent.glob("*.svg")):
        if file.stem not in used:
            yield f"{file.relative_to(ROOT)} is on no page"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if anything is out of date")
    if parser.parse_args().check:
        found = list(stale())
        print("\n".join(found))
        sys.exit(1 if found else 0)
    for page in pages():
        text = made(page)
        if text != page.read_text(encoding="utf-8"):
            page.write_text(text, encoding="utf-8")
        for name in shown_in(page):
            chart, file = SHOWN[name]().chart, picture(name)
            if chart and (not file.is_file() or saved_digest(file) != digest(chart)):
                save(chart, file)
    if not QUALITY.is_file() or saved_digest(QUALITY) != digest(recipe_runs.quality()):
        save(recipe_runs.quality(), QUALITY)


if __name__ == "__main__":
    main()
