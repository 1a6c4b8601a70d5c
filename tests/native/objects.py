"""The library's object files as the installation left them, so that no test compiles again what is installed."""

import re
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]

# What makes a build the one that is shipped.
_SHIPPED = {
    "CMAKE_BUILD_TYPE": "Release",
    "BITDISTILL_SANITIZE": "",
    "BITDISTILL_EMULATE_VNNI": "OFF",
    "BITDISTILL_EVEX_VNNI": "OFF",
}


def installed_objects(root: Path = ROOT) -> Path | None:
    """The folder of the objects of an editable installation; `None` where there is none, or one is older than its sources."""
    sources = sorted((root / "csrc").rglob("*.cpp"))
    common = [root / "CMakeLists.txt", *(root / "csrc").rglob("*.h")]
    newest = max(file.stat().st_mtime for file in common)
    for cache in (root / "build").glob("*/CMakeCache.txt"):
        settings = dict(re.findall(r"^(\w+):\w+=(.*)$", cache.read_text(), re.M))
        folder = cache.parent / "CMakeFiles" / "bitdistill_objects.dir"
        objects = {folder / f"{source.relative_to(root)}.o": source for source in sources}
        if (
            settings.items() >= {**_SHIPPED, "CMAKE_HOME_DIRECTORY": str(root)}.items()
            and set(folder.rglob("*.o")) == set(objects)
            and all(made.stat().st_mtime > max(newest, source.stat().st_mtime) for made, source in objects.items())
        ):
            return folder
    return None


def compiler_of(objects: Path) -> str:
    """The C++ compiler that made them."""
    cache = (objects.parents[1] / "CMakeCache.txt").read_text()
    return re.findall(r"^CMAKE_CXX_COMPILER:\w+=(.*)$", cache, re.M)[0]
