"""Finished sequences whose blocks and state are kept, found by the tokens they hold.

A recurrent state exists only for the end of what was computed, so an entry can be continued but neither cut nor shared:
whoever continues it takes it over. Everything outside this file asks for a prefix and gets blocks and a state; how many
states per entry exist and how entries share blocks is decided here alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class CachedPrefix:
    """The tokens that ``block_table`` and ``state_slot`` hold, all of them."""

    token_ids: tuple[int, ...]
    block_table: list[int]
    state_slot: int


class PrefixIndex:
    """Entries in order of last use; the caller owns the pools and frees what it evicts."""

    def __init__(self) -> None:
        self._entries: list[CachedPrefix] = []

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, prefix: CachedPrefix) -> None:
        """Keep a prefix as the most recently used."""
        self._entries.append(prefix)

    def take(self, token_ids: Sequence[int]) -> CachedPrefix | None:
        """Remove and return the longest entry that ``token_ids`` continues by at least one token."""
        best: CachedPrefix | None = None
        for entry in self._entries:
            n = len(entry.token_ids)
            longer = best is None or n > len(best.token_ids)
            if longer and n < len(token_ids) and entry.token_ids == tuple(token_ids[:n]):
                best = entry
        if best is not None:
            self._entries.remove(best)
        return best

    def evict(self) -> CachedPrefix | None:
        """Remove and return the least recently used entry."""
        return self._entries.pop(0) if self._entries else None
