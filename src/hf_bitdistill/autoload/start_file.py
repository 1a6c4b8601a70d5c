"""The start-up file by which every Python program of an environment has the hook: a `.pth` file, of which `site` runs the lines that begin
with `import`."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

from ..files.atomic import write_text


FILE_NAME = "hf_bitdistill_autoload.pth"
HOOK = Path(__file__).parent / "hook.py"

# Run at every start of Python, so it is short: the hook itself is read when transformers or lm_eval is imported. Where the package was
# uninstalled there is nothing to read. (A finder that removes itself from the list that is being gone through must have put another one before it.)
_CODE = """
import sys
class HfBitDistillStart:
    def find_spec(self, name, path=None, target=None):
        if name in ("transformers", "lm_eval"):
            try:
                with open({hook!r}, encoding="utf-8") as opened:
                    code = opened.read()
            except OSError:
                return
            exec(compile(code, {hook!r}, "exec"), {{"__name__": "hf_bitdistill_hook"}})
            sys.meta_path.remove(self)
sys.meta_path.insert(0, HfBitDistillStart())
"""
_HAS_FINDER = "any(type(finder).__name__ == 'HfBitDistillStart' for finder in sys.meta_path)"
_ACTIVE = f"import sys; print({_HAS_FINDER})"


def content(hook: Path = HOOK) -> str:
    """The two lines of the file."""
    code = _CODE.format(hook=str(hook))
    # (In virtual environments `site` runs the file twice.)
    return (
        "# Loads ternary models in every program: `bitdistill autoload off` removes this file.\n"
        f"import sys; {_HAS_FINDER} or exec({code.strip()!r}, {{}})\n"
    )


def environment_folder() -> Path:
    """`site-packages` of the environment that runs."""
    return Path(sysconfig.get_path("purelib"))


def user_folder() -> Path | None:
    """`site-packages` of the user, `None` where this Python does not read it (in a virtual environment, with `-s`)."""
    return Path(site.getusersitepackages()) if site.ENABLE_USER_SITE else None


def installed() -> list[Path]:
    """The start-up files that are there."""
    folders = [environment_folder(), user_folder()]
    return [file for folder in folders if folder is not None and (file := folder / FILE_NAME).is_file()]


def is_current(file: Path) -> bool:
    """Whether a start-up file runs the hook of this installation."""
    return file.read_text(encoding="utf-8") == content()


def is_active() -> bool:
    """Whether a Python of this environment that is started now has the hook."""
    found = subprocess.run([sys.executable, "-c", _ACTIVE], capture_output=True, text=True)
    return found.stdout.strip() == "True"


def install(user: bool = False) -> Path:
    """Write the start-up file.

    Args:
        user: into the user's `site-packages` instead of the environment's.

    Raises:
        ValueError: this Python reads no `site-packages` of the user, or does not run the file.
        PermissionError: the folder cannot be written.
    """
    folder = user_folder() if user else environment_folder()
    if folder is None:
        raise ValueError(
            f"{sys.executable} does not read the user's site-packages (a virtual environment?): leave --user out."
        )
    file = folder / FILE_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(file, content())
    except PermissionError:
        other = "" if user or user_folder() is None else " (--user takes your own site-packages)"
        raise PermissionError(f"{folder} cannot be written{other}.") from None
    if not is_active():
        file.unlink()
        raise ValueError(f"{sys.executable} does not run start-up files in {folder}: nothing was installed.")
    return file


def remove() -> list[Path]:
    """Remove the start-up files that are there, and say which.

    Raises:
        PermissionError: one cannot be removed.
    """
    files = installed()
    for file in files:
        try:
            os.remove(file)
        except PermissionError:
            raise PermissionError(f"{file} cannot be removed: {file.parent} cannot be written.") from None
    return files
