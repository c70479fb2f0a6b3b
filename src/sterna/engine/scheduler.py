"""Which sequences compute how many tokens in the next pass. No tensors here."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from sterna.engine.cache import Cache
from sterna.engine.prefix_index import PrefixMatch, SnapshotKind, common_prefix
from sterna.engine.sequence import Sequence

NO_MATCH = PrefixMatch(0, (), None, 0, None, None)


@dataclass(frozen=True, slots=True)
class Piece:
    """The next ``num_tokens`` uncomputed tokens of a sequence; ``is_last`` when a token can be sampled after them.

    ``snapshots`` are (position, slot, kind): after ``position`` tokens of the sequence the state is stored in ``slot``.
    """

    sequence: Sequence
    num_tokens: int
    snapshots: list[tuple[int, int, SnapshotKind]] = field(default_factory=list)

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

    A prompt whose beginning an older sequence is computing right now waits until that much is there to be reused.
    """

    def __init__(self, cache: Cache, *, max_num_seqs: int, chunk_tokens: int) -> None:
        self.cache = cache
        self.max_num_seqs = max_num_seqs
        self.chunk_tokens = chunk_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self.token_text: Callable[[int], str] = str

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
        for sequence in list(self.waiting):
            if budget <= 0 or len(self.running) >= self.max_num_seqs:
                return
            match = self.cache.prefixes.match(sequence.namespace, sequence.token_ids)
            if self._waits_for_another(sequence, match):
                continue
            if not self._acquire(sequence, match):
                return
            self.waiting.remove(sequence)
            self.running.append(sequence)
            num_tokens = min(sequence.num_uncomputed_tokens, budget)
            pieces.append(Piece(sequence, num_tokens))
            budget -= num_tokens

    def _waits_for_another(self, sequence: Sequence, match: PrefixMatch) -> bool:
        """Whether an older running sequence will soon have computed at least a block more of this prompt."""
        if self.cache.prefixes.max_snapshots == 0:
            return False
        for other in self.running:
            if other.id > sequence.id or other.namespace != sequence.namespace:
                continue
            if other.num_computed_tokens >= other.num_prompt_tokens:
                continue
            shared = min(common_prefix(other.token_ids, sequence.token_ids), len(sequence) - 1)
            if shared > other.num_computed_tokens and shared >= match.num_cached + self.cache.block_size:
                other.snapshots.setdefault(shared, SnapshotKind.DIVERGENCE)
                return True
        return False

    def _acquire(self, sequence: Sequence, match: PrefixMatch) -> bool:
        acquired = self.cache.acquire(sequence, match)
        if not acquired and not self.running:
            # what is reused takes room itself; without it the sequence alone always fits
            match = NO_MATCH
            acquired = self.cache.acquire(sequence, match)
        if not acquired:
            return False
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens = match.num_cached
            sequence.cache_miss_reason = match.reason(len(sequence), self.token_text)
            sequence.is_main = match.snapshot is not None and match.snapshot.kind is SnapshotKind.TURN_END
        if match.num_matched > match.num_cached:
            sequence.snapshots.setdefault(match.num_matched, SnapshotKind.DIVERGENCE)
        return True

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
        self.cache.release(sequence, keep=True)
        self.waiting.appendleft(sequence)
        self.num_preemptions += 1
