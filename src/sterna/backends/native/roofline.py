"""What this machine can do at most: the figures that speed is compared with."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from sterna import _native
from sterna.backends.native.threads import default_threads
from sterna.backends.native.variants import choose_variant

# Several times the last-level cache of large machines.
READ_BYTES = 1 << 29
REPEATS = 5


@dataclass(frozen=True, slots=True)
class Roofline:
    """Medians measured now: bytes read per second, 8-bit integer multiply-adds per second (0: no instruction for them)."""

    variant: str
    threads: int
    read_bytes_per_second: float
    products_per_second: float


def measure_roofline(
    *, variant: str | None = None, num_threads: int | None = None, read_bytes: int = READ_BYTES, repeats: int = REPEATS
) -> Roofline:
    """Measure both limits with all threads. ``variant`` as in `choose_variant`; takes about a second."""
    ops = _native.Ops(choose_variant(variant))
    _native.set_num_threads(default_threads() if num_threads is None else num_threads)
    reads = [ops.read_bandwidth(read_bytes) for _ in range(repeats)]
    products = [ops.integer_peak() for _ in range(repeats)]
    return Roofline(ops.variant, _native.num_threads(), statistics.median(reads), statistics.median(products))
