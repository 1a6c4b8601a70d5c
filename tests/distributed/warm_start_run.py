"""Run by `test_warm_start_processes.py` in several processes. Usage: warm_start_run.py FOLDER MODEL CORPUS"""

import copy
import json
import os
import sys
from contextlib import suppress
from pathlib import Path

import torch
from launching import message

from architectures import random_tokens, tiny_model
from hf_bitdistill import BitNetConfig, apply_bitnet, calibrate_sub_norm
from hf_bitdistill.cli.main import main as command
from hf_bitdistill.machine import processes
from hf_bitdistill.training.warm_start import WarmStartConfig, warm_start


def _padded(rows: int, seed: int) -> dict:
    """Rows of 12, 11, 10, ... tokens."""
    lengths = 12 - torch.arange(rows)[:, None]
    return {
        "input_ids": random_tokens(batch=rows, length=12, seed=seed),
        "attention_mask": (torch.arange(12) < lengths).long(),
    }


def _packed(seed: int) -> dict:
    """One row of three documents, told by their positions."""
    positions = torch.cat([torch.arange(5), torch.arange(4), torch.arange(6)])[None]
    return {"input_ids": random_tokens(batch=1, length=15, seed=seed), "position_ids": positions}


# Model, options of the student, batches.
CASES = {
    "whole rows": ("llama", {}, [{"input_ids": random_tokens(4, 16, seed)} for seed in range(1, 7)]),
    "padded, odd numbers of rows": ("qwen3", {}, [_padded(rows, rows) for rows in (5, 3, 1, 2, 1)]),
    "packed": ("llama", {}, [_packed(1), {"input_ids": random_tokens(3, 8, 2)}, _packed(3)]),
    # (Of rows of two tokens, queries have gradients of the size of what rounding leaves of them.)
    "experts that get no token": ("qwen3_moe", {"sub_norm": "none"}, [{"input_ids": random_tokens(2, 3, 1)}]),
}
# Not many steps: codes near a boundary would go apart from the last bits, which are added up in another order.
CONFIG = WarmStartConfig(window_layers=2, window_stride=1, steps_per_window=3, rank=4, norm_learning_rate=1e-2)


def models(name: str) -> tuple:
    kind, options, batches = CASES[name]
    teacher = tiny_model(kind, num_hidden_layers=3)
    # Without rounded activations: a last bit would become a whole step.
    student = apply_bitnet(copy.deepcopy(teacher), BitNetConfig(activation_bits=None, **options))
    if options.get("sub_norm") != "none":
        calibrate_sub_norm(student, batches[:2])
    return student, teacher, batches


def run(name: str, **options) -> dict:
    """The student's weights and what was measured."""
    student, teacher, batches = models(name)
    report = warm_start(student, teacher, batches, CONFIG, **options)
    measured = [[w.error_before, w.error_after, *w.losses] for w in report.windows]
    counts = [report.calibration_tokens, report.trained_tokens]
    return {"weights": student.state_dict(), "measured": measured, "counts": counts}


class Killed(Exception):
    pass


def interrupted(file: Path) -> dict:
    """The first case, which ends in its second window and goes on."""

    def stop(done, *_):
        if done == CONFIG.steps_per_window + 2:
            raise Killed

    first = next(iter(CASES))
    with suppress(Killed):
        run(first, checkpoint=file, on_step=stop)
    assert file.is_file()
    said: list[str] = []
    result = run(first, checkpoint=file, hidden_states="disk", say=said.append)
    return {**result, "said": said}


def other_options() -> None:
    student, teacher, batches = models("packed")
    warm_start(student, teacher, batches, WarmStartConfig(steps_per_window=1 + processes.rank()))


def other_teacher() -> None:
    student, teacher, batches = models("packed")
    with torch.no_grad():
        teacher.model.norm.weight.add_(processes.rank())
    warm_start(student, teacher, batches, CONFIG)


def too_long() -> None:
    """Only the last process has the row that does not fit."""
    student, teacher, _ = models("packed")
    rows = random_tokens(processes.world_size(), 8)
    rows[-1, 0] = 10**6
    warm_start(student, teacher, [{"input_ids": rows}], CONFIG)


def main() -> None:
    folder, model, corpus = map(Path, sys.argv[1:])
    rank = processes.rank()
    torch.set_num_threads(1)
    found = {name: run(name) for name in CASES}
    found["interrupted"] = interrupted(folder / "kept" / "warm_start.pt")
    found["refused"] = [message(work) for work in (other_options, other_teacher, too_long)]
    own = folder / f"own{rank}" / "warm_start.pt"
    if rank == 0:
        own.parent.mkdir()
        own.write_bytes((folder / "kept" / "warm_start.pt").read_bytes())
    found["local disks"] = message(lambda: run(next(iter(CASES)), checkpoint=own))
    torch.save(found, folder / f"{rank}.pt")
    os.environ["TQDM_MININTERVAL"] = "1000"
    arguments = ["--model_name_or_path", model, "--corpus", corpus, "--sample_by", "line", "--block_size", 16]
    arguments += ["--warm_start_tokens", 300, "--steps_per_window", 2, "--rank", 4, "--batch_size", 3]
    arguments += ["--keep_massive_ratio", 1e9, "--output_dir", folder / "command"]
    status = command(["warm-start", *map(str, arguments)])
    print(json.dumps({"rank": rank, "status": status}), flush=True)
    processes.wait()


if __name__ == "__main__":
    main()
