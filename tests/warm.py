"""Processes of their own without the seconds of imports: forks of a server that has imported torch, transformers and (mostly) this package.

For tests that want another process and not its start: what a start of Python does, imports or prints is tested by real ones.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO


class Server:
    """One for each process of the suite. It ends with its owner, whose end closes its input."""

    def __init__(self) -> None:
        command = [sys.executable, str(Path(__file__).resolve())]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        atexit.register(self.close)

    def _ask(self, **request) -> int | None:
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the server of warm processes has ended with status {self._process.wait()}")
        return json.loads(answer)

    def start(
        self,
        arguments: Sequence[str],
        env: Mapping[str, str],
        out: Path,
        err: Path,
        ours: bool = True,
        ends: bool = False,
    ) -> int:
        """Fork: `arguments` as Python takes them (a script, `-m module` or `-c code`). Returns the process's id."""
        place = {"env": dict(env), "cwd": os.getcwd(), "out": str(out), "err": str(err)}
        return self._ask(run=[os.fspath(each) for each in arguments], **place, ours=ours, ends=ends)

    def wait(self, process: int, deadline: float, ours: bool = True) -> int | None:
        """Its exit status (negative: the signal), or `None` where it was killed at the deadline (`time.monotonic`)."""
        while (status := self._ask(poll=process, ours=ours)) is None:
            if time.monotonic() > deadline:
                self._ask(kill=process, ours=ours)
                return None
            time.sleep(0.02)
        return status

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@functools.cache
def _server_of(owner: int) -> Server:
    return Server()


def run(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    timeout: float = 240.0,
    capture_output: bool = True,
    text: bool = True,
    ours: bool = True,
    ends: bool = False,
) -> subprocess.CompletedProcess:
    """As `subprocess.run` runs a command of this Python and gives both of its outputs as text.

    Args:
        ours: whether this package is imported already. Where it is not, only libraries are, and `peft` is not among them.
        ends: whether the interpreter ends as others do, with all that is called and destroyed then.

    Raises:
        subprocess.TimeoutExpired: it was killed after `timeout` seconds.
    """
    return run_side_by_side([(command, os.environ if env is None else env)], timeout, ours, ends)[0]


def run_side_by_side(
    commands: Sequence[tuple[Sequence[str], Mapping[str, str]]],
    timeout: float = 240.0,
    ours: bool = True,
    ends: bool = False,
) -> list[subprocess.CompletedProcess]:
    """Several at a time, each with its environment; `ours` and `ends` as in `run`.

    Raises:
        subprocess.TimeoutExpired: one was killed after `timeout` seconds, and with it all of them.
    """
    server = _server_of(os.getpid())
    deadline = time.monotonic() + timeout
    with tempfile.TemporaryDirectory() as folder:
        files = [(Path(folder, f"{index}.out"), Path(folder, f"{index}.err")) for index in range(len(commands))]
        started = []
        for (command, env), (out, err) in zip(commands, files, strict=True):
            if command[0] != sys.executable:
                raise ValueError(f"only {sys.executable} can be warm, not {command[0]}")
            started.append(server.start(command[1:], env, out, err, ours, ends))
        statuses = [server.wait(process, deadline, ours) for process in started]
        outputs = [[file.read_text(errors="replace") for file in pair] for pair in files]
    if None in statuses:
        late = statuses.index(None)
        raise subprocess.TimeoutExpired(list(commands[late][0]), timeout, *outputs[late])
    return [
        subprocess.CompletedProcess(command, status, *texts)
        for (command, _), status, texts in zip(commands, statuses, outputs, strict=True)
    ]


def launch(command: Sequence[str], processes: int, env: Mapping[str, str], timeout: float = 240.0) -> str:
    """A command in several processes that are told of each other as torchrun does it, without its agent.

    Returns:
        All that they printed.

    Raises:
        AssertionError: one ended with an error.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    meeting["LOCAL_WORLD_SIZE"] = str(processes)
    commands = [(command, {**env, **meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(processes)]
    done = run_side_by_side(commands, timeout)
    text = "".join(each.stdout + each.stderr for each in done)
    assert [each.returncode for each in done] == [0] * processes, text[-6000:]
    return text


# ---- The server ----


def _be(request: dict) -> None:
    """In the fork: take the place of a Python that was started with these arguments. Does not return."""
    status = 1
    try:
        os.setpgid(0, 0)
        for name, number in (("out", 1), ("err", 2)):
            handle = os.open(request[name], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            os.dup2(handle, number)
            os.close(handle)
        handle = os.open(os.devnull, os.O_RDONLY)
        os.dup2(handle, 0)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, "r" if n == 0 else "w", closefd=False) for n in range(3))
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        first, *rest = request["run"]
        sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
        status = 0
        if first == "-m":
            sys.argv = rest
            sys.path.insert(0, os.getcwd())
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        elif first == "-c":
            sys.argv = ["-c", *rest[1:]]
            exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = [first, *rest]
            sys.path.insert(0, str(Path(first).resolve().parent))
            runpy.run_path(first, run_name="__main__")
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        status = 1
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if not request["ends"]:
            os._exit(status)
    sys.exit(status)


def _import_libraries() -> None:
    # What takes long, and nothing that starts a thread: threads do not live on in a fork.
    import accelerate
    import datasets
    import torch.distributed.fsdp
    import transformers
    import transformers.models.llama.modeling_llama

    # (transformers looks into modules that are imported when they are asked for.)
    assert accelerate and datasets and torch and transformers.models.llama.modeling_llama
    assert transformers.AutoModelForCausalLM and transformers.PreTrainedTokenizerFast
    assert "peft" not in sys.modules


def _import_ours() -> None:
    import transformers

    import hf_bitdistill.training
    import hf_bitdistill.verify.reference
    import optimum.bitnet

    assert hf_bitdistill and transformers.Trainer and optimum.bitnet.BitNetModelForCausalLM


class _WithOurs:
    """The same server with this package imported too: a fork of the one without it."""

    def __init__(self) -> None:
        requests, self._requests = (os.fdopen(end, mode) for end, mode in zip(os.pipe(), "rw", strict=True))
        self._answers, answers = (os.fdopen(end, mode) for end, mode in zip(os.pipe(), "rw", strict=True))
        if os.fork() == 0:
            self._requests.close()
            self._answers.close()
            _import_ours()
            _serve(requests, answers)
            os._exit(0)
        requests.close()
        answers.close()

    def ask(self, request: dict) -> int | None:
        self._requests.write(json.dumps({**request, "ours": False}) + "\n")
        self._requests.flush()
        return json.loads(self._answers.readline())


def _serve(requests: IO[str], answers: IO[str]) -> None:
    """Answer line by line, until whoever asks has ended."""
    with_ours = None
    for line in requests:
        request = json.loads(line)
        if request["ours"]:
            with_ours = with_ours or _WithOurs()
            answer = with_ours.ask(request)
        elif "run" in request:
            answer = os.fork()
            if answer == 0:
                _be(request)
        elif "poll" in request:
            process, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if process else None
        else:
            os.killpg(request["kill"], signal.SIGKILL)
            answer = os.waitpid(request["kill"], 0)[1]
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    sys.path.pop(0)  # (this folder, which a program of a test has not)
    to_owner = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a module prints is no answer
    _import_libraries()
    _serve(sys.stdin, to_owner)
