"""What leaving the SubLNs away costs on the quickstart's model: its run with each placement, from the same teacher and on the same data.

`sub_norm="none"` makes students of more families representable in GGUF; `"output"` is the default.

    python benchmarks/bench_quickstart_sub_norm.py --output_dir outputs/sub_norm --output benchmarks/results/quickstart_sub_norm.json

Interrupted, the same command goes on. Its times are of no interest: nothing is measured but scores.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from hf_bitdistill.quickstart import run_quickstart
from hf_bitdistill.recipe import RecipeResult


PLACEMENTS = ("output", "none", "all")


def scores(result: RecipeResult) -> dict[str, Any]:
    """The rows of the result's table, and the gap on held-out training rows."""
    return {"table": result.to_dict()["table"], "gap": result.to_dict()["gap"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="for the runs; the teacher is trained once")
    parser.add_argument("--placements", nargs="+", choices=PLACEMENTS, default=PLACEMENTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    found: dict[str, Any] = {"seed": options.seed, "placements": {}}
    for placement in options.placements:
        # One folder: what does not depend on the placement is kept.
        result = run_quickstart(
            options.output_dir, seed=options.seed, numbers={"sub_norm": placement, "compare": False}
        )
        found["placements"][placement] = scores(result)
        found["machine"] = result.machine
    options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
