"""The notebooks run from the first cell to the last, in an empty folder, and are kept without what a run left in them."""

import contextlib
import io
import json
import sys
import types
from pathlib import Path

import pytest


FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

# What a test puts in the place of the parameters: less of everything.
PARAMETERS = {"first_student": {"STEPS": 2}, "student_on_a_cpu": {"NEW_TOKENS": 4}}

# Lines that a run must print.
SAYS = {
    "first_student": ["held-out loss: teacher ", "| ternary codes |", "Summary:"],
    "your_own_data": ["reviews.csv", "packed student: reviews-student/packed", "report: reviews-student/report.html", "a slow film: "],
    "student_on_a_cpu": ["transformers: ", "student, native: ", "student.gguf"],
}  # fmt: skip


def cells(notebook, kind="code"):
    return [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(notebook, tmp_path, monkeypatch, native_decoder):
    shown = []
    # What a front end brings; it shows pictures.
    front_end = types.ModuleType("IPython.display")
    front_end.Image, front_end.display = (lambda filename: Path(filename).read_bytes()), shown.append
    package = types.ModuleType("IPython")
    package.version_info = (9, 0)  # (which matplotlib asks)
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", front_end)
    monkeypatch.chdir(tmp_path)
    names, said = {"__name__": "__main__"}, io.StringIO()
    with contextlib.redirect_stdout(said):
        for number, cell in enumerate(cells(notebook)):
            exec(compile("".join(cell["source"]), f"{notebook.name}, cell {number}", "exec"), names)
            if "parameters" in cell["metadata"].get("tags", ()):
                names.update(PARAMETERS.get(notebook.stem, {}))
    missing = [line for line in SAYS[notebook.stem] if line not in said.getvalue()]
    assert missing == [], said.getvalue()
    assert all(picture.startswith(b"\x89PNG") for picture in shown)
    assert len(shown) == (notebook.stem == "your_own_data")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_nothing_of_a_run_is_kept(notebook):
    content = json.loads(notebook.read_text(encoding="utf-8"))
    assert content["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in cells(notebook):
        assert cell["outputs"] == [] and cell["execution_count"] is None
    tags = [cell["metadata"] for cell in content["cells"]]
    assert [each for each in tags if each] == [{"tags": ["parameters"]}]
    # The first code cell is the one that a reader changes.
    assert cells(notebook)[0]["metadata"] and "MODEL = " in "".join(cells(notebook)[0]["source"])


def test_there_are_three_and_they_are_short():
    assert [path.stem for path in NOTEBOOKS] == sorted(SAYS)
    for notebook in NOTEBOOKS:
        lines = sum(len(cell["source"]) for cell in cells(notebook))
        assert lines < 80, notebook.name
        for cell in cells(notebook, "markdown"):
            assert all(len(paragraph.split()) <= 60 for paragraph in "".join(cell["source"]).split("\n\n"))
