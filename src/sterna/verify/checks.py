"""The result of one check."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sterna.errors import SternaError

PASS, FAIL, SKIP = "PASS", "FAIL", "SKIP"


@dataclass(frozen=True, slots=True)
class Check:
    """``status`` is PASS, FAIL or SKIP; a skipped check says in ``detail`` why it could not be made."""

    name: str
    status: str
    detail: str
    hint: str | None = None

    def as_json(self) -> dict[str, Any]:
        """A JSON object with these fields."""
        return asdict(self)


def failed(name: str, error: SternaError) -> Check:
    """A check that ended in one of our errors."""
    return Check(name, FAIL, error.message, error.hint)


def verdict(name: str, problems: list[str], passed: str, *, hint: str | None = None) -> Check:
    """FAIL with the first problems, or PASS with the given words."""
    if not problems:
        return Check(name, PASS, passed)
    more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
    return Check(name, FAIL, "; ".join(problems[:3]) + more, hint)
