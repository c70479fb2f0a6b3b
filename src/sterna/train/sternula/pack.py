"""Shards of tokenised episodes, the format that training reads.

A shard is a folder ``shard-00000`` with three arrays: ``tokens.npy`` uint16 [N], ``weights.npy`` float16 [N] (the loss
weight of predicting this very token) and ``offsets.npy`` int64 [episodes + 1]. It appears under its name only when it
is complete, so that training may start on the first while later ones are written. ``shard-00000`` holds the easiest
episodes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from sterna.train.sternula.episodes import Episode

CONTEXT_WEIGHT = 0.1
"""Loss weight of what the model reads but never writes: it teaches what code and test output look like."""


def encode_episode(
    tokenizer: Tokenizer, episode: Episode, *, context_weight: float = CONTEXT_WEIGHT
) -> tuple[NDArray[np.uint16], NDArray[np.float16]]:
    """Tokens and weights of one episode: 1 for what is learnt, 0 for tries that fail, ``context_weight`` elsewhere."""
    encoded = tokenizer.encode(episode.text, add_special_tokens=False)
    starts = np.array([start for start, _ in encoded.offsets], dtype=np.int64)
    weights = np.full(len(starts), context_weight, dtype=np.float16)
    for spans, weight in ((episode.spoken, 1.0), (episode.silent, 0.0)):
        for first, last in spans:
            weights[np.searchsorted(starts, first) : np.searchsorted(starts, last)] = weight
    weights[0] = 0.0
    return np.array(encoded.ids, dtype=np.uint16), weights


def write_shard(folder: Path, name: str, episodes: Sequence[tuple[NDArray[np.uint16], NDArray[np.float16]]]) -> int:
    """Write one shard; returns its number of tokens. An unfinished shard of the same name is replaced."""
    temporary = folder / f".{name}.partial"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    offsets = np.zeros(len(episodes) + 1, dtype=np.int64)
    np.cumsum([len(tokens) for tokens, _ in episodes], out=offsets[1:])
    np.save(temporary / "tokens.npy", np.concatenate([tokens for tokens, _ in episodes]))
    np.save(temporary / "weights.npy", np.concatenate([weights for _, weights in episodes]))
    np.save(temporary / "offsets.npy", offsets)
    os.replace(temporary, folder / name)
    return int(offsets[-1])
