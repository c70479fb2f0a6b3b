"""Watches the host while a command runs, for what the kernel's per-process limits do not bound."""

from __future__ import annotations

import os
from pathlib import Path

from sterna.agent.sandbox.base import GIB, Limits

_FREE_FLOOR_FRACTION = 0.02


class HostWatch:
    """Complains when a command eats the machine.

    RLIMIT_NPROC does not bind root, and no limit sums memory over processes, so the totals of the host are compared
    with those at the start of the command.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._tasks_at_start = _host_tasks() if os.geteuid() == 0 else None
        self._total_bytes, self._free_at_start = _host_memory()

    def complaint(self) -> str | None:
        """Why the command must be killed, or ``None``."""
        if self._tasks_at_start is not None and _host_tasks() - self._tasks_at_start > self._limits.processes:
            return f"more than {self._limits.processes} processes"
        _, free = _host_memory()
        if free < self._total_bytes * _FREE_FLOOR_FRACTION and self._free_at_start - free > GIB:
            return f"the machine has {free >> 20} MiB of memory left"
        return None


def _host_tasks() -> int:
    return int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])


def _host_memory() -> tuple[int, int]:
    """Total and available bytes."""
    sizes = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("MemTotal", "MemAvailable"):
            sizes[name] = int(rest.split()[0]) * 1024
    return sizes["MemTotal"], sizes["MemAvailable"]
