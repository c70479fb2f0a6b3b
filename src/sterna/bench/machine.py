"""The machine of a measurement, as JSON; nothing in it identifies a person or a host."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

import sterna
from sterna.backends.host_memory import available_host_bytes

CPUINFO = Path("/proc/cpuinfo")
_FLAGS = ("avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm")


def describe_machine() -> dict[str, Any]:
    """Processor, instruction sets that matter here, logical CPUs, free memory, load of the last minute, versions."""
    text = CPUINFO.read_text(errors="replace") if CPUINFO.exists() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    known = set(flags[1].split()) if flags else set()
    return {
        "processor": model[1].strip() if model else platform.processor() or "unknown",
        "architecture": platform.machine(),
        "instruction_sets": [flag for flag in _FLAGS if flag in known],
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "free_memory_bytes": available_host_bytes(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "sterna": sterna.__version__,
    }


def resident_bytes() -> int:
    """Memory of this process that is in use now, mapped files included; 0 where the system does not tell."""
    try:
        found = re.search(r"^VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0
