"""How long to wait before asking a busy hub again."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

RETRY_STATUS = frozenset({408, 429, 500, 502, 503, 504})
MAX_ATTEMPTS = 6
MAX_WAIT_S = 300.0
_RESET = re.compile(r"(?:^|;)\s*t=(\d+)")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait: ``Retry-After``, or the reset time of a ``RateLimit`` header."""
    text = headers.get("retry-after", "")
    if text.isascii() and text.isdigit():
        return float(text)
    found = _RESET.search(headers.get("ratelimit", ""))
    return float(found[1]) if found else None


class Waits:
    """Attempts of one request. Progress resets them: only failures in a row count."""

    def __init__(self, sleep: Callable[[float], None]) -> None:
        self._sleep = sleep
        self.attempts = 1

    def wait(self, asked_s: float | None = None) -> bool:
        """Wait as long as asked, else 1, 2, 4 … seconds; False, without waiting, once the attempts are used up."""
        if self.attempts >= MAX_ATTEMPTS:
            return False
        self._sleep(min(MAX_WAIT_S, 2.0 ** (self.attempts - 1) if asked_s is None else asked_s))
        self.attempts += 1
        return True

    def reset(self) -> None:
        """Something arrived."""
        self.attempts = 1
