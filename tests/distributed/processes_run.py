"""Run by `test_processes.py` in two processes. Usage: processes_run.py FOLDER"""

import json
import os
import sys
from pathlib import Path

from launching import message

from hf_bitdistill.machine import processes


def fails() -> None:
    raise OSError("the disk is full")


def main() -> None:
    rank = processes.rank()
    found = {
        "world_size": processes.world_size(),
        "first": processes.is_first(),
        "gathered": processes.gather(10 * rank),
        "from_first": processes.from_first(lambda: os.getpid(), "asking"),
        "alike": processes.agree("the seed", 3, "Give one."),
        "differ": message(lambda: processes.agree("the seed", rank, "Give one.")),
        "first_fails": message(lambda: processes.from_first(fails, "writing")),
        "second_fails": message(lambda: processes.together(fails if rank else lambda: None, "reading")),
        "collected": processes.collect([10 * index for index in processes.share(5)], 5),
        "together": processes.together(lambda: rank, "reading"),
    }
    processes.on_first(lambda: Path(sys.argv[1], "written").write_text(str(rank)), "writing")
    found["written"] = Path(sys.argv[1], "written").read_text()
    Path(sys.argv[1], f"{rank}.json").write_text(json.dumps(found))
    processes.wait()


main()
