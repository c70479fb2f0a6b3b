"""Held-out measures: loss, accuracy by kind of token, MTP acceptance and the edit exact-match rate."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sterna.errors import ConfigError
from sterna.train.model import TrainingModel
from sterna.train.objective import objective
from sterna.train.shards import SPOKEN_WEIGHT, MicroBatch, Shard, collate, find_shards, plan_microbatches

MARKERS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
KINDS = ("text", "reasoning", "call")


@dataclass(frozen=True)
class Vocabulary:
    """What the measures need of a tokenizer: ids of the markers, and the tokens that spell the edit command.

    Attributes:
        markers: id of each of `MARKERS`.
        text: text of every base token, byte-level (``Ġ`` for a space).
    """

    markers: dict[str, int]
    text: dict[int, str]

    @classmethod
    def load(cls, tokenizer_json: Path) -> Vocabulary:
        """Read a ``tokenizer.json``; `ConfigError` if a marker is missing."""
        try:
            data = json.loads(tokenizer_json.read_text(encoding="utf-8"))
            added = {token["content"]: int(token["id"]) for token in data["added_tokens"]}
            text = {int(number): token for token, number in data["model"]["vocab"].items()}
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"cannot read the vocabulary of {tokenizer_json}: {error}") from error
        if missing := [name for name in MARKERS if name not in added]:
            raise ConfigError(f"{tokenizer_json} lacks the tokens {missing}")
        return cls({name: added[name] for name in MARKERS}, text)

    def kinds(self, tokens: np.ndarray) -> np.ndarray:
        """Index into `KINDS` of every token; a closing marker belongs to what it closes."""
        result = np.zeros(len(tokens), dtype=np.int64)
        for kind, (opening, closing) in ((1, MARKERS[:2]), (2, MARKERS[2:])):
            opened = np.cumsum(tokens == self.markers[opening])
            closed = np.cumsum(tokens == self.markers[closing])
            before = np.concatenate(([0], closed[:-1]))
            result[opened > before] = kind
        return result

    def first_edit(self, tokens: np.ndarray, weights: np.ndarray) -> slice | None:
        """The first trained call of the edit command ``str_replace``, from its opening to its closing marker."""
        openings = np.flatnonzero((tokens == self.markers["<tool_call>"]) & (weights >= SPOKEN_WEIGHT))
        for start in openings.tolist():
            length = np.flatnonzero(tokens[start:] == self.markers["</tool_call>"])
            if not length.size:
                return None
            span = slice(start, start + int(length[0]) + 1)
            text = "".join(self.text.get(int(token), "") for token in tokens[span])
            if "old_str" in text and (weights[span] >= SPOKEN_WEIGHT).all():
                return span
        return None


class _Tally:
    """Counts of right predictions over a whole evaluation."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.right: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()

    def add(self, name: str, right: int, seen: int) -> None:
        self.right[name] += right
        self.seen[name] += seen

    def add_batch(self, batch: MicroBatch, correct: np.ndarray) -> None:
        """``correct [B, T]``: whether each weighted token was predicted; elsewhere false."""
        for row in range(len(correct)):
            length = int(batch.valid[row].sum())
            tokens, weights = batch.token_ids[row, :length].numpy(), batch.weights[row, :length].numpy()
            counted = weights >= SPOKEN_WEIGHT
            counted[0] = False
            context = (weights > 0) & ~counted
            self.add("context", int(correct[row, :length][context].sum()), int(context.sum()))
            self.add("token", int(correct[row, :length][counted].sum()), int(counted.sum()))
            kinds = self.vocabulary.kinds(tokens)
            for number, kind in enumerate(KINDS):
                chosen = counted & (kinds == number)
                self.add(kind, int(correct[row, :length][chosen].sum()), int(chosen.sum()))
            if (edit := self.vocabulary.first_edit(tokens, weights)) is not None:
                self.add("edit_exact", int(correct[row, edit].all()), 1)
                self.add("edit_token", int(correct[row, edit].sum()), edit.stop - edit.start)

    def rates(self) -> dict[str, float]:
        return {name: round(self.right[name] / count, 5) for name, count in self.seen.items() if count}


def held_out_batches(root: Path, *, episodes: int, micro_tokens: int, max_length: int) -> list[MicroBatch]:
    """The first ``episodes`` of the held-out shards, in micro-batches; empty when there is no held-out shard."""
    chosen: list[tuple[np.ndarray, np.ndarray]] = []
    for path in find_shards(root, held_out=True):
        shard = Shard.open(path)
        wanted = min(len(shard), episodes - len(chosen))
        chosen += [shard.episode(index, max_length=max_length) for index in range(wanted)]
    lengths = np.array([len(tokens) for tokens, _ in chosen], dtype=np.int64)
    return [collate([chosen[i] for i in group]) for group in plan_microbatches(lengths, micro_tokens=micro_tokens)]


@torch.no_grad()
def evaluate(model: TrainingModel, batches: list[MicroBatch], vocabulary: Vocabulary) -> dict[str, float]:
    """Teacher-forced measures over ``batches``.

    Returns:
        ``loss`` (nats per weighted token) and rates in 0 .. 1: ``token`` (the model's own words), ``context`` (what it
        reads), one per kind of `KINDS`,
        ``edit_token`` and ``edit_exact`` (first edit call of an episode: its tokens, and all of them at once), ``mtp``.
    """
    tally, loss, weight = _Tally(vocabulary), 0.0, 0.0
    for batch in batches:
        terms = objective(model, batch, with_mtp=True)
        loss += float(terms.loss)
        weight += float(batch.weights[:, 1:].sum())
        correct = np.zeros(tuple(batch.token_ids.shape), dtype=bool)
        rows, columns = terms.positions.numpy().T
        correct[rows, columns] = terms.correct.numpy()
        tally.add_batch(batch, correct)
        tally.add("mtp", int(terms.mtp_correct.sum()), len(terms.mtp_correct))
    return {"loss": round(loss / weight, 5)} | tally.rates() if weight else {}
