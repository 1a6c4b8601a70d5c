"""The processes that `torchrun` or `accelerate launch` started: which is the first, what it decides for all, and what all must have alike.

Without a launcher there is one process, and nothing here waits or sends. What is exchanged is small: names, numbers, results. Every function
that exchanges is called by all processes, in the same order.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar


Value = TypeVar("Value")

# What launchers set for each process, by which it knows that it is one of several, and which engine shards its model.
_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_LAUNCHER_PREFIXES = ("GROUP_", "ROLE_", "TORCHELASTIC_", "ACCELERATE_", "FSDP_")
_alone = False
# How long processes wait for the first one: what ends a dead run is the launcher.
_PATIENCE = timedelta(days=1)
# The group of all and the one for exchanges, made when it is first needed.
_group: tuple[Any, Any] = (None, None)


class ProcessesError(RuntimeError):
    """The processes of one run cannot go on together: one failed, or they do not have alike what they must. It is raised in all of them."""


def world_size() -> int:
    """How many processes a launcher started; 1 without one, and [`alone`]."""
    if _alone:
        return 1
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return launched()


def launched() -> int:
    """As [`world_size`] before the processes have met, without an import of torch."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def rank() -> int:
    """Of this process among all; 0 without a launcher."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


def local_world_size() -> int:
    """How many of them run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world_size() > 1 else 1


def is_first() -> bool:
    """Whether this is the process that decides, reports and writes for all."""
    return rank() == 0


def local_rank() -> int:
    """Of this process among those on its machine; 0 without a launcher."""
    return int(os.environ.get("LOCAL_RANK", "0")) if world_size() > 1 else 0


def is_first_here() -> bool:
    """Whether this is the first process on its machine, which writes what each machine keeps for itself."""
    return local_rank() == 0


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """What this process does within is its own work: it, and a process that it starts, meets no other one and does not wait for any."""
    global _alone
    before, of_launcher = _alone, os.environ.keys() - environment_alone().keys()
    kept = {name: os.environ.pop(name) for name in of_launcher}
    _alone = True
    try:
        yield
    finally:
        _alone = before
        os.environ.update(kept)


def place() -> str:
    """This process, for a message: its rank and its machine."""
    return f"process {rank()} on {socket.gethostname()}"


def _exchange() -> Any:
    """The group of all processes for what is exchanged here. The first one may write for hours while the others wait: longer than the groups of
    a training allow."""
    global _group
    import torch.distributed as dist
    from accelerate import PartialState

    PartialState()  # sets the processes up as accelerate does, so that a `Trainer` finds the same group later
    world, group = _group
    if group is None or world is not dist.group.WORLD:
        _group = dist.group.WORLD, dist.new_group(backend="gloo", timeout=_PATIENCE)
    return _group[1]


def wait() -> None:
    """Until all processes are here."""
    gather(None)  # (accelerate's own waits for nobody on CPUs)


def gather(value: Value) -> list[Value]:
    """What each process has, in the order of their ranks, in all processes.

    Args:
        value: anything that can be pickled.
    """
    if world_size() == 1:
        return [value]
    import torch.distributed as dist

    group = _exchange()
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group)
    return values


def from_first(make: Callable[[], Value], what: str) -> Value:
    """What the first process makes, in all processes. The others wait for it.

    Args:
        make: called in the first process alone; its result can be pickled.
        what: for the message, as in "choosing a checkpoint".

    Raises:
        Exception: what `make` raised, in the first process.
        ProcessesError: the same, in the others.
    """
    if world_size() == 1:
        return make()
    import torch.distributed as dist

    group = _exchange()
    result: list[Any] = [None, None]
    error: BaseException | None = None
    if is_first():
        try:
            result[0] = make()
        except BaseException as caught:  # the others must not wait for it
            error = caught
            result[1] = f"{type(caught).__name__}: {caught}"
    dist.broadcast_object_list(result, src=0, group=group)  # (accelerate's does nothing on CPUs)
    if error is not None:
        raise error
    if result[1] is not None:
        raise ProcessesError(f"{what} failed in the first process: {result[1]}")
    return result[0]


def on_first(work: Callable[[], Any], what: str) -> None:
    """Do something in the first process alone; the others wait until it is done, and fail if it fails.

    Raises:
        Exception, ProcessesError: as `from_first`.
    """

    def done() -> None:
        work()

    from_first(done, what)


def together(work: Callable[[], Value], what: str) -> Value:
    """Do something in every process: where it fails in one, all end, instead of waiting for it.

    Raises:
        Exception: what `work` raised, in the process where it did.
        ProcessesError: in the others, with the first such message.
    """
    error: BaseException | None = None
    result: Any = None
    try:
        result = work()
    except Exception as caught:
        error = caught
    messages = gather(None if error is None else f"{place()}: {type(error).__name__}: {error}")
    if error is not None:
        raise error
    failed = [message for message in messages if message is not None]
    if failed:
        raise ProcessesError(f"{what} failed in {failed[0]}")
    return result


def agree(what: str, value: Value, remedy: str) -> Value:
    """The value, if every process has the same one.

    Args:
        what: names it, as in "the checkpoint to go on from".
        value: anything that can be pickled and compared.
        remedy: what a user can do where they differ.

    Raises:
        ProcessesError: they differ; in all processes, with the first process that differs from the first one, and both values.
    """
    for index, (found, where) in enumerate(gather((value, place()))):
        if index == 0:
            expected, first = found, where
        elif found != expected:
            raise ProcessesError(f"{what} differs: {expected!r} in {first}, {found!r} in {where}. {remedy}")
    return value


def share(count: int) -> range:
    """The indices of so many items that this process works on: every `world_size`-th. A process may have none."""
    return range(rank(), count, world_size())


def collect(parts: Sequence[Value], count: int) -> list[Value]:
    """The results of all items in their order, in all processes, each process having those of its [`share`].

    Raises:
        ValueError: this process has more or fewer results than its share.
    """
    if len(parts) != len(share(count)):
        raise ValueError(f"{len(parts)} results for a share of {len(share(count))} items")
    gathered = gather(list(parts))
    return [gathered[index % len(gathered)][index // len(gathered)] for index in range(count)]


def environment_alone() -> dict[str, str]:
    """The environment of a program that is started here and is none of the launcher's processes."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in _LAUNCHER and not name.startswith(_LAUNCHER_PREFIXES)
    }


def speaks(of: str) -> bool:
    """Whether this process is the first one to ask about `of`: of a failure that meets all processes, one tells. Nobody waits for another.
    Where it cannot be found out, all speak."""
    if launched() == 1:
        return True
    import torch.distributed as dist

    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=5), wait_for_workers=False)
        return store.add(f"hf_bitdistill {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)} {of}", 1) == 1
    except (KeyError, ValueError, RuntimeError):
        return True
