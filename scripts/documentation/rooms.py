"""The rooms of the package and what they import: `python scripts/documentation/rooms.py` brings docs/architecture.md and its picture up to date.

A room is a folder of `src/hf_bitdistill` (or `config.py`), or one of the packages beside it. What a room is for stands in the table by hand, and so
does the order of the rows; which rooms it may import is written from the imports, and the picture is drawn from the table.
"""

from __future__ import annotations

import ast
import html
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "src"
PAGE = ROOT / "docs" / "architecture.md"
PICTURE = PAGE.with_name("architecture.svg")

PACKAGE = "hf_bitdistill"
# What lies beside the rooms, longest first.
_BESIDE = ("optimum.commands", "optimum.bitnet", "hf_bitdistill_cli")
# Names of the package itself that are no function of a room: importing one is no arrow.
_FACTS = ("__version__",)

_ROW = re.compile(r"^\| `([\w.]+)` \| ([^|]*) \| ([^|]*) \|$", re.M)
_BACK = re.compile(r"^\| `([\w.]+)` \| `([\w.]+)` \| ([^|]*) \|$", re.M)

Arrows = Mapping[str, set[str]]


@dataclass(frozen=True)
class Import:
    """One import.

    Attributes:
        module: where it stands. target: the module it names.
        called: whether it is made when a function is called, or by a type checker, not when `module` is imported.
    """

    module: str
    line: int
    target: str
    name: str | None
    called: bool


def modules(sources: Path = SOURCES) -> dict[str, Path]:
    """Every module under a folder."""
    found = {}
    for file in sorted(sources.rglob("*.py")):
        parts = file.relative_to(sources).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports_of(module: str, code: str, known: Mapping[str, object], is_package: bool) -> Iterator[Import]:
    """The imports of one module, those inside of functions too, as far as they name a module of `known`."""
    tree = ast.parse(code)
    called = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in known:
                    yield Import(module, node.lineno, alias.name, None, node in called)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if is_package else module.split(".")[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                if whole in known:
                    yield Import(module, node.lineno, whole, None, node in called)
                elif base in known:
                    yield Import(module, node.lineno, base, alias.name, node in called)


def all_imports(sources: Path = SOURCES) -> list[Import]:
    known = modules(sources)
    return [
        each
        for module, file in known.items()
        for each in imports_of(module, file.read_text(encoding="utf-8"), known, file.name == "__init__.py")
    ]


def room_of(module: str) -> str:
    for beside in _BESIDE:
        if module == beside or module.startswith(f"{beside}."):
            return beside
    parts = module.split(".")
    if len(parts) == 1:
        return module
    return "cli" if parts[1] == "__main__" else parts[1]


def between_rooms(imports: list[Import]) -> list[Import]:
    """Those that lead from one room into another. `import hf_bitdistill` alone makes sure that it is registered, which it is wherever one of its
    modules is imported: no arrow."""
    return [
        each
        for each in imports
        if room_of(each.module) != room_of(each.target)
        and not (each.target == PACKAGE and (each.name is None or each.name in _FACTS))
    ]


# ---- The page ----


def read_table(page: str) -> dict[str, tuple[str, set[str]]]:
    """Room -> what it is for, and what it may import, in the order of the rows."""
    part = page.partition("## Rooms")[2].partition("\n## ")[0]
    return {room: (text, set(re.findall(r"`([\w.]+)`", cell))) for room, text, cell in _ROW.findall(part)}


def read_exceptions(page: str) -> dict[tuple[str, str], str]:
    """(Module, room that it imports against the order) -> why."""
    part = page.partition("## Against the order")[2].partition("\n## ")[0]
    return {(module, room): why for module, room, why in _BACK.findall(part)}


def arrows(imports: list[Import], exceptions: Mapping[tuple[str, str], str]) -> dict[str, set[str]]:
    """Room -> rooms that it imports, without the exceptions."""
    found: dict[str, set[str]] = {}
    for each in between_rooms(imports):
        found.setdefault(room_of(each.module), set())
        if (each.module, room_of(each.target)) not in exceptions:
            found[room_of(each.module)].add(room_of(each.target))
    return found


def below(graph: Arrows) -> dict[str, set[str]]:
    """Room -> all that it imports, over others too. The graph must have no cycle."""
    found: dict[str, set[str]] = {}

    def visit(room: str) -> set[str]:
        if room not in found:
            targets = graph.get(room, set())
            found[room] = targets.union(*map(visit, targets))
        return found[room]

    for room in {*graph, *(target for targets in graph.values() for target in targets)}:
        visit(room)
    return found


def reduced(graph: Arrows) -> dict[str, set[str]]:
    """The arrows that no others imply."""
    reach = below(graph)
    return {
        room: {target for target in targets if not any(target in reach[other] for other in targets)}
        for room, targets in graph.items()
    }


def rewritten(page: str, graph: Arrows) -> str:
    """The page with the third column of its table as the imports are."""
    order = list(read_table(page))

    def row(match: re.Match) -> str:
        targets = sorted(
            graph.get(match[1], set()), key=lambda room: (order.index(room) if room in order else -1, room)
        )
        return f"| `{match[1]}` | {match[2]} | {', '.join(f'`{target}`' for target in targets) or 'nothing'} |"

    before, head, rest = page.partition("## Rooms")
    part, mark, after = rest.partition("\n## ")
    return before + head + _ROW.sub(row, part) + mark + after


# ---- The picture ----

_WIDTH, _HEIGHT, _GAP, _FLOOR, _MARGIN = 138, 30, 22, 62, 12
_LANE = 22  # of an arrow that passes a floor
_UPRIGHT = 0.25  # how much everything is drawn to the middle, in neighbours
_LINE, _INK, _FILL = "#7a7f87", "#1a237e", "#e8eaf6"


def floors(graph: Arrows) -> dict[str, int]:
    """Room -> its floor, 0 at the bottom: every arrow leads down. What imports nothing is right below the lowest that imports it."""
    found: dict[str, int] = {}

    def floor(room: str) -> int:
        if room not in found:
            found[room] = 1 + max(map(floor, graph.get(room, set())), default=-1)
        return found[room]

    rooms = sorted({*graph, *(target for targets in graph.values() for target in targets)})
    for room in rooms:
        floor(room)
    for room in rooms:
        users = [found[user] for user in rooms if room in graph.get(user, set())]
        if users and not graph.get(room):
            found[room] = min(users) - 1
    return found


def _lanes(graph: Arrows, at: Mapping[str, int]) -> tuple[list[list[str]], dict[tuple[str, str], list[str]]]:
    """What stands on each floor, lanes of passing arrows among it, and the stations of each arrow."""
    rows: list[list[str]] = [[] for _ in range(1 + max(at.values()))]
    for room in sorted(at):
        rows[at[room]].append(room)
    routes = {}
    for room in sorted(graph):
        for target in sorted(graph[room]):
            passed = [f"{room} {target} {floor}" for floor in range(at[room] - 1, at[target], -1)]
            for lane, floor in zip(passed, range(at[room] - 1, at[target], -1), strict=True):
                rows[floor].append(lane)
            routes[room, target] = [room, *passed, target]
    return rows, routes


def _places(rows: list[list[str]], routes: Mapping[tuple[str, str], list[str]]) -> dict[str, float]:
    """Where on its floor each stands: in an order with few crossings, and near to those that it is connected with."""
    near: dict[str, list[str]] = {each: [] for row in rows for each in row}
    for route in routes.values():
        for one, other in pairwise(route):
            near[one].append(other)
            near[other].append(one)
    wide = {each: _LANE if " " in each else _WIDTH + _GAP for each in near}
    x = {}
    for row in rows:
        left = -sum(wide[each] for each in row) / 2
        for each in row:
            x[each] = left + wide[each] / 2
            left += wide[each]
    for sweep in range(40):
        for row in rows if sweep % 2 else reversed(rows):
            wanted = {each: sum(x[other] for other in near[each]) / (len(near[each]) + _UPRIGHT) for each in row}
            if sweep < 24:
                row.sort(key=lambda each: (wanted[each], each))
            # As near as the neighbours on the floor allow: from the left, from the right, and the middle of both.
            first, last = [], []
            edge = float("-inf")
            for each in row:
                first.append(max(wanted[each], edge + wide[each] / 2))
                edge = first[-1] + wide[each] / 2
            edge = float("inf")
            for each in reversed(row):
                last.append(min(wanted[each], edge - wide[each] / 2))
                edge = last[-1] - wide[each] / 2
            for each, one, other in zip(row, first, reversed(last), strict=True):
                x[each] = (one + other) / 2
    return x


def draw(graph: Arrows) -> str:
    """The rooms and the arrows that no others imply, as SVG."""
    lines = reduced(graph)
    at = floors(lines)
    rows, routes = _lanes(lines, at)
    x = _places(rows, routes)
    left = min(x.values()) - _WIDTH / 2 - _MARGIN
    width = max(x.values()) + _WIDTH / 2 + _MARGIN - left
    height = (len(rows) - 1) * _FLOOR + _HEIGHT + 2 * _MARGIN
    y = {each: height - _MARGIN - _HEIGHT / 2 - floor * _FLOOR for floor, row in enumerate(rows) for each in row}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" font-family="sans-serif" font-size="13">',
        "<title>Rooms, and which imports which</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{_LINE}"/></marker></defs>',
    ]
    for (room, target), route in routes.items():
        path = f"M{x[room] - left:.0f} {y[room] + _HEIGHT / 2:.0f}"
        for one, other in pairwise(route):
            top = y[one] + _HEIGHT / 2
            bottom = y[other] - _HEIGHT / 2
            bend = (bottom - top) / 2
            path += f"C{x[one] - left:.0f} {top + bend:.0f} {x[other] - left:.0f} {bottom - bend:.0f} {x[other] - left:.0f} {bottom:.0f}"
            if other != target:
                path += f"V{y[other] + _HEIGHT / 2:.0f}"
        parts.append(
            f'<path data-from="{room}" data-to="{target}" d="{path}" fill="none" stroke="{_LINE}" stroke-width="1.2" marker-end="url(#tip)"/>'
        )
    for room in sorted(at):
        corner, middle = x[room] - left - _WIDTH / 2, y[room]
        parts.append(
            f'<rect x="{corner:.0f}" y="{middle - _HEIGHT / 2:.0f}" width="{_WIDTH}" height="{_HEIGHT}" rx="5" fill="{_FILL}" stroke="#3f51b5"/>'
            f'<text x="{x[room] - left:.0f}" y="{middle + 5:.0f}" text-anchor="middle" fill="{_INK}">{html.escape(room)}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def drawn(picture: str) -> dict[str, set[str]]:
    """The arrows of a picture."""
    found: dict[str, set[str]] = {}
    for room, target in re.findall(r'data-from="([\w.]+)" data-to="([\w.]+)"', picture):
        found.setdefault(room, set()).add(target)
    return found


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    graph = arrows(all_imports(), read_exceptions(page))
    missing = sorted({*graph, *(target for targets in graph.values() for target in targets)} - set(read_table(page)))
    if missing:
        sys.exit(f"{PAGE}: the table has no row for {', '.join(missing)}: say what it is for")
    PAGE.write_text(rewritten(page, graph), encoding="utf-8")
    PICTURE.write_text(draw(graph), encoding="utf-8")


if __name__ == "__main__":
    main()
