"""What other processes did to the machine during a measurement (Linux; elsewhere only the load average)."""

from __future__ import annotations

import os
import time
from pathlib import Path


_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def busy_seconds(stat: str) -> float:
    """CPU seconds that were not idle, of the whole machine: the first line of `/proc/stat`."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, stat.splitlines()[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / _TICKS


def process_seconds(stat: str) -> float:
    """CPU seconds of a process and of its children that have ended: `/proc/PID/stat`."""
    fields = stat.rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS


class OtherLoad:
    """CPUs that were busy for others, on average since it was made."""

    def __init__(self, own: list[int]):
        """`own`: ids of the processes that are part of the measurement, beside this one."""
        self._own = [os.getpid(), *own]
        self._start = time.monotonic()
        self._busy, self._ours = self._read()

    def _read(self) -> tuple[float, float] | tuple[None, None]:
        try:
            ours = sum(process_seconds(Path(f"/proc/{pid}/stat").read_text()) for pid in self._own)
            return busy_seconds(Path("/proc/stat").read_text()), ours
        except (OSError, ValueError):
            return None, None

    def record(self) -> dict[str, float | list[float] | None]:
        """While the processes still live."""
        busy, ours = self._read()
        cpus = None
        if busy is not None and self._busy is not None:
            seconds = max(time.monotonic() - self._start, 1e-9)
            cpus = round(max(busy - self._busy - (ours - self._ours), 0.0) / seconds, 3)
        average = [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None
        return {"other_busy_cpus": cpus, "load_average": average}
