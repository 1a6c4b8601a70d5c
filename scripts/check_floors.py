"""Whether every direct dependency is installed here at its lower bound: `scripts/test_bounds.sh floors` tests no other bounds."""

import sys
from importlib.metadata import version
from pathlib import Path

import tomli
from packaging.requirements import Requirement
from packaging.version import Version


def above_their_floor(lines: list[str]) -> list[str]:
    """What is installed in a newer version than its requirement asks for at least, each with both versions."""
    found = []
    for requirement in map(Requirement, lines):
        floors = [each.version for each in requirement.specifier if each.operator == ">="]
        installed = Version(version(requirement.name))
        if floors and Version(installed.public) != Version(floors[0]):
            found.append(f"{requirement.name}>={floors[0]} (installed: {installed})")
    return found


if __name__ == "__main__":
    project = tomli.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wrong = above_their_floor([*project["dependencies"], *project["optional-dependencies"]["test"]])
    if wrong:
        sys.exit(f"no floor in pyproject.toml that is tried, because something else asks for more: {', '.join(wrong)}")
