"""The training objective of one micro-batch: next token, MTP and router balance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sterna.train.loss import head_loss
from sterna.train.model import TrainingModel
from sterna.train.shards import SPOKEN_WEIGHT, MicroBatch


@dataclass(frozen=True)
class Terms:
    """Sums over one micro-batch; losses are weighted sums of nats and still have their graph.

    Attributes:
        loss: next-token loss.
        mtp: loss of the token after it, 0 when not computed.
        balance: mean balance term, 1 * experts per token when even.
        correct: ``[rows]`` whether the likeliest token was right, in the order of `targets`' positions.
        positions: ``[rows, 2]`` row and column of each predicted token.
        mtp_correct, mtp_positions: likewise for the MTP head.
    """

    loss: Tensor
    mtp: Tensor
    balance: Tensor
    correct: Tensor
    positions: Tensor
    mtp_correct: Tensor
    mtp_positions: Tensor


def objective(model: TrainingModel, batch: MicroBatch, *, with_mtp: bool) -> Terms:
    """Run the model on a micro-batch; only tokens with a weight pass through the head."""
    hidden, balance = model.hidden_states(batch.token_ids, batch.valid)
    positions = _positions(batch.weights > 0, skip=1)
    loss, correct = _head(model, hidden, batch, positions, ahead=1)
    mtp, mtp_correct, mtp_positions = loss.new_zeros(()), correct[:0], positions[:0]
    if with_mtp:
        states, mtp_balance = model.mtp_states(hidden, batch.token_ids, batch.valid)
        mtp_positions = _positions(batch.weights >= SPOKEN_WEIGHT, skip=2)
        mtp, mtp_correct = _head(model, states, batch, mtp_positions, ahead=2)
        layers = model.shape.num_hidden_layers
        balance = (balance * layers + mtp_balance) / (layers + 1)
    return Terms(loss, mtp, balance, correct, positions, mtp_correct, mtp_positions)


def _positions(chosen: Tensor, *, skip: int) -> Tensor:
    """``[rows, 2]`` of the chosen tokens, without the first ``skip`` tokens of a row, which nothing predicts."""
    chosen[:, :skip] = False
    return chosen.nonzero()


def _head(
    model: TrainingModel, states: Tensor, batch: MicroBatch, positions: Tensor, *, ahead: int
) -> tuple[Tensor, Tensor]:
    row, column = positions.unbind(1)
    flat = states.flatten(0, 1).index_select(0, row * states.shape[1] + column - ahead)
    return head_loss(
        hidden=flat,
        head=model.lm_head.weight,
        targets=batch.token_ids[row, column],
        weights=batch.weights[row, column],
    )


def total_weight(batches: list[MicroBatch]) -> float:
    """What the next-token loss of these micro-batches is divided by."""
    return float(sum(torch.sum(batch.weights[:, 1:]) for batch in batches))
