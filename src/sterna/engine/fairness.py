"""Whose turn it is: priorities, equal service between keys, and nobody waits for ever."""

from __future__ import annotations

from collections.abc import Iterable

from sterna.engine.sequence import Sequence

# Tokens of other requests that a waiting one is passed over by before it counts as one priority higher.
PATIENCE_TOKENS = 16_384
MAX_KEYS = 4_096


class Fairness:
    """Orders sequences by priority, then by how much their key was served, then by age.

    Service is counted in tokens per key. A key that comes back after a pause starts level with the least served active one:
    it can neither save up a claim nor shed what it had.
    """

    def __init__(self) -> None:
        self._served: dict[str, int] = {}
        self._total = 0

    def enter(self, sequence: Sequence, active: Iterable[Sequence]) -> None:
        """A sequence joins the queue while ``active`` ones are there."""
        sequence.entered_at = self._total
        keys = {other.namespace for other in active}
        if sequence.namespace not in keys:
            floor = min((self._served.get(key, 0) for key in keys), default=0)
            self._served[sequence.namespace] = max(self._served.get(sequence.namespace, 0), floor)
        while len(self._served) > MAX_KEYS:
            del self._served[min(self._served, key=self._served.__getitem__)]

    def charge(self, sequence: Sequence, num_tokens: int) -> None:
        """Tokens are about to be computed for a sequence."""
        self._served[sequence.namespace] = self._served.get(sequence.namespace, 0) + num_tokens
        self._total += num_tokens

    def level(self, sequence: Sequence) -> int:
        """The priority that a sequence has by now: its own, raised by waiting."""
        return sequence.priority - (self._total - sequence.entered_at) // PATIENCE_TOKENS

    def order(self, sequences: Iterable[Sequence]) -> list[Sequence]:
        """Who goes first; those that were preempted go on before anything new of their priority."""
        return sorted(
            sequences,
            key=lambda s: (
                self.level(s),
                not s.was_preempted,
                self._served.get(s.namespace, 0),
                s.id,
            ),
        )
