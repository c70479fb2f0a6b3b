"""One request on its way through the engine."""

from __future__ import annotations

from dataclasses import dataclass, field

from sterna.engine.prefix_index import Node, SnapshotKind
from sterna.types import FinishReason, SamplingParams, Usage


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens of one request and where their caches live; plain data, no arrays.

    ``token_ids`` is the prompt and then the sampled tokens. The first ``num_computed_tokens`` of them are in the KV
    blocks of ``block_table`` and in ``state_slot``; the last sampled token never is. ``num_cached_tokens`` of the
    prompt were taken over from an earlier sequence instead of being computed.

    ``path`` are the nodes of the prefix tree that own the first blocks of the table; the other blocks are its own.
    ``snapshots`` maps positions to the reason for which a state is wanted there.
    """

    id: int
    token_ids: list[int]
    num_prompt_tokens: int
    params: SamplingParams
    seed: int
    max_new_tokens: int
    stop_token_ids: frozenset[int]
    namespace: str = ""
    snapshots: dict[int, SnapshotKind] = field(default_factory=dict)
    path: list[Node] = field(default_factory=list)
    is_main: bool = False
    cache_miss_reason: str | None = None
    num_computed_tokens: int = 0
    num_cached_tokens: int | None = None
    block_table: list[int] = field(default_factory=list)
    state_slot: int | None = None
    finish_reason: FinishReason | None = None

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens that the next passes must compute before another one can be sampled."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def num_output_tokens(self) -> int:
        """Tokens sampled so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def usage(self) -> Usage:
        """Token counts so far; what preemption computes again is not counted twice."""
        cached = self.num_cached_tokens or 0
        return Usage(
            prompt_tokens=self.num_prompt_tokens,
            completion_tokens=self.num_output_tokens,
            cached_tokens=cached,
            computed_tokens=self.num_prompt_tokens - cached,
            cache_miss_reason=self.cache_miss_reason,
        )

    def append(self, token_id: int) -> None:
        """Add a sampled token and decide whether it is the last one."""
        self.token_ids.append(token_id)
        if token_id in self.stop_token_ids:
            self.finish_reason = FinishReason.STOP
        elif self.num_output_tokens >= self.max_new_tokens:
            self.finish_reason = FinishReason.LENGTH
