"""An engine over the fake backend that keeps its conversations in a directory, and can be started again on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.test_engine import drain, make_engine, reference
from sterna.engine.engine import Engine
from sterna.sessions.keeper import SessionKeeper
from sterna.sessions.store import SessionStore
from sterna.types import SamplingParams, Usage


class Kept:
    """One process's life with a session directory."""

    def __init__(self, directory: Path, *, store: dict[str, Any] | None = None, **engine: Any) -> None:
        self.said: list[str] = []
        self.engine: Engine = make_engine(**({"num_blocks": 64, "num_state_slots": 24} | engine))
        self.store = SessionStore(directory, say=self.said.append, **({"reserve_bytes": 0} | (store or {})))
        self.keeper = SessionKeeper(
            self.store, self.engine.backend, self.engine.cache, model="fake", say=self.said.append,
            min_tokens=8, segment_tokens=16,
        )  # fmt: skip
        self.engine.keeper = self.keeper

    def ask(self, prompt: list[int], *, namespace: str = "", max_tokens: int = 6, turns: Any = ()) -> list[int]:
        """The answer, which must be right; prompt and answer together are returned."""
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
        request = self.engine.add_request(prompt, params, namespace=namespace, turn_starts=turns)
        outputs, last = drain(self.engine)
        assert outputs[request] == reference(prompt, params)
        self.usage: Usage = last[request].usage
        self.keeper.flush()
        return [*prompt, *outputs[request]]

    def close(self) -> None:
        """The process ends in order."""
        self.keeper.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Kept]]:
    """Starts a process on the one directory of the test."""
    lives: list[Kept] = []

    def begin(**options: Any) -> Kept:
        life = Kept(tmp_path / "sessions", **options)
        lives.append(life)
        return life

    yield begin
    for life in lives:
        life.close()
