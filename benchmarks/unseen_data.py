"""Two public tasks that no number of the recipe comes from, as CSV files with the columns text and label.

    python benchmarks/unseen_data.py trec SOURCE OUT      # SOURCE: train.txt and test.txt of TREC's questions, `KIND:detail question`
    python benchmarks/unseen_data.py ag_news SOURCE OUT   # SOURCE: test.csv of AG News, `class,title,description`

TREC (Li and Roth 2002): 5,452 questions to train on, 500 to evaluate on, by kind of answer. AG News (Zhang et al. 2015): the 7,600 rows of its
test split, of which the recipe cuts off a part to evaluate on.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable, Iterator
from pathlib import Path


KINDS = {
    "ABBR": "abbreviation",
    "DESC": "description",
    "ENTY": "entity",
    "HUM": "person",
    "LOC": "location",
    "NUM": "number",
}
SECTIONS = {"1": "world", "2": "sports", "3": "business", "4": "science"}


def trec(file: Path) -> Iterator[tuple[str, str]]:
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        kind, _, question = line.partition(" ")
        yield question, KINDS[kind.partition(":")[0]]


def ag_news(file: Path) -> Iterator[tuple[str, str]]:
    with file.open(encoding="utf-8", newline="") as opened:
        for section, title, description in csv.reader(opened):
            if section in SECTIONS:  # (the first row may be the names)
                yield f"{title}. {description}", SECTIONS[section]


def write(file: Path, rows: Iterable[tuple[str, str]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(("text", "label"))
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["trec", "ag_news"])
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    if options.task == "trec":
        for split in ("train", "test"):
            write(options.out / f"{split}.csv", trec(options.source / f"{split}.txt"))
    else:
        write(options.out / "train.csv", ag_news(options.source / "test.csv"))


if __name__ == "__main__":
    main()
