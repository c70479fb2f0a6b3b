"""Weighted cross-entropy fused with the output head: the logits of all tokens never exist at the same time."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

ROWS_AT_ONCE = 512


class _HeadLoss(torch.autograd.Function):
    """Gradients are formed in the forward pass, while a slice of logits is still in the cache."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        wanted = ctx.needs_input_grad[0]
        grad_hidden, grad_head = (torch.zeros_like(hidden), torch.zeros_like(head)) if wanted else (hidden, head)
        total, correct = hidden.new_zeros(()), torch.empty_like(targets, dtype=torch.bool)
        for start in range(0, hidden.shape[0], ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            part, target, weight = hidden[rows], targets[rows, None], weights[rows]
            logits = part @ head.mT
            correct[rows] = logits.argmax(dim=1) == targets[rows]
            at_target = logits.gather(1, target).squeeze(1)
            log_norm = logits.logsumexp(dim=1)
            total += weight @ (log_norm - at_target)
            if not wanted:
                continue
            grad = logits.sub_(log_norm[:, None]).exp_()
            grad.scatter_add_(1, target, grad.new_full(target.shape, -1.0))
            grad *= weight[:, None]
            torch.mm(grad, head, out=grad_hidden[rows])
            grad_head.addmm_(grad.mT, part)
        ctx.save_for_backward(grad_hidden, grad_head)
        ctx.mark_non_differentiable(correct)
        return total, correct

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _: Any) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_head = ctx.saved_tensors
        return grad_hidden * grad_total, grad_head * grad_total, None, None


class HeadLoss(NamedTuple):
    """Sum of ``weight * cross-entropy`` (nats) and, per row, whether the likeliest token was the target."""

    total: Tensor
    correct: Tensor


def head_loss(*, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> HeadLoss:
    """Loss of ``hidden [M, D]`` through ``head [V, D]`` against ``targets [M]`` int64 with ``weights [M]`` float32."""
    return HeadLoss(*_HeadLoss.apply(hidden, head, targets, weights))
