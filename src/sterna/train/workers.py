"""Gradients of one step on several cores: each thread computes whole micro-batches with single-threaded operators.

Splitting every small operator over the cores would synchronise them thousands of times per step, and one busy core would stall the
other each time. Here they meet once per step. The result does not depend on which thread is faster: the assignment of micro-batches
and the order in which gradients are added are fixed.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import nn

from sterna.train.model import TrainingModel
from sterna.train.objective import objective, total_weight
from sterna.train.shards import SPOKEN_WEIGHT, MicroBatch


@dataclass
class StepSums:
    """What one step is reported with: mean losses in nats, counts of the model's own words and of all tokens."""

    loss: float = 0.0
    mtp: float = 0.0
    balance: float = 0.0
    right: int = 0
    seen: int = 0
    tokens: int = 0

    def add(self, other: StepSums) -> None:
        """Add the share of other micro-batches."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass(frozen=True, kw_only=True)
class _Share:
    """How much of the step's loss one micro-batch contributes."""

    with_mtp: bool
    mtp_weight: float
    balance_weight: float
    weight: float
    tokens: int


def assign(sizes: list[int], *, workers: int) -> list[list[int]]:
    """Indices of micro-batches per worker, largest first to the least loaded worker."""
    loads, assigned = [0] * workers, [[] for _ in range(workers)]  # type: tuple[list[int], list[list[int]]]
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        worker = loads.index(min(loads))
        loads[worker] += sizes[index]
        assigned[worker].append(index)
    return assigned


class Workers:
    """Replicas of a model that share its parameters' memory but have gradients of their own."""

    def __init__(self, model: TrainingModel, *, threads: int) -> None:
        self.threads = threads
        self.replicas = [model]
        for _ in range(threads - 1):
            with torch.device("meta"):
                replica = TrainingModel(model.shape)
            _share_parameters(replica, model)
            self.replicas.append(replica)
        self.pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))

    def gradients(
        self, batches: list[MicroBatch], *, with_mtp: bool, mtp_weight: float, balance_weight: float
    ) -> StepSums:
        """Set the model's gradients to those of the mean loss over ``batches``."""
        share = _Share(
            with_mtp=with_mtp,
            mtp_weight=mtp_weight,
            balance_weight=balance_weight,
            weight=max(total_weight(batches), 1e-6),
            tokens=sum(batch.tokens for batch in batches),
        )
        assigned = assign([_cost(batch) for batch in batches], workers=self.threads)
        futures = [
            self.pool.submit(_accumulate, replica, [batches[i] for i in indices], share)
            for replica, indices in zip(self.replicas, assigned, strict=True)
        ]
        sums = StepSums()
        for future in futures:
            sums.add(future.result())
        self._reduce()
        return sums

    def _reduce(self) -> None:
        for replica in self.replicas[1:]:
            pairs = zip(self.replicas[0].parameters(), replica.parameters(), strict=True)
            for target, source in pairs:
                if source.grad is None:
                    continue
                if target.grad is None:
                    target.grad = source.grad
                else:
                    target.grad += source.grad
                source.grad = None


def _cost(batch: MicroBatch) -> int:
    """Work of a micro-batch in token units; attention grows with the length, and equals the rest at roughly 6,000."""
    rows, length = batch.token_ids.shape
    return int(rows * length * (1 + length / 6_000))


def _share_parameters(replica: nn.Module, model: nn.Module) -> None:
    originals = dict(model.named_modules())
    for path, module in replica.named_modules():
        for name in list(module._parameters):
            shared = getattr(originals[path], name)
            module._parameters[name] = nn.Parameter(shared.detach())


def _accumulate(model: TrainingModel, batches: list[MicroBatch], share: _Share) -> StepSums:
    """Forward and backward of some micro-batches, one after the other."""
    sums = StepSums()
    model.zero_grad(set_to_none=True)
    for batch in batches:
        terms = objective(model, batch, with_mtp=share.with_mtp)
        part = batch.tokens / share.tokens
        loss = (terms.loss + share.mtp_weight * terms.mtp) / share.weight
        (loss + share.balance_weight * part * terms.balance).backward()
        spoken = batch.weights[tuple(terms.positions.unbind(1))] >= SPOKEN_WEIGHT
        sums.add(
            StepSums(
                loss=float(terms.loss.detach()) / share.weight,
                mtp=float(terms.mtp.detach()) / share.weight,
                balance=part * float(terms.balance.detach()),
                right=int((terms.correct & spoken).sum()),
                seen=int(spoken.sum()),
                tokens=batch.tokens,
            )
        )
    return sums
