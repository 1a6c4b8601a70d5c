"""How the processes of a launcher share an evaluation.

Whole batches are shared, so that each is composed as in one process, and results come back in the order of the batches: scores and losses are
those of one process bit for bit (with as many threads in each).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextvars import ContextVar
from typing import Any, TypeVar

from ..machine import agreement, processes


Batch = TypeVar("Batch", bound=Sized)
Result = TypeVar("Result")

_shared: ContextVar[bool] = ContextVar("shared", default=False)
_tell: ContextVar[Callable[[int], None] | None] = ContextVar("tell", default=None)


@contextlib.contextmanager
def share_rows(tell: Callable[[int], None] | None = None) -> Iterator[None]:
    """Within the context the processes of a launcher share the rows of each evaluation, and all of them have all results.

    Every process calls the same evaluations, of the same model on the same rows: where these differ, all end. Outside of it, and without a
    launcher, a process that evaluates does so alone. A model in shards (FSDP, ZeRO-3) is evaluated by all processes together, on all rows.

    Args:
        tell: called after each batch with the number of rows that the evaluation has done, in every process.
    """
    tokens = _shared.set(True), _tell.set(tell)
    try:
        yield
    finally:
        _shared.reset(tokens[0])
        _tell.reset(tokens[1])


def is_shared(model: Any) -> bool:
    """Whether an evaluation of a model, begun now, is shared."""
    return _shared.get() and processes.world_size() > 1 and not agreement.is_in_shards(model)


def shows_progress(wanted: bool) -> bool:
    """Whether this process shows a bar: one is enough where all of them work on the same."""
    return wanted and (not _shared.get() or processes.is_first())


def check_alike(model: Any, what: str, sequences: Callable[[], Iterable[Sequence[int]]]) -> None:
    """Where the evaluation is shared: whether all processes have the same versions, model and token ids.

    Args:
        what: names the token ids, as in "the prompts".

    Raises:
        ProcessesError: they have not; in all of them.
    """
    if is_shared(model):
        parts = [agreement.versions(), agreement.model("the models", model), agreement.sequences(what, sequences())]
        agreement.check_alike(parts)


def check_same(model: Any, what: str, value: Any) -> None:
    """Where the evaluation is shared: whether all processes have the same of their data.

    Raises:
        ProcessesError: they have not; in all of them.
    """
    if is_shared(model):
        processes.agree(what, value, "Give every machine the same data.")


def results_of(model: Any, batches: Iterable[Batch], work: Callable[[Batch], Result]) -> list[Result]:
    """What `work` gives for each batch, in their order, in every process.

    Args:
        model: that it works with.
        work: its results can be pickled, and hold tensors on the CPU alone.

    Raises:
        Exception: what `work` raised, in the process where it did.
        ProcessesError: that in the others; or they have different numbers of batches.
    """
    tell = _tell.get() or (lambda rows: None)
    shared = is_shared(model)
    turns, turn = (processes.world_size(), processes.rank()) if shared else (1, 0)

    def own() -> tuple[list[Result], int]:
        results, count, rows = [], 0, 0
        for count, batch in enumerate(batches, 1):
            if (count - 1) % turns == turn:
                results.append(work(batch))
            rows += len(batch)
            tell(rows)
        return results, count

    if not shared:
        return own()[0]
    results, count = processes.together(own, "the evaluation")
    check_same(model, "the number of batches", count)
    return processes.collect(results, count)


def slowest(model: Any, seconds: float) -> float:
    """How long a shared evaluation took."""
    return max(processes.gather(seconds)) if is_shared(model) else seconds
