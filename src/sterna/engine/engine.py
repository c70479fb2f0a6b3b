"""The engine: requests in, one forward pass per `Engine.step`, token events out. Not thread-safe."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from collections.abc import Sequence as Tokens
from dataclasses import dataclass

from sterna.backends.base import Backend, SampledToken
from sterna.config import EngineConfig
from sterna.engine.batch import build_batch, sample_row
from sterna.engine.cache import Cache
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

    ``token_text`` shows a token in the reason for a cache miss. Raises `UsageError` for a configuration that cannot work
    and `OutOfMemoryError` for one that does not fit.
    """

    def __init__(
        self, backend: Backend, engine_config: EngineConfig, *, token_text: Callable[[int], str] = str
    ) -> None:
        if engine_config.prefill_chunk_tokens < engine_config.max_num_seqs:
            raise UsageError(
                f"prefill_chunk_tokens is {engine_config.prefill_chunk_tokens}, "
                f"allowed is max_num_seqs = {engine_config.max_num_seqs} or more"
            )
        self.backend = backend
        self.plan = backend.plan_memory(engine_config)
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
        )
        self.scheduler.token_text = token_text
        self._requests: dict[int, Sequence] = {}
        self._next_id = 0

    @property
    def has_work(self) -> bool:
        """Whether `step` would compute something."""
        return self.scheduler.has_work

    def add_request(
        self, token_ids: Tokens[int], params: SamplingParams, *, turn_starts: Tokens[int] = (), namespace: str = ""
    ) -> int:
        """Queue a prompt and return its number.

        ``turn_starts`` are the indices at which its turns begin, where other prompts are likely to part from this one;
        the second is the end of system and tools. Nothing is reused across namespaces.
        ``max_tokens`` is clamped to what the context leaves. Without a seed a random one is drawn. Raises `UsageError`
        for an empty prompt or a token that does not exist, `ContextOverflowError` for a prompt that leaves no room.
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
            snapshots=_wanted_snapshots(turn_starts, len(token_ids)),
            stop_token_ids=frozenset(self.backend.config.eos_token_ids) | frozenset(params.stop_token_ids),
        )
        self._next_id += 1
        self._requests[sequence.id] = sequence
        self.scheduler.add(sequence)
        return sequence.id

    def step(self) -> list[EngineEvent]:
        """Compute one pass over the scheduled pieces and sample a token for every sequence that is complete.

        When the backend fails, all sequences of the pass are dropped and the error is passed on.
        """
        pieces = self.scheduler.schedule()
        if not pieces:
            return []
        self._reserve_snapshots(pieces)
        try:
            sampled = self._run(pieces)
        except BaseException:
            for piece in pieces:
                for _, slot, _ in piece.snapshots:
                    self.cache.states.free(slot)
                self.cancel(piece.sequence.id)
            raise
        return self._advance(pieces, sampled)

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

    def _run(self, pieces: list[Piece]) -> list[SampledToken]:
        logits = self.backend.forward(build_batch(pieces, block_size=self.plan.block_size))
        rows = [sample_row(piece.sequence) for piece in pieces if piece.is_last]
        return self.backend.sample(logits, rows) if rows else []

    def _reserve_snapshots(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            start = before = piece.sequence.num_computed_tokens
            for position in sorted(p for p in piece.sequence.snapshots if p <= start + piece.num_tokens):
                kind = piece.sequence.snapshots.pop(position)
                slot = self.cache.take_snapshot_slot(kind, position - before) if position > start else None
                if slot is not None:
                    before = position
                    piece.snapshots.append((position, slot, kind))

    def _advance(self, pieces: list[Piece], sampled: list[SampledToken]) -> list[EngineEvent]:
        complete = [piece.sequence for piece in pieces if piece.is_last]
        for piece in pieces:
            sequence = piece.sequence
            sequence.num_computed_tokens += piece.num_tokens
            new_blocks = sequence.num_computed_tokens // self.plan.block_size > len(sequence.path)
            if piece.snapshots or new_blocks:
                self.cache.store(sequence, piece.snapshots)
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
        self.scheduler.finish(sequence, keep=keep)


# Turn starts of a prompt whose states are stored on the way: all of the last ones, every second before them, and so on.
RECENT_TURNS = 8


def _wanted_snapshots(turn_starts: Tokens[int], num_tokens: int) -> dict[int, SnapshotKind]:
    """Positions of the prompt at which the state is worth keeping: its end, the end of system and tools, turn starts."""
    inside = [position for position in turn_starts if 0 < position < num_tokens]
    wanted = {num_tokens: SnapshotKind.TURN_END}
    distance, step = 0, 1
    while distance < len(inside):
        wanted[inside[-1 - distance]] = SnapshotKind.TURN_END
        distance += step
        if distance >= RECENT_TURNS * step:
            step *= 2
    if inside:
        wanted[inside[0]] = SnapshotKind.SYSTEM_END
    return wanted
