"""What this machine can do at most, measured now: bytes read per second and multiply-adds per second, all threads together."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

# Several times the last-level cache of large machines.
READ_BYTES = 1 << 29
# A matrix that stays in the second-level cache; long enough to hide the start of a product.
_MATRIX, _SECONDS = 384, 0.3
_FLOAT_PEAK = f"""
import time, numpy as np
a = np.random.default_rng(0).standard_normal(({_MATRIX}, {_MATRIX}), np.float32)
out = a @ a
best, end = 0.0, time.perf_counter() + {_SECONDS}
while time.perf_counter() < end:
    start = time.perf_counter()
    np.matmul(a, a, out=out)
    best = max(best, {_MATRIX} ** 3 / (time.perf_counter() - start))
print(best)
"""
_ONE_THREAD = {name: "1" for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}


@dataclass(frozen=True, slots=True)
class Roofline:
    """``peak`` is in multiply-adds per second of the kind that ``peak_kind`` names, ``None`` where it was not measured."""

    read_bytes_per_second: float
    peak: float | None
    peak_kind: str

    def mean(self, other: Roofline) -> Roofline:
        """The mean of two measurements of the same kind, before and after something."""
        peak = None if self.peak is None or other.peak is None else (self.peak + other.peak) / 2
        return Roofline((self.read_bytes_per_second + other.read_bytes_per_second) / 2, peak, self.peak_kind)


def measure_host(threads: int, *, peak: float, repeats: int = 3) -> Roofline:
    """The bandwidth, measured with numpy alone, beside a given `float_peak`."""
    data = np.ones(READ_BYTES // 8 // threads * threads, np.uint64)
    parts = np.split(data, threads)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(np.bitwise_or.reduce, parts))
        rates = [data.nbytes / _seconds(partial(_run_all, pool, parts)) for _ in range(repeats)]
    return Roofline(statistics.median(rates), peak, "float32")


def float_peak(threads: int) -> float:
    """Float32 multiply-adds per second of so many processes with one thread each, by numpy's matrix product."""
    environment = {**os.environ, **_ONE_THREAD}
    command = [sys.executable, "-c", _FLOAT_PEAK]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) for _ in range(threads)]
    return sum(float(process.communicate()[0]) for process in running)


def _run_all(pool: ThreadPoolExecutor, parts: list[np.ndarray]) -> None:
    list(pool.map(np.bitwise_or.reduce, parts))


def _seconds(action: partial[None]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
