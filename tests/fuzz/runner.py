"""Loads mutants in a process of its own and writes what happened, a line of JSON each: `python runner.py JOB.json`.

The job: `bases` (name -> folder), `seeds` ([first, last + 1]), `work` (an empty folder), `report` (a file). Loaded twice, by
transformers with this library's quantizer and by `optimum.bitnet`; mutants of tokenizer files by `AutoTokenizer`.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import logging
import operator
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

import torch
from mutator import TOKENIZER, mutate, read_folder, write_folder
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

import hf_bitdistill  # noqa: F401 (registers the quantizer)
from optimum.bitnet import BitNetModelForCausalLM


SECONDS = 20
_ADDRESS_SPACE = 4 << 30  # above what the process starts with: a last fence before the machine's memory


class Hang(BaseException):
    """Out of time; no `except Exception` may keep it."""


def _on_alarm(*_) -> None:
    raise Hang


def _status(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) << 10
    raise KeyError(key)


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def with_transformers(folder: Path, base: str):
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)


def with_optimum(folder: Path, base: str):
    return BitNetModelForCausalLM.from_pretrained(folder, export=base.endswith("online"), local_files_only=True)


LOADERS = {"transformers": with_transformers, "optimum": with_optimum}


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(torch.arange(3, 14)[None]).logits.float()


def encoded(folder: Path) -> list[int]:
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)("the little robot <s> é")["input_ids"]


def stage(error: BaseException) -> str:
    """Where an error that is not ours came from: `"config"` (AutoConfig and config classes), `"quantizer"` (transformers' choice of
    one), `"constructor"` (of a model), `"weights"` or `"other"`."""
    frames = [(Path(frame.filename).name, frame.name) for frame in traceback.extract_tb(error.__traceback__)]
    names = {name for _, name in frames}
    if names & {"get_hf_quantizer", "supports_quant_method", "merge_quantization_configs"}:
        return "quantizer"
    if any(file.startswith("configuration_") for file, _ in frames) and "_from_config" not in names:
        return "config"
    if any(file.startswith("modeling_") and name == "__init__" for file, name in frames):
        return "constructor"
    if names & {
        "_get_resolved_checkpoint_files",
        "get_checkpoint_shard_files",
        "_get_dtype",
        "_load_pretrained_model",
    }:
        return "weights"
    return "other"


def attempt(load, expected: list) -> dict:
    """Run `load`; what came of it, and whether that is among `expected`."""
    _reset_peak()
    before, start = _status("VmRSS"), time.monotonic()
    signal.alarm(SECONDS)
    faulthandler.dump_traceback_later(SECONDS + 10, exit=True)  # where no Python code gets its turn
    try:
        output = load()
        equal = torch.equal if isinstance(output, torch.Tensor) else operator.eq
        result = {"verdict": "same" if any(equal(output, wanted) for wanted in expected) else "other"}
    except BaseException as error:  # (a panic of the tokenizers' Rust code is no Exception)
        if isinstance(error, KeyboardInterrupt):
            raise
        result = {
            "verdict": "hang" if isinstance(error, Hang) else "refused",
            "error": type(error).__name__,
            "ours": type(error).__module__.startswith(("hf_bitdistill", "optimum.bitnet")),
            "message": str(error)[:2000],
            "stage": stage(error),
        }
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
    result["seconds"] = round(time.monotonic() - start, 3)
    result["grown"] = _status("VmHWM") - before
    return result


def main(job: dict) -> None:
    warnings.simplefilter("ignore")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _on_alarm)
    bases = {name: Path(folder) for name, folder in job["bases"].items()}
    contents = {name: read_folder(folder) for name, folder in bases.items()}
    expected = {
        (name, loader): logits(load(folder, name))
        for name, folder in bases.items()
        for loader, load in LOADERS.items()
    }
    texts = {name: encoded(folder) for name, folder in bases.items() if TOKENIZER[0] in contents[name]}
    space = _status("VmSize") + _ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    work = Path(job["work"])
    for name, folder in bases.items():
        shutil.copytree(folder, work / name / "outside")
    names = sorted(bases)
    with open(job["report"], "a", buffering=1) as report:
        for seed in range(*job["seeds"]):
            base = names[seed % len(names)]
            mutant = mutate(contents[base], seed)
            folder = work / base / "mutant"
            shutil.rmtree(folder, ignore_errors=True)
            write_folder(mutant.files, folder)
            known = {"seed": seed, "base": base, "target": mutant.target, "kind": mutant.kind, "key": mutant.key}
            known |= {"what": mutant.what, "notes": mutant.notes, "changed": mutant.files != contents[base]}
            if mutant.target in TOKENIZER:
                attempts = {"tokenizer": lambda folder=folder: encoded(folder)}
            else:
                attempts = {
                    loader: lambda load=load, folder=folder, base=base: logits(load(folder, base))
                    for loader, load in LOADERS.items()
                }
            for loader, load in attempts.items():
                # (Where the native decoder refuses, transformers computes: the same model with other roundings.)
                allowed = dict.fromkeys([loader, "transformers"])
                wanted = [texts[base]] if loader == "tokenizer" else [expected[base, name] for name in allowed]
                print(seed, loader, mutant.target, mutant.what[:100], file=sys.stderr, flush=True)
                report.write(json.dumps({**known, "loader": loader, **attempt(load, wanted)}) + "\n")
            if seed % 100 == 99:
                gc.collect()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
