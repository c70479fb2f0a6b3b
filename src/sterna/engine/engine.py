"""The engine: requests in, one forward pass per `Engine.step`, token events out. Not thread-safe."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Tokens
from contextlib import contextmanager
from dataclasses import dataclass

from sterna.backends.base import Backend, Logits, MemoryPlan, SampledToken
from sterna.config import EngineConfig
from sterna.engine.batch import build_batch, sample_row
from sterna.engine.cache import Cache
from sterna.engine.keeper import Keeper
from sterna.engine.long_pass import LongPass, Pacer
from sterna.engine.prefix_index import SnapshotKind
from sterna.engine.scheduler import Piece, Scheduler
from sterna.engine.sequence import Sequence
from sterna.errors import ContextOverflowError, UsageError
from sterna.types import FinishReason, SamplingParams, TokenEvent, Usage


@dataclass(frozen=True, slots=True)
class EngineEvent:
    """A sampled token of a request, and the request's token counts so far."""

    request_id: int
    token: TokenEvent
    usage: Usage


class Engine:
    """Continuous batching with chunked prefill over one backend that has its weights loaded.

    Long prompts are computed a few layers at a time, and after every such slice all streams that decode get their next token:
    `step` is a short pass and a slice. ``token_text`` shows a token in the reason for a cache miss; ``on_plan``
    is told the exact bytes before anything is allocated. Raises `UsageError` for a
    configuration that cannot work and `OutOfMemoryError` for one that does not fit.
    """

    def __init__(
        self,
        backend: Backend,
        engine_config: EngineConfig,
        *,
        token_text: Callable[[int], str] = str,
        on_plan: Callable[[MemoryPlan], None] | None = None,
    ) -> None:
        if engine_config.prefill_chunk_tokens < engine_config.max_num_seqs:
            raise UsageError(
                f"prefill_chunk_tokens is {engine_config.prefill_chunk_tokens}, "
                f"allowed is max_num_seqs = {engine_config.max_num_seqs} or more"
            )
        self.backend = backend
        self.plan = backend.plan_memory(engine_config)
        if on_plan is not None:
            on_plan(self.plan)
        backend.allocate(self.plan)
        self.cache = Cache(
            backend,
            num_blocks=self.plan.num_blocks,
            block_size=self.plan.block_size,
            num_state_slots=self.plan.num_state_slots,
            max_snapshots=engine_config.snapshot_bytes // max(self.plan.state_bytes_per_slot, 1),
        )
        longest = backend.config.text.max_position_embeddings
        self.max_model_len = min(engine_config.max_model_len or longest, longest, self.cache.capacity_tokens)
        self.scheduler = Scheduler(
            self.cache,
            max_num_seqs=engine_config.max_num_seqs,
            chunk_tokens=engine_config.prefill_chunk_tokens,
            short_tokens=engine_config.short_pass_tokens,
        )
        self.scheduler.token_text = token_text
        self.pacer = Pacer()
        self.keeper: Keeper | None = None
        self._long: LongPass | None = None
        self._requests: dict[int, Sequence] = {}
        self._next_id = 0

    @property
    def has_work(self) -> bool:
        """Whether `step` would compute something."""
        return self.scheduler.has_work

    @property
    def long_pieces(self) -> list[Piece]:
        """What the long pass in progress computes."""
        return [] if self._long is None else self._long.pieces

    def add_request(
        self,
        token_ids: Tokens[int],
        params: SamplingParams,
        *,
        turn_starts: Tokens[int] = (),
        namespace: str = "",
        priority: int = 0,
        content_keys: Mapping[int, int] | None = None,
    ) -> int:
        """Queue a prompt and return its number.

        ``turn_starts`` are the indices at which its turns begin, where other prompts are likely to part from this one;
        the second is the end of system and tools. Nothing is reused across namespaces. Requests of lower ``priority``
        numbers go first. ``content_keys`` maps indices of image tokens to hashes of what they show, without which two
        images of one size would be the same prompt. ``max_tokens`` is clamped to what the context leaves. Without a seed
        a random one is drawn. Raises `UsageError` for an empty prompt or a token that does not exist,
        `ContextOverflowError` for a prompt that leaves no room.
        """
        self._check_prompt(token_ids, params)
        room = self.max_model_len - len(token_ids)
        sequence = Sequence(
            id=self._next_id,
            token_ids=list(token_ids),
            num_prompt_tokens=len(token_ids),
            params=params,
            seed=secrets.randbits(64) if params.seed is None else params.seed,
            max_new_tokens=room if params.max_tokens is None else min(params.max_tokens, room),
            namespace=namespace,
            priority=priority,
            content_keys=content_keys or {},
            snapshots=_wanted_snapshots(turn_starts, len(token_ids), room),
            stop_token_ids=frozenset(self.backend.config.eos_token_ids) | frozenset(params.stop_token_ids),
        )
        self._next_id += 1
        self._requests[sequence.id] = sequence
        self.scheduler.add(sequence)
        return sequence.id

    def step(self) -> list[EngineEvent]:
        """Compute a token for every stream that decodes, then a slice of a long pass if there is one.

        When the backend fails, all sequences of the pass are dropped and the error is passed on.
        """
        self._restore_waiting()
        schedule = self.scheduler.schedule()
        if schedule.long:
            self._begin_long(schedule.long)
        events = self._compute(schedule.short) if schedule.short else []
        if self._long is not None:
            events += self._continue_long(self._long, beside_steps=bool(schedule.short))
        return events

    def cancel(self, request_id: int) -> None:
        """Drop a request and free its blocks and state at once; a finished or unknown one is ignored."""
        self._end(request_id, keep=False)

    def finish(self, request_id: int) -> None:
        """End a request early, as a stop string does: its cache stays to be continued."""
        self._end(request_id, keep=True)

    def is_active(self, request_id: int) -> bool:
        """Whether the request is queued or running."""
        return request_id in self._requests

    def _check_prompt(self, token_ids: Tokens[int], params: SamplingParams) -> None:
        vocab_size = self.backend.config.text.vocab_size
        if len(token_ids) == 0:
            raise UsageError("the prompt is empty", hint="give at least one token of text")
        for name, ids in (("the prompt", token_ids), ("logit_bias", params.logit_bias)):
            bad = [i for i in (min(ids), max(ids)) if not 0 <= i < vocab_size] if ids else []
            if bad:
                raise UsageError(f"{name} holds token {bad[0]}, allowed is 0 to {vocab_size - 1}")
        if len(token_ids) >= self.max_model_len:
            raise ContextOverflowError(
                f"prompt has {len(token_ids):,} tokens, context is {self.max_model_len:,}",
                hint="shorten the prompt, or start with a larger `--max-model-len` if the memory allows it",
            )

    def _restore_waiting(self) -> None:
        """Give the keeper its chance before a new request is looked up in the tree."""
        for sequence in self.scheduler.waiting:
            if self.keeper is not None and not sequence.looked_up:
                sequence.looked_up = True
                self.keeper.restore(sequence.namespace, sequence.key_ids)

    def _save(self, sequence: Sequence, *, after: int) -> None:
        """Tell the keeper of a long prompt now and then while it is being computed, and of every end."""
        computed = sequence.num_computed_tokens
        if self.keeper is not None and computed // SAVE_TOKENS > after // SAVE_TOKENS:
            self.keeper.save(sequence.namespace, sequence.key_ids[:computed])

    def _compute(self, pieces: list[Piece]) -> list[EngineEvent]:
        """One whole pass, and a token for every sequence that is complete."""
        start = self.pacer.clock()
        self._reserve_snapshots(pieces)
        with self._dropping_on_error(pieces):
            logits = self.backend.forward(build_batch(pieces, block_size=self.plan.block_size))
            sampled = self._sample(pieces, logits)
        self.pacer.step_took(self.pacer.clock() - start)
        return self._advance(pieces, sampled)

    def _begin_long(self, pieces: list[Piece]) -> None:
        self._reserve_snapshots(pieces)
        with self._dropping_on_error(pieces):
            running = self.backend.start(build_batch(pieces, block_size=self.plan.block_size))
        for piece in pieces:
            piece.sequence.in_pass = True
        self._long = LongPass(pieces, running)

    def _continue_long(self, long: LongPass, *, beside_steps: bool) -> list[EngineEvent]:
        """Some more layers of a long pass, and a token for every sequence that they complete."""
        layers, start = self.pacer.layers(beside_steps=beside_steps), self.pacer.clock()
        with self._dropping_on_error(long.pieces):
            if not long.running.advance(layers):
                self.pacer.layers_took(layers, self.pacer.clock() - start)
                return []
            sampled = self._sample(long.pieces, long.running.logits())
        return self._advance(self._end_long(long), sampled)

    def _end_long(self, long: LongPass) -> list[Piece]:
        self._long = None
        for piece in long.pieces:
            piece.sequence.in_pass = False
        return long.pieces

    @contextmanager
    def _dropping_on_error(self, pieces: list[Piece]) -> Iterator[None]:
        try:
            yield
        except BaseException:
            if self._long is not None and self._long.pieces is pieces:
                self._end_long(self._long)
            self._free_snapshots(pieces)
            for piece in pieces:
                self.cancel(piece.sequence.id)
            raise

    def _sample(self, pieces: list[Piece], logits: Logits) -> list[SampledToken]:
        rows = [sample_row(piece.sequence) for piece in pieces if piece.is_last]
        return self.backend.sample(logits, rows) if rows else []

    def _free_snapshots(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            for _, slot, _ in piece.snapshots:
                self.cache.states.free(slot)
            piece.snapshots.clear()

    def _reserve_snapshots(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            start = before = piece.sequence.num_computed_tokens
            for position in sorted(p for p in piece.sequence.snapshots if p <= start + piece.num_tokens):
                kind = piece.sequence.snapshots.pop(position)
                if position <= start:
                    continue
                slot = self.cache.take_snapshot_slot(
                    kind,
                    saved_tokens=position - before,
                    from_end=len(piece.sequence) - position,
                    main=piece.sequence.is_main,
                )
                if slot is not None:
                    before = position
                    piece.snapshots.append((position, slot, kind))

    def _advance(self, pieces: list[Piece], sampled: list[SampledToken]) -> list[EngineEvent]:
        complete = [piece.sequence for piece in pieces if piece.is_last]
        for piece in pieces:
            sequence, before = piece.sequence, piece.sequence.num_computed_tokens
            sequence.num_computed_tokens += piece.num_tokens
            new_blocks = sequence.num_computed_tokens // self.plan.block_size > len(sequence.path)
            if piece.snapshots or new_blocks:
                self.cache.store(sequence, piece.snapshots)
            self._save(sequence, after=before)
        return [self._append(sequence, token) for sequence, token in zip(complete, sampled, strict=True)]

    def _append(self, sequence: Sequence, token: SampledToken) -> EngineEvent:
        sequence.append(token.token_id)
        if sequence.finish_reason is not None:
            self._end(sequence.id, keep=True)
        event = TokenEvent(token.token_id, token.logprob, dict(token.top_logprobs), sequence.finish_reason)
        return EngineEvent(sequence.id, event, sequence.usage)

    def _end(self, request_id: int, *, keep: bool) -> None:
        sequence = self._requests.pop(request_id, None)
        if sequence is None:
            return
        if sequence.finish_reason is None:
            sequence.finish_reason = FinishReason.STOP if keep else FinishReason.CANCELLED
        if sequence.in_pass:
            # between two layers its state is that of no token; what earlier passes left in the tree stays
            self._leave_long(sequence)
            keep = False
        computed = sequence.num_computed_tokens
        self.scheduler.finish(sequence, keep=keep)
        if keep and computed and self.keeper is not None:
            self.keeper.save(sequence.namespace, sequence.key_ids[:computed])

    def _leave_long(self, sequence: Sequence) -> None:
        """Give up the long pass in progress for one of its sequences; the others start their pieces again."""
        assert self._long is not None
        pieces = self._end_long(self._long)
        self._free_snapshots(pieces)
        for piece in pieces:
            if piece.sequence is not sequence:
                self.scheduler.restart(piece.sequence)


# Turn starts of a prompt whose states are stored on the way: all of the last ones, every second before them, and so on.
RECENT_TURNS = 8
# How much of a long prompt is computed between two savings.
SAVE_TOKENS = 4_096
# A change inside a long turn replays less than this.
INTERVAL_TOKENS = 1_024


def _wanted_snapshots(turn_starts: Tokens[int], num_tokens: int, room: int) -> dict[int, SnapshotKind]:
    """Positions at which the state is worth keeping: end of prompt, end of system and tools, turn starts, every 1,024 tokens.

    ``room`` is how many tokens may follow the prompt.
    """
    inside = [position for position in turn_starts if 0 < position < num_tokens]
    wanted = dict.fromkeys(range(INTERVAL_TOKENS, num_tokens + room, INTERVAL_TOKENS), SnapshotKind.INTERVAL)
    wanted[num_tokens] = SnapshotKind.TURN_END
    distance, step = 0, 1
    while distance < len(inside):
        wanted[inside[-1 - distance]] = SnapshotKind.TURN_END
        distance += step
        if distance >= RECENT_TURNS * step:
            step *= 2
    if inside:
        wanted[inside[0]] = SnapshotKind.SYSTEM_END
    return wanted
