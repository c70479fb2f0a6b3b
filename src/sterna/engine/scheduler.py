"""Which sequences compute how many tokens in the next pass. No tensors here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from sterna.engine.cache import Cache
from sterna.engine.fairness import Fairness
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


@dataclass(frozen=True, slots=True)
class Schedule:
    """``short`` runs at once, as one pass; ``long`` starts a pass that is run in slices between short ones."""

    short: list[Piece]
    long: list[Piece]


class Scheduler:
    """Continuous batching: every decoding sequence advances in every step, prompts in long passes beside them.

    Prompts of up to ``short_tokens`` ride along with the decode steps. A long pass has ``chunk_tokens`` tokens at most, and
    there is one at a time; `Fairness` says whose prompt is next, and who is admitted next. When blocks run out, the youngest
    sequence of the lowest priority is preempted: it gives up its place, waits at the front of the queue and goes on from
    what the cache kept. Its text does not change, because a sampled token depends on its position and seed only.

    A prompt whose beginning an older sequence is computing right now waits until that much is there to be reused.
    """

    def __init__(self, cache: Cache, *, max_num_seqs: int, chunk_tokens: int, short_tokens: int) -> None:
        self.cache = cache
        self.max_num_seqs = max_num_seqs
        self.chunk_tokens = chunk_tokens
        self.short_tokens = short_tokens
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.fairness = Fairness()
        self.num_preemptions = 0
        self.token_text: Callable[[int], str] = str

    @property
    def has_work(self) -> bool:
        """Whether any sequence is unfinished."""
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        self.fairness.enter(sequence, [*self.running, *self.waiting])
        self.waiting.append(sequence)

    def finish(self, sequence: Sequence, *, keep: bool) -> None:
        """Take a sequence out, wherever it is; with ``keep`` its cache may be continued by a later one."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self.cache.release(sequence, keep=keep)

    def schedule(self) -> Schedule:
        """What to compute next, at most one piece per sequence; empty only when a long pass has everything that is to do."""
        self._make_way()
        preemptions = self.num_preemptions
        decodes = [s for s in self.running if not s.in_pass and s.num_uncomputed_tokens == 1]
        ready = [s for s in decodes if s in self.running and self._make_room(s)]
        # making room for one may have preempted another that had it already
        short = [Piece(sequence, 1) for sequence in ready if sequence in self.running]
        if preemptions == self.num_preemptions:
            self._admit()
        prompts = self.fairness.order([s for s in self.running if not s.in_pass and s not in decodes])
        room = min(self.short_tokens, self.chunk_tokens) - len(short)
        for sequence in list(prompts):
            if sequence.num_uncomputed_tokens <= room:
                prompts.remove(sequence)
                room -= sequence.num_uncomputed_tokens
                short.append(Piece(sequence, sequence.num_uncomputed_tokens))
        long = [] if any(s.in_pass for s in self.running) else self._long_pass(prompts)
        for piece in (*short, *long):
            self.fairness.charge(piece.sequence, piece.num_tokens)
        return Schedule(short, long)

    def _long_pass(self, prompts: list[Sequence]) -> list[Piece]:
        """The next part of the first prompt; where that is all of it, whole further ones that fit beside it."""
        if not prompts:
            return []
        first = Piece(prompts[0], min(prompts[0].num_uncomputed_tokens, self.chunk_tokens))
        pieces, budget = [first], self.chunk_tokens - first.num_tokens
        for sequence in prompts[1:] if first.is_last and not first.sequence.alone else ():
            if sequence.num_uncomputed_tokens <= budget and not sequence.alone:
                pieces.append(Piece(sequence, sequence.num_uncomputed_tokens))
                budget -= sequence.num_uncomputed_tokens
        return pieces

    def restart(self, sequence: Sequence) -> None:
        """A long pass was given up because another of its sequences was cancelled; that does not happen to this one again."""
        self.running.remove(sequence)
        self.cache.release(sequence, keep=False)
        sequence.was_preempted = sequence.alone = True
        self.waiting.append(sequence)

    def _admit(self) -> None:
        for sequence in self.fairness.order(self.waiting):
            if len(self.running) >= self.max_num_seqs:
                return
            match = self.cache.prefixes.match(sequence.namespace, sequence.key_ids)
            if self._waits_for_another(sequence, match):
                continue
            if not self._acquire(sequence, match):
                return
            self.waiting.remove(sequence)
            self.running.append(sequence)

    def _make_way(self) -> None:
        """Preempt a running sequence where a more urgent one waits and there is no place for it."""
        if not self.waiting or len(self.running) < self.max_num_seqs:
            return
        urgent = self.fairness.level(self.fairness.order(self.waiting)[0])
        lower = [s for s in self.running if not s.in_pass and self.fairness.level(s) > urgent]
        if lower:
            self._preempt(max(lower, key=self.fairness.level))

    def _waits_for_another(self, sequence: Sequence, match: PrefixMatch) -> bool:
        """Whether an older running sequence will soon have computed at least a block more of this prompt."""
        if self.cache.prefixes.max_snapshots == 0:
            return False
        for other in self.running:
            if other.id > sequence.id or other.namespace != sequence.namespace:
                continue
            if other.num_computed_tokens >= other.num_prompt_tokens:
                continue
            shared = min(common_prefix(other.key_ids, sequence.key_ids), len(sequence) - 1)
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
        """Blocks for all tokens of a running sequence; False when it must wait or had to be preempted itself."""
        while not self.cache.grow(sequence, len(sequence)):
            movable = [s for s in self.running if not s.in_pass]
            victim = max(movable, key=lambda s: (s.priority, movable.index(s)))
            if victim is sequence and len(movable) < len(self.running):
                # the long pass in progress holds blocks and will end
                return False
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.cache.release(sequence, keep=True)
        sequence.was_preempted = True
        self.waiting.append(sequence)
        self.num_preemptions += 1
