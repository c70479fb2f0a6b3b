"""How much has arrived, how fast, and how long the rest will take."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

WINDOW_S = 20.0


class Meter:
    """Counts bytes of several transfers at once. The rate is that of the last seconds, so that a pause shows."""

    def __init__(self, total_bytes: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.total_bytes = total_bytes
        self.done_bytes = 0
        self._clock = clock
        self._lock = threading.Lock()
        self._moved: deque[tuple[float, int]] = deque([(clock(), 0)])
        self._moved_bytes = 0

    def skip(self, count: int) -> None:
        """Bytes that were there already; a negative count takes bytes back that have to come again."""
        with self._lock:
            self.done_bytes += count

    def add(self, count: int) -> None:
        """Bytes that have just arrived."""
        with self._lock:
            now = self._clock()
            self.done_bytes += count
            self._moved_bytes += count
            self._moved.append((now, self._moved_bytes))
            while len(self._moved) > 2 and now - self._moved[0][0] > WINDOW_S:
                self._moved.popleft()

    def rate(self) -> float:
        """Bytes per second over the last `WINDOW_S` seconds; 0 before anything arrived."""
        with self._lock:
            start, before = self._moved[0]
            elapsed = self._clock() - start
            return (self._moved_bytes - before) / elapsed if elapsed > 0 else 0.0

    def seconds_left(self) -> float | None:
        """At that rate; ``None`` while nothing arrives."""
        rate = self.rate()
        return max(0, self.total_bytes - self.done_bytes) / rate if rate > 0 else None

    def line(self) -> str:
        """``12.3 of 71.9 GB, 85.2 MB/s, 11 min left``."""
        rate, left = self.rate(), self.seconds_left()
        unit, size = ("GB", 1e9) if self.total_bytes >= 1e9 else ("MB", 1e6)
        moving = f", {rate / 1e6:.1f} MB/s" if rate else ""
        rest = "" if left is None else f", {duration(left)} left"
        return f"{self.done_bytes / size:.1f} of {self.total_bytes / size:.1f} {unit}{moving}{rest}"


def duration(seconds: float) -> str:
    """``40 s``, ``11 min``, ``3 h 20 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
