"""Between the engine's cache and the session store: what is written after a turn, what is brought back before one."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sterna.backends.base import Backend
from sterna.chat.messages import Message
from sterna.engine.cache import Cache
from sterna.engine.prefix_index import Node, SnapshotKind
from sterna.errors import SessionError
from sterna.sessions.sealed_file import Bytes
from sterna.sessions.session import SegmentRef, Session, StateRef, Tokens, as_tokens, directory_name, extend_chain
from sterna.sessions.store import SessionStore, empty_session
from sterna.sessions.stored_turn import StoredTurn

SEGMENT_TOKENS = 1_024
# Conversations below this are computed again faster than they are worth a file.
MIN_TOKENS = 256
# States stored per session: the latest, and the end of system and tools.
MAX_STATES = 8
# Exported bytes that may wait for the disk; more is left for the next turn to store.
MAX_PENDING_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class _Job:
    """A conversation to be stored: copies of what the store did not have when it was exported."""

    namespace: str
    tokens: Tokens
    segments: dict[tuple[int, int], Bytes]
    states: dict[int, tuple[int, Bytes]]

    @property
    def nbytes(self) -> int:
        """Bytes of the copies."""
        return sum(data.nbytes for data in self.segments.values()) + sum(d.nbytes for _, d in self.states.values())


@dataclass(frozen=True, slots=True)
class _TurnJob:
    """A turn to be added to the manifest of the session that holds it."""

    namespace: str
    turn: StoredTurn
    tokens: Tokens
    nbytes: int = 0


class SessionKeeper:
    """Implements the engine's `Keeper` over a `SessionStore`. Writing happens on a thread of its own.

    ``say`` gets a line for every stored session that could not be used. A session goes on under its id while its tokens only
    grow or change in the last turn; a conversation that parts from it earlier becomes a session of its own and shares the files
    of what they have in common.
    """

    def __init__(
        self,
        store: SessionStore,
        backend: Backend,
        cache: Cache,
        *,
        model: str,
        say: Callable[[str], None] = lambda line: None,
        min_tokens: int = MIN_TOKENS,
        segment_tokens: int = SEGMENT_TOKENS,
    ) -> None:
        self.store = store
        self.backend = backend
        self.cache = cache
        self.model = model
        self.say = say
        self.min_tokens = min_tokens
        self.fingerprint = backend.fingerprint()
        self.segment_tokens = -(-segment_tokens // cache.block_size) * cache.block_size
        self._told: set[str] = set()
        self._pending_bytes = 0
        self._queue: queue.SimpleQueue[_Job | _TurnJob | None] = queue.SimpleQueue()
        self._idle = threading.Condition()
        self._unfinished = 0
        self._writer = threading.Thread(target=self._write_jobs, name="session-writer", daemon=True)
        self._writer.start()

    def close(self) -> None:
        """Write what waits, and let another process write to the store."""
        self._queue.put(None)
        self._writer.join()
        self.store.close()

    def flush(self) -> None:
        """Wait until everything that was saved so far is on the disk."""
        with self._idle:
            self._idle.wait_for(lambda: self._unfinished == 0)

    # saving ----------------------------------------------------------------------------------------------------------

    def save(self, namespace: str, key_ids: Sequence[int]) -> None:
        """Copy what the store does not have yet and leave the rest to the writer."""
        if not self.store.writable or len(key_ids) < self.min_tokens or self._pending_bytes > MAX_PENDING_BYTES:
            return
        nodes = self.cache.prefixes.path(namespace, key_ids)
        if not nodes or nodes[-1].end < self.min_tokens:
            return
        job = self._export(namespace, as_tokens(key_ids[: nodes[-1].end]), nodes)
        if job.states:
            self._enqueue(job)

    def save_turn(self, namespace: str, prompt: Sequence[int], context: bytes, message: Message) -> None:
        """Keep a finished turn, to heal requests after a restart."""
        if self.store.writable and message.token_ids and len(prompt) + len(message.token_ids) >= self.min_tokens:
            turn = StoredTurn(len(prompt), context, message)
            self._enqueue(_TurnJob(namespace, turn, as_tokens([*prompt, *message.token_ids])))

    def turns(self, namespace: str) -> list[tuple[bytes, Message]]:
        """The turns that are stored for a namespace, with the digests of what came before them; the oldest first."""
        sessions = [session for session in reversed(self.store.sessions(namespace)) if session.model == self.model]
        stored = [StoredTurn.from_json(turn) for session in sessions for turn in session.turns]
        return [(turn.context, turn.message) for turn in stored]

    def _enqueue(self, job: _Job | _TurnJob) -> None:
        with self._idle:
            self._unfinished += 1
            self._pending_bytes += job.nbytes
        self._queue.put(job)

    def _export(self, namespace: str, tokens: Tokens, nodes: list[Node]) -> _Job:
        relatives = self._relatives(namespace, tokens)
        stored = {(part.start, part.end) for session, common in relatives for part in _segments(session, common)}
        known = {part.position for session, common in relatives for part in _states(session, common)}
        size = self.cache.block_size
        segments = {}
        for start, end in self._ranges(len(tokens)):
            if (start, end) not in stored:
                blocks = [node.block for node in nodes[start // size : -(-end // size)]]
                segments[start, end] = self.backend.export_blocks(blocks)
        states = {}
        wanted = [snapshot for node in nodes for snapshot in node.snapshots.values()]
        for snapshot in sorted(wanted, key=lambda s: (s.kind is SnapshotKind.SYSTEM_END, s.position))[-MAX_STATES:]:
            if snapshot.position not in known and snapshot.position >= self.min_tokens // 2:
                states[snapshot.position] = (int(snapshot.kind), self.backend.snapshot_state(snapshot.slot))
        return _Job(namespace, tokens, segments, states)

    def _ranges(self, num_tokens: int) -> list[tuple[int, int]]:
        step = self.segment_tokens
        return [(start, min(start + step, num_tokens)) for start in range(0, num_tokens, step)]

    def _relatives(self, namespace: str, tokens: Tokens) -> list[tuple[Session, int]]:
        """Usable sessions with a common beginning, the longest first and of equal ones the last used."""
        found = [(s, s.common(tokens)) for s in self.store.sessions(namespace) if s.fingerprint == self.fingerprint]
        return sorted((each for each in found if each[1]), key=lambda each: -each[1])

    def _write_jobs(self) -> None:
        while (job := self._queue.get()) is not None:
            try:
                if not self.store.writable:
                    continue
                if isinstance(job, _TurnJob):
                    self._write_turn(job)
                else:
                    self._write(job)
            except OSError as error:
                self.store.disk_failed(error)
            except SessionError as error:
                self._tell(f"a session is not stored: {error.message}")
            finally:
                with self._idle:
                    self._unfinished -= 1
                    self._pending_bytes -= job.nbytes
                    self._idle.notify_all()

    def _write(self, job: _Job) -> None:
        relatives = self._relatives(job.namespace, job.tokens)
        session = next((s for s, common in relatives if _goes_on(s, common)), None)
        session = session or empty_session(job.namespace, fingerprint=self.fingerprint, model=self.model)
        reusable = {(p.start, p.end): p for other, common in relatives for p in _segments(other, common)}
        states = {p.position: p for other, common in reversed(relatives) for p in _states(other, common)}
        self.store.hold(replace(session, segments=tuple(reusable.values()), states=tuple(states.values())))
        segments, chain, chains = [], "", {0: ""}
        for start, end in self._ranges(len(job.tokens)):
            chain = chains[end] = extend_chain(chain, job.tokens[start:end])
            part = reusable.get((start, end))
            if part is None:
                if (start, end) not in job.segments:
                    # its session was purged meanwhile; the next turn exports everything that is missing
                    return
                part = self._write_segment(job, start, end, chain)
            segments.append(part)
        for position, (kind, data) in job.states.items():
            start = position // self.segment_tokens * self.segment_tokens
            header = {
                "kind": "state",
                "fingerprint": self.fingerprint,
                "position": position,
                "chain": extend_chain(chains[start], job.tokens[start:position]),
            }
            name, size = self.store.write_part(directory_name(job.namespace), header, data)
            states[position] = StateRef(name, position, kind, size)
        kept = sorted(states.values(), key=lambda s: (s.kind == SnapshotKind.SYSTEM_END, s.position))[-MAX_STATES:]
        known = {json.dumps(turn): turn for other, _ in reversed(relatives) for turn in other.turns}
        turns = [turn for turn in known.values() if StoredTurn.from_json(turn).lies_in(job.tokens)]
        self.store.put(
            replace(session, tokens=job.tokens, segments=tuple(segments), states=tuple(kept), turns=tuple(turns))
        )

    def _write_turn(self, job: _TurnJob) -> None:
        for session, _ in self._relatives(job.namespace, job.tokens):
            if job.turn.lies_in(session.tokens):
                self.store.put(replace(session, turns=(*session.turns, job.turn.as_json())))
                return

    def _write_segment(self, job: _Job, start: int, end: int, chain: str) -> SegmentRef:
        data = job.segments[start, end]
        header = {"kind": "kv", "fingerprint": self.fingerprint, "start": start, "end": end, "chain": chain}
        name, size = self.store.write_part(directory_name(job.namespace), header, data.reshape(-1))
        return SegmentRef(name, start, end, size)

    # restoring -------------------------------------------------------------------------------------------------------

    def restore(self, namespace: str, key_ids: Sequence[int]) -> None:
        """Bring back the longest stored beginning of a prompt, if that saves more than a block; damage is told and skipped."""
        if len(key_ids) <= self.min_tokens // 2:
            return
        tokens = as_tokens(key_ids)
        self._tell_foreign(namespace, tokens)
        cached = self.cache.prefixes.match(namespace, key_ids).num_cached
        found = [(s, s.best_state(min(common, len(tokens) - 1))) for s, common in self._relatives(namespace, tokens)]
        usable = [(session, state) for session, state in found if state is not None]
        for session, state in sorted(usable, key=lambda each: -each[1].position):
            if state.position <= cached + self.cache.block_size:
                return
            try:
                self._load(namespace, session, state)
                return
            except SessionError as error:
                if self.store.forget(session):
                    self.say(f"session {session.id} is computed again: {error.message}")

    def _load(self, namespace: str, session: Session, state: StateRef) -> None:
        """All files are verified before anything of the cache changes."""
        tokens, size = session.tokens[: state.position], self.cache.block_size
        data, chain, chains = [], "", {0: ""}
        for part in session.segments:
            if part.start >= state.position:
                break
            chain = chains[part.end] = extend_chain(chain, session.tokens[part.start : part.end])
            opened = self.store.read(session, part)
            if opened.header["chain"] != chain:
                raise SessionError(f"{part.name} holds other tokens than the session says")
            data.append(opened.payload.reshape(-(-(part.end - part.start) // size), -1))
        opened = self.store.read(session, state)
        start = state.position // self.segment_tokens * self.segment_tokens
        if opened.header["chain"] != extend_chain(chains[start], tokens[start:]):
            raise SessionError(f"{state.name} is the state after other tokens than the session says")

        def fill(first: int, blocks: list[int], slot: int) -> None:
            per_segment = self.segment_tokens // size
            for i, rows in enumerate(data):
                low = max(first, i * per_segment)
                high = min(first + len(blocks), i * per_segment + len(rows))
                if low < high:
                    self.backend.import_blocks(
                        blocks[low - first : high - first], rows[low - i * per_segment :][: high - low]
                    )
            self.backend.restore_state(slot, opened.payload)

        self.cache.adopt(namespace, tokens.tolist(), fill)

    def _tell_foreign(self, namespace: str, tokens: Tokens) -> None:
        for session in self.store.sessions(namespace):
            if session.fingerprint != self.fingerprint and session.common(tokens) >= self.min_tokens:
                self._tell(
                    f"session {session.id} was stored by another model, kernel variant or setting ({session.model}) "
                    "and is computed again"
                )

    def _tell(self, line: str) -> None:
        """Say something that will come up again only once."""
        if line not in self._told:
            self._told.add(line)
            self.say(line)


def _segments(session: Session, common: int) -> list[SegmentRef]:
    return [part for part in session.segments if part.end <= common]


def _states(session: Session, common: int) -> list[StateRef]:
    return [part for part in session.states if part.position <= common]


def _goes_on(session: Session, common: int) -> bool:
    """Whether tokens with so much in common are the same conversation: nothing but its last turn differs."""
    if common == len(session.tokens):
        return True
    inner = [state.position for state in session.states if state.position < len(session.tokens)]
    return bool(inner) and common >= max(inner)
