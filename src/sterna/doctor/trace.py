"""Runs requests through an engine and keeps every row of logits that was sampled from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sterna.backends.base import Float32, Logits, SampledToken, SampleRow
from sterna.engine.engine import Engine
from sterna.types import SamplingParams, Usage


@dataclass(frozen=True, slots=True)
class Job:
    """One request; jobs that run together need different seeds, by which their rows are told apart."""

    token_ids: Sequence[int]
    seed: int
    namespace: str
    max_tokens: int = 16
    temperature: float = 1.0
    turn_starts: Sequence[int] = ()

    @property
    def params(self) -> SamplingParams:
        """Sampling with this job's seed; the answer may be shorter where the model ends it."""
        return SamplingParams(temperature=self.temperature, seed=self.seed, max_tokens=self.max_tokens)


@dataclass(slots=True)
class Answer:
    """What a job gave: sampled tokens, and the logits float32 [V] from which each was sampled by absolute position."""

    prompt: Sequence[int]
    token_ids: list[int] = field(default_factory=list)
    rows: dict[int, Float32] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)

    @property
    def all_ids(self) -> list[int]:
        """Prompt and answer."""
        return [*self.prompt, *self.token_ids]


class _Recorder:
    """Stands in for an engine's backend and remembers what it samples from."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.rows: dict[tuple[int, int], Float32] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def sample(self, logits: Logits, rows: Sequence[SampleRow]) -> list[SampledToken]:
        """The backend's own choice."""
        for values, row in zip(logits.to_numpy(), rows, strict=True):
            self.rows[row.seed, row.position] = np.array(values, np.float32)
        return self._backend.sample(logits, rows)


@contextmanager
def _recording(engine: Engine) -> Iterator[_Recorder]:
    backend = engine.backend
    recorder = _Recorder(backend)
    engine.backend = recorder
    try:
        yield recorder
    finally:
        engine.backend = backend


@contextmanager
def chunked(engine: Engine, chunk_tokens: int) -> Iterator[None]:
    """Prompts are cut into pieces of that many tokens meanwhile."""
    scheduler = engine.scheduler
    before = scheduler.chunk_tokens
    scheduler.chunk_tokens = chunk_tokens
    try:
        yield
    finally:
        scheduler.chunk_tokens = before


def run_jobs(engine: Engine, jobs: Sequence[Job]) -> list[Answer]:
    """Run jobs together to their ends."""
    answers: dict[int, Answer] = {}
    with _recording(engine) as recorder:
        for job in jobs:
            request = engine.add_request(
                job.token_ids, job.params, turn_starts=job.turn_starts, namespace=job.namespace
            )
            answers[request] = Answer(job.token_ids)
        while any(engine.is_active(request) for request in answers):
            for event in engine.step():
                if event.request_id in answers:
                    answer = answers[event.request_id]
                    answer.token_ids.append(event.token.token_id)
                    answer.usage = event.usage
    for job, answer in zip(jobs, answers.values(), strict=True):
        answer.rows = {position: row for (seed, position), row in recorder.rows.items() if seed == job.seed}
    return list(answers.values())


@dataclass(frozen=True, slots=True)
class Difference:
    """How far two answers agree: ``rows`` compared, ``differing`` of them in any bit, by ``largest`` at most."""

    rows: int = 0
    differing: int = 0
    largest: float = 0.0
    same_text: bool = True

    def __add__(self, other: Difference) -> Difference:
        return Difference(
            self.rows + other.rows,
            self.differing + other.differing,
            max(self.largest, other.largest),
            self.same_text and other.same_text,
        )


def compare(a: Answer, b: Answer) -> Difference:
    """Row by row at the positions that both have."""
    shared = sorted(a.rows.keys() & b.rows.keys())
    differing, largest = 0, 0.0
    for position in shared:
        if a.rows[position].tobytes() != b.rows[position].tobytes():
            differing += 1
            gap = np.abs(a.rows[position].astype(np.float64) - b.rows[position].astype(np.float64))
            largest = max(largest, float(np.nan_to_num(gap, nan=np.inf).max()))
    return Difference(len(shared), differing, largest, _agree(a.all_ids, b.all_ids))


def _agree(a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether one is a beginning of the other."""
    return all(x == y for x, y in zip(a, b, strict=False))
