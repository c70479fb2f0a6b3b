"""Sparse mixture of experts for training: tokens sorted by expert, one matrix product per expert, no token dropped.

Shape letters: N tokens, E experts, K experts per token, R = N * K routed rows, D hidden, I expert width.
Source: specification, section 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Routing:
    """Where every token goes.

    Attributes:
        rows: ``[R]`` flat (token, choice) index of each sorted row; its token is ``rows // K``.
        inverse: ``[R]`` position among the sorted rows of each (token, choice).
        counts: rows of each expert, E numbers that add up to R.
        choices: K.
    """

    rows: Tensor
    inverse: Tensor
    counts: list[int]
    choices: int


def plan_routing(experts: Tensor, *, num_experts: int) -> Routing:
    """Sort the choices ``experts [N, K]`` by expert; the order of tokens inside one expert is kept."""
    flat = experts.flatten()
    rows = torch.argsort(flat, stable=True)
    inverse = torch.empty_like(rows)
    inverse[rows] = torch.arange(rows.numel(), device=rows.device)
    counts = torch.bincount(flat, minlength=num_experts).tolist()
    return Routing(rows=rows, inverse=inverse, counts=counts, choices=experts.shape[1])


class _Dispatch(torch.autograd.Function):
    """``[N, D] -> [R, D]``; the gradient gathers instead of scattering, which needs no atomic additions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, routing: Routing) -> Tensor:
        ctx.routing = routing
        return x.index_select(0, routing.rows // routing.choices)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _sum_choices(grad, ctx.routing), None


class _Combine(torch.autograd.Function):
    """``[R, D] -> [N, D]``: the sum over each token's choices; the transpose of `_Dispatch`."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, routing: Routing) -> Tensor:
        ctx.routing = routing
        return _sum_choices(y, routing)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.index_select(0, ctx.routing.rows // ctx.routing.choices), None


def _sum_choices(rows: Tensor, routing: Routing) -> Tensor:
    by_choice = routing.inverse.view(-1, routing.choices)
    total = rows.index_select(0, by_choice[:, 0])
    for choice in range(1, routing.choices):
        total += rows.index_select(0, by_choice[:, choice])
    return total


class _GroupedLinear(torch.autograd.Function):
    """``y[rows of e] = x[rows of e] @ weight[e].T`` for ``x [R, in]``, ``weight [E, out, in]``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, counts: list[int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.counts = counts
        y = x.new_empty(x.shape[0], weight.shape[1])
        for part, out, matrix in zip(x.split(counts), y.split(counts), weight, strict=True):
            torch.mm(part, matrix.mT, out=out)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x, grad_weight = torch.empty_like(x), torch.empty_like(weight)
        groups = zip(x.split(ctx.counts), grad.split(ctx.counts), grad_x.split(ctx.counts), strict=True)
        for expert, (part, grad_part, grad_x_part) in enumerate(groups):
            torch.mm(grad_part, weight[expert], out=grad_x_part)
            torch.mm(grad_part.mT, part, out=grad_weight[expert])
        return grad_x, grad_weight, None


def grouped_linear(x: Tensor, weight: Tensor, counts: list[int]) -> Tensor:
    """Each expert's matrix applied to its own rows: ``x [R, in]``, ``weight [E, out, in]`` -> ``[R, out]``."""
    result: Tensor = _GroupedLinear.apply(x, weight, counts)
    return result


def dispatch(x: Tensor, routing: Routing) -> Tensor:
    """Rows of ``x [N, D]`` in expert order, one per choice: ``[R, D]``."""
    result: Tensor = _Dispatch.apply(x, routing)
    return result


def combine(y: Tensor, routing: Routing) -> Tensor:
    """Sum of each token's expert outputs: ``[R, D] -> [N, D]``; apply the router weights before."""
    result: Tensor = _Combine.apply(y, routing)
    return result


def balance_loss(probabilities: Tensor, experts: Tensor, valid: Tensor) -> Tensor:
    """``E * sum_e f_e * p_e``, 1 * K when perfectly even: ``f_e`` choices per token, ``p_e`` mean router probability.

    Args: ``probabilities [N, E]`` softmax of the router, ``experts [N, K]`` chosen ids, ``valid [N]`` 1.0 or 0.0 (padding).
    """
    num_experts = probabilities.shape[1]
    tokens = valid.sum().clamp(min=1)
    load = torch.zeros(num_experts, dtype=probabilities.dtype, device=probabilities.device)
    load.index_add_(0, experts.flatten(), valid.repeat_interleave(experts.shape[1]))
    mean_probability = valid @ probabilities / tokens
    return num_experts * (load / tokens) @ mean_probability
