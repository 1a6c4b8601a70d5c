import json
import os
import socket

import pytest
from launching import run_script

from hf_bitdistill.machine import processes


@pytest.mark.slow
def test_two_processes(tmp_path):
    run_script("processes_run.py", 2, str(tmp_path))
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    host = socket.gethostname()
    same = ("world_size", "gathered", "from_first", "alike", "differ", "written", "collected")
    assert [first[name] for name in same] == [second[name] for name in same]
    assert (first["world_size"], first["gathered"], first["written"]) == (2, [0, 10], "0")
    assert (first["first"], second["first"], first["together"], second["together"]) == (True, False, 0, 1)
    assert first["from_first"] != os.getpid() and first["collected"] == [0, 10, 20, 30, 40]
    differ = f"the seed differs: 0 in process 0 on {host}, 1 in process 1 on {host}. Give one."
    assert first["differ"] == f"ProcessesError: {differ}"
    assert first["first_fails"] == second["second_fails"] == "OSError: the disk is full"
    assert second["first_fails"] == "ProcessesError: writing failed in the first process: OSError: the disk is full"
    expected = f"ProcessesError: reading failed in process 1 on {host}: OSError: the disk is full"
    assert first["second_fails"] == expected


def test_one_process():
    assert (processes.world_size(), processes.rank(), processes.is_first()) == (1, 0, True)
    assert processes.gather(5) == [5] and processes.agree("it", 5, "") == 5
    assert processes.from_first(lambda: 5, "it") == processes.together(lambda: 5, "it") == 5
    assert processes.collect([10 * index for index in processes.share(3)], 3) == [0, 10, 20]
    with pytest.raises(ValueError, match="2 results for a share of 3"):
        processes.collect([1, 2], 3)
    done = []
    processes.on_first(lambda: done.append(1), "it")
    processes.wait()
    assert done
    with pytest.raises(OSError, match="full"):
        processes.from_first(lambda: (_ for _ in ()).throw(OSError("full")), "it")
