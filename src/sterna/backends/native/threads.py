"""How many threads the kernels use: never more than the physical cores that this process may occupy."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path

from sterna import env

SYSTEM = Path("/sys")
PROCESS = Path("/proc/self")


def default_threads() -> int:
    """``STERNA_NUM_THREADS`` if set, else physical cores within the affinity mask and the CPU quota, at least 1."""
    chosen: int | None = env.get("STERNA_NUM_THREADS")
    if chosen is not None:
        return chosen
    cores = physical_cores(_usable_cpus())
    quota = cpu_quota()
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def _usable_cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def physical_cores(cpus: Iterable[int], system: Path = SYSTEM) -> int:
    """Distinct cores among logical CPUs; where the system does not tell, every CPU counts as a core."""
    cores = set()
    for cpu in cpus:
        try:
            siblings = (system / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
        except OSError:
            siblings = str(cpu)
        cores.add(siblings)
    return len(cores)


def cpu_quota(system: Path = SYSTEM, process: Path = PROCESS) -> float | None:
    """CPUs that the control groups of this process grant it in all, version 2 or 1; ``None`` without a limit."""
    root = system / "fs/cgroup"
    try:
        entries = [line.split(":", 2) for line in (process / "cgroup").read_text().splitlines()]
    except OSError:
        return None
    quotas = []
    for _, controllers, path in entries:
        if controllers == "":
            quotas += [_quota_v2(directory) for directory in _with_parents(root, path)]
        elif "cpu" in controllers.split(","):
            quotas += [_quota_v1(directory) for directory in _with_parents(root / "cpu", path)]
    limits = [quota for quota in quotas if quota is not None]
    return min(limits) if limits else None


def _with_parents(root: Path, path: str) -> list[Path]:
    """The group's directory and those above it: any of them may hold the limit."""
    parts = [part for part in path.split("/") if part and part != ".."]
    return [root.joinpath(*parts[:n]) for n in range(len(parts) + 1)]


def _quota_v2(directory: Path) -> float | None:
    try:
        quota, period = (directory / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(directory: Path) -> float | None:
    try:
        quota = int((directory / "cpu.cfs_quota_us").read_text())
        period = int((directory / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return None if quota <= 0 or period <= 0 else quota / period
