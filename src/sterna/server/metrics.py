"""Counters of the server in Prometheus' text form."""

from __future__ import annotations

import bisect
import threading
import time

from sterna.chat.messages import End

_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """Written from worker threads and read by a scrape."""

    clock = staticmethod(time.monotonic)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.requests: dict[tuple[str, int], int] = {}
        self.cancelled = 0
        self.failed = 0
        self._tokens = {"prompt": 0, "cached": 0, "computed": 0, "completion": 0, "reasoning": 0}
        self._finished: dict[str, int] = {}
        self._ttft_buckets = [0] * (len(_BUCKETS_S) + 1)
        self._ttft_sum = 0.0

    def request(self, path: str, status: int) -> None:
        """Count a response."""
        self.requests[path, status] = self.requests.get((path, status), 0) + 1

    def first_token(self, seconds: float) -> None:
        """Count the wait from the arrival of a request to its first event."""
        with self._lock:
            self._ttft_buckets[bisect.bisect_left(_BUCKETS_S, seconds)] += 1
            self._ttft_sum += seconds

    def finished(self, end: End) -> None:
        """Count the tokens of an answer."""
        usage = end.usage
        with self._lock:
            self._finished[end.finish_reason] = self._finished.get(end.finish_reason, 0) + 1
            for name, value in (
                ("prompt", usage.prompt_tokens),
                ("cached", usage.cached_tokens),
                ("computed", usage.computed_tokens),
                ("completion", usage.completion_tokens),
                ("reasoning", usage.reasoning_tokens),
            ):
                self._tokens[name] += value

    def text(self, *, active: int, waiting: int) -> str:
        """The page of ``/metrics``."""
        lines = ["# TYPE sterna_requests_total counter"]
        lines += [
            f'sterna_requests_total{{path="{path}",status="{status}"}} {count}'
            for (path, status), count in sorted(self.requests.items())
        ]
        lines += ["# TYPE sterna_generations_total counter"]
        with self._lock:
            finished = {**self._finished, "disconnected": self.cancelled, "error": self.failed}
            lines += [f'sterna_generations_total{{reason="{name}"}} {n}' for name, n in sorted(finished.items())]
            lines += ["# TYPE sterna_tokens_total counter"]
            lines += [f'sterna_tokens_total{{kind="{name}"}} {count}' for name, count in self._tokens.items()]
            lines += ["# TYPE sterna_time_to_first_event_seconds histogram"]
            total = 0
            for bound, count in zip((*map(str, _BUCKETS_S), "+Inf"), self._ttft_buckets, strict=True):
                total += count
                lines.append(f'sterna_time_to_first_event_seconds_bucket{{le="{bound}"}} {total}')
            lines.append(f"sterna_time_to_first_event_seconds_sum {self._ttft_sum:.6f}")
            lines.append(f"sterna_time_to_first_event_seconds_count {total}")
        lines += ["# TYPE sterna_generations_running gauge", f"sterna_generations_running {active}"]
        lines += ["# TYPE sterna_generations_waiting gauge", f"sterna_generations_waiting {waiting}"]
        return "\n".join(lines) + "\n"
