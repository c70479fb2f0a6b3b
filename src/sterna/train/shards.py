"""Training data: shard directories of tokenised episodes, and the resumable order in which they are read.

A shard is a directory with ``tokens.npy`` uint16 ``[N]``, ``weights.npy`` float16 ``[N]`` (loss weight of predicting this token) and
``offsets.npy`` int64 ``[episodes + 1]``. Directories whose name begins with ``valid`` are held out. Shards are taken in the order of
their names, each as soon as it exists; when all have been used, the least used comes next. Names that begin with a dot are unfinished.

Weights: 1 for what the model writes, small for what it only reads, 0 for what it must not imitate.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sterna.errors import ConfigError, UsageError

FILES = ("tokens.npy", "weights.npy", "offsets.npy")
PADDED_TO = 64
SPOKEN_WEIGHT = 0.5
"""Tokens of at least this weight are the model's own words; measures and the MTP head look at these only."""
CONTEXT_STRIDE = 4
"""In training, one of so many context tokens is predicted, with so many times its weight: same expectation, less work."""
WINDOW_STEPS = 12


@dataclass(frozen=True)
class Shard:
    """One memory-mapped shard."""

    name: str
    tokens: np.ndarray
    weights: np.ndarray
    offsets: np.ndarray

    @classmethod
    def open(cls, path: Path) -> Shard:
        """Map the files of ``path``; `ConfigError` where they contradict each other."""
        tokens, weights, offsets = (np.load(path / name, mmap_mode="r", allow_pickle=False) for name in FILES)
        if tokens.shape != weights.shape or offsets.ndim != 1 or offsets.size < 2 or offsets[-1] != tokens.size:
            raise ConfigError(
                f"{path}: {tokens.size} tokens, {weights.size} weights, offsets end at {offsets[-1:].tolist()}",
                hint="delete this shard and let the data step write it again",
            )
        return cls(path.name, tokens, weights, np.asarray(offsets))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def episode(self, index: int, *, max_length: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and weights of one episode, cut at ``max_length``."""
        start = int(self.offsets[index])
        stop = min(int(self.offsets[index + 1]), start + max_length)
        return np.asarray(self.tokens[start:stop]), np.asarray(self.weights[start:stop])


@dataclass(frozen=True)
class MicroBatch:
    """Rows of similar length: ``token_ids [B, T]`` int64, ``weights [B, T]``, ``valid [B, T]`` float32, T a multiple of 64."""

    token_ids: Tensor
    weights: Tensor
    valid: Tensor

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return int(self.valid.sum())


def find_shards(root: Path, *, held_out: bool) -> list[Path]:
    """Complete shards under ``root`` in the order of their names."""
    if not root.is_dir():
        raise UsageError(
            f"{root} is not a directory", hint="write the data first: `sterna train sternula --steps data`"
        )
    complete = [path for path in sorted(root.iterdir()) if all((path / name).is_file() for name in FILES)]
    visible = [path for path in complete if not path.name.startswith(".")]
    return [path for path in visible if path.name.startswith("valid") == held_out]


def collate(episodes: list[tuple[np.ndarray, np.ndarray]]) -> MicroBatch:
    """Pad episodes at their ends to one length; padding has token 0, weight 0 and is not valid."""
    longest = max(len(tokens) for tokens, _ in episodes)
    length = longest + -longest % PADDED_TO
    token_ids = torch.zeros(len(episodes), length, dtype=torch.int64)
    weights, valid = torch.zeros(len(episodes), length), torch.zeros(len(episodes), length)
    for row, (tokens, weight) in enumerate(episodes):
        token_ids[row, : len(tokens)] = torch.from_numpy(tokens.astype(np.int64))
        weights[row, : len(tokens)] = torch.from_numpy(weight.astype(np.float32))
        valid[row, : len(tokens)] = 1.0
    return MicroBatch(token_ids, weights, valid)


def thin_context(batch: MicroBatch, *, offset: int) -> MicroBatch:
    """Keep every `CONTEXT_STRIDE`-th context token's weight, scaled up; which ones changes with ``offset``."""
    columns = torch.arange(batch.weights.shape[1])
    kept = (columns + offset) % CONTEXT_STRIDE == 0
    thinned = torch.where(kept, batch.weights * CONTEXT_STRIDE, 0.0)
    return replace(batch, weights=torch.where(batch.weights >= SPOKEN_WEIGHT, batch.weights, thinned))


def plan_microbatches(lengths: np.ndarray, *, micro_tokens: int) -> list[list[int]]:
    """Group indices of similar length so that rows * padded length stays within ``micro_tokens`` (one row may exceed it)."""
    batches: list[list[int]] = []
    current: list[int] = []
    for index in np.argsort(-lengths, kind="stable").tolist():
        padded = int(lengths[current[0] if current else index])
        padded += -padded % PADDED_TO
        if current and (len(current) + 1) * padded > micro_tokens:
            batches.append(current)
            current = []
        current.append(index)
    return [*batches, current] if current else batches


@dataclass
class ShardStream:
    """Endless steps over all training shards; a pure function of the seed, the shards found and `state`."""

    root: Path
    seed: int
    tokens_per_step: int
    micro_tokens: int
    max_length: int
    uses: dict[str, int] = field(default_factory=dict)
    current: str = ""
    next_step: int = 0

    def state(self) -> dict[str, Any]:
        """Where to continue, as plain values."""
        return {"uses": dict(self.uses), "current": self.current, "next_step": self.next_step}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        self.uses, self.current, self.next_step = dict(state["uses"]), state["current"], state["next_step"]

    def plan(self, shard: Shard, use: int) -> list[list[list[int]]]:
        """Steps of one pass over a shard, each a list of micro-batches of episode indices."""
        generator = np.random.default_rng([self.seed, zlib.crc32(shard.name.encode()), use])
        lengths = np.minimum(np.diff(shard.offsets), self.max_length)
        order = generator.permutation(len(shard))
        order = order[lengths[order] > 1]
        window = np.cumsum(lengths[order]) // (self.tokens_per_step * WINDOW_STEPS)
        steps: list[list[list[int]]] = [[]]
        filled = 0
        for number in np.unique(window):
            members = order[window == number]
            batches = plan_microbatches(lengths[members], micro_tokens=self.micro_tokens)
            for which in generator.permutation(len(batches)).tolist():
                episodes = members[batches[which]].tolist()
                if filled >= self.tokens_per_step:
                    steps.append([])
                    filled = 0
                steps[-1].append(episodes)
                filled += int(lengths[episodes].sum())
        return steps

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        while True:
            if not self.current:
                self.current = self._choose()
                self.next_step = 0
            shard = Shard.open(self.root / self.current)
            steps = self.plan(shard, self.uses.get(self.current, 0))
            while self.next_step < len(steps):
                step = steps[self.next_step]
                # Advanced before the step is handed out: a checkpoint taken after training on it must not repeat it.
                self.next_step += 1
                read = [[shard.episode(i, max_length=self.max_length) for i in episodes] for episodes in step]
                yield [thin_context(collate(episodes), offset=self.next_step) for episodes in read]
            self.uses[self.current] = self.uses.get(self.current, 0) + 1
            self.current = ""

    def _choose(self) -> str:
        names = [path.name for path in find_shards(self.root, held_out=False)]
        if not names:
            raise UsageError(f"{self.root} holds no training shard", hint=f"a shard is a directory with {list(FILES)}")
        return min(names, key=lambda name: (self.uses.get(name, 0), name))
