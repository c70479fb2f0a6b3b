"""Which sequences compute how many tokens in the next pass. No tensors here."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from sterna.engine.cache import Cache
from sterna.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Piece:
    """The next ``num_tokens`` uncomputed tokens of a sequence; ``is_last`` when a token can be sampled after them."""

    sequence: Sequence
    num_tokens: int

    @property
    def is_last(self) -> bool:
        """Whether nothing of the sequence is left to compute after this piece."""
        return self.num_tokens == self.sequence.num_uncomputed_tokens


class Scheduler:
    """Continuous batching, first come first served: every running sequence advances in every pass.

    A pass has ``chunk_tokens`` tokens at most; a decode step takes one, prompts share the rest. When blocks run out
    the youngest sequence is preempted: it gives up its cache, waits at the front of the queue and is computed again.
    Its text does not change, because a sampled token depends on its position and seed only. The oldest sequence is
    never preempted, so that the queue always moves.
    """

    def __init__(self, cache: Cache, *, max_num_seqs: int, chunk_tokens: int) -> None:
        self.cache = cache
        self.max_num_seqs = max_num_seqs
        self.chunk_tokens = chunk_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.num_preemptions = 0

    @property
    def has_work(self) -> bool:
        """Whether any sequence is unfinished."""
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        self.waiting.append(sequence)

    def finish(self, sequence: Sequence, *, keep: bool) -> None:
        """Take a sequence out, wherever it is; with ``keep`` its cache may be continued by a later one."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self.cache.release(sequence, keep=keep)

    def schedule(self) -> list[Piece]:
        """The pieces of the next pass, at most one per sequence; empty only when there is no work."""
        pieces: list[Piece] = []
        budget = self.chunk_tokens
        preemptions = self.num_preemptions
        for sequence in list(self.running):
            if sequence not in self.running or not self._make_room(sequence):
                continue
            others = len(self.running) - len(pieces) - 1
            num_tokens = min(sequence.num_uncomputed_tokens, budget - others)
            pieces.append(Piece(sequence, num_tokens))
            budget -= num_tokens
        if preemptions == self.num_preemptions:
            self._admit(pieces, budget)
        return pieces

    def _admit(self, pieces: list[Piece], budget: int) -> None:
        while self.waiting and budget > 0 and len(self.running) < self.max_num_seqs:
            sequence = self.waiting[0]
            if not self.cache.acquire(sequence):
                return
            self.running.append(self.waiting.popleft())
            num_tokens = min(sequence.num_uncomputed_tokens, budget)
            pieces.append(Piece(sequence, num_tokens))
            budget -= num_tokens

    def _make_room(self, sequence: Sequence) -> bool:
        """Blocks for all tokens of a running sequence; False when it had to be preempted itself."""
        while not self.cache.grow(sequence, len(sequence)):
            youngest = self.running[-1]
            self._preempt(youngest)
            if youngest is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.cache.release(sequence, keep=False)
        self.waiting.appendleft(sequence)
        self.num_preemptions += 1
