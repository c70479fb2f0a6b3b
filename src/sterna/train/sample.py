"""Greedy continuation from a model in training: slow, for a look at its quality; serving has its own engine."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from sterna.train.model import TrainingModel
from sterna.train.shards import PADDED_TO


@torch.no_grad()
def greedy(model: TrainingModel, prompt: list[int], *, max_tokens: int, stop: set[int]) -> list[int]:
    """Likeliest tokens after ``prompt``, the stop token included; the whole sequence is computed again for each token."""
    token_ids = list(prompt)
    for _ in range(max_tokens):
        # Padding at the end reaches nothing before it, and keeps the number of different lengths small.
        padded = F.pad(torch.tensor([token_ids]), (0, -len(token_ids) % PADDED_TO))
        hidden, _ = model.hidden_states(padded, torch.ones(padded.shape))
        token_ids.append(int((model.lm_head.weight @ hidden[0, len(token_ids) - 1]).argmax()))
        if token_ids[-1] in stop:
            break
    return token_ids[len(prompt) :]
