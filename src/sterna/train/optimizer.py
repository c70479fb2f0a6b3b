"""Muon for the hidden matrices, AdamW for embedding, head, norms and small vectors.

Muon orthogonalises the momentum of a matrix by a Newton-Schulz iteration. All matrices, experts included, are cut into blocks whose
small side is at most `BLOCK`, so that the iteration is one batched product over equally shaped blocks.
"""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any

import torch
from torch import Tensor, nn

BLOCK = 128
PIECE = 32
# Quintic coefficients that drive singular values quickly into a band around 1 (Jordan et al., 2024, "Muon").
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
# Gives an orthogonalised update the root mean square of a typical AdamW update, so that both share one learning rate.
UPDATE_RMS = 0.2


def orthogonalise(blocks: Tensor) -> Tensor:
    """Nearest semi-orthogonal matrices, approximately: ``[M, r, c]`` with r <= c; singular values end in about 0.7 .. 1.2."""
    a, b, c = NEWTON_SCHULZ
    x = blocks / (blocks.flatten(1).norm(dim=1)[:, None, None] + 1e-12)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x


def orthogonalise_parallel(blocks: Tensor, pool: Executor) -> Tensor:
    """`orthogonalise`, in pieces that a thread each of ``pool`` computes; the result does not depend on their number."""
    return torch.cat(list(pool.map(orthogonalise, blocks.split(PIECE))))


def is_hidden_matrix(name: str, tensor: Tensor) -> bool:
    """Whether Muon takes this parameter: matrices inside layers that are not mere gates, routers or convolutions."""
    outside = ("embed_tokens.weight", "lm_head.weight", "conv1d.weight")
    return tensor.dim() >= 2 and not name.endswith(outside) and min(tensor.shape[-2:]) > 16


def _block_rows(parameter: Tensor) -> int:
    rows, cols = parameter.shape[-2:]
    return BLOCK if rows >= cols >= BLOCK and rows % BLOCK == 0 else rows


def to_blocks(tensor: Tensor) -> Tensor:
    """``[..., rows, cols] -> [M, r, c]`` with r <= c: tall matrices are cut into blocks of rows, or turned."""
    blocks = tensor.reshape(-1, _block_rows(tensor), tensor.shape[-1])
    return blocks if blocks.shape[1] <= blocks.shape[2] else blocks.mT


def from_blocks(blocks: Tensor, like: Tensor) -> Tensor:
    """The inverse of `to_blocks` for a tensor shaped as ``like``."""
    turned = _block_rows(like) > like.shape[-1]
    return (blocks.mT if turned else blocks).reshape(like.shape)


class _MuonGroup:
    """Parameters that always receive gradients together, and their momentum as one stack of blocks per block shape."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.by_shape: dict[tuple[int, int], list[nn.Parameter]] = {}
        for parameter in parameters:
            rows, cols = to_blocks(parameter).shape[1:]
            self.by_shape.setdefault((rows, cols), []).append(parameter)
        self.momentum = {
            shape: torch.zeros(sum(p.numel() for p in members) // (shape[0] * shape[1]), *shape)
            for shape, members in self.by_shape.items()
        }

    def step(self, pool: Executor, *, lr: float, momentum: float, weight_decay: float) -> None:
        for shape, members in self.by_shape.items():
            gradients = [p.grad for p in members if p.grad is not None]
            if not gradients:
                continue
            gradient = torch.cat([to_blocks(g) for g in gradients])
            buffer = self.momentum[shape]
            buffer.lerp_(gradient, 1 - momentum)
            update = orthogonalise_parallel(gradient.lerp_(buffer, momentum), pool)
            update *= -lr * UPDATE_RMS * max(shape) ** 0.5
            sizes = [p.numel() // (shape[0] * shape[1]) for p in members]
            for parameter, part in zip(members, update.split(sizes), strict=True):
                parameter.mul_(1 - lr * weight_decay).add_(from_blocks(part, parameter))


class Optimizer:
    """One step for every parameter that has a gradient; the others (the MTP head, on most steps) stay untouched."""

    def __init__(
        self, model: nn.Module, *, pool: Executor, muon: bool = True, momentum: float = 0.95, weight_decay: float = 0.05
    ) -> None:
        named = sorted(model.named_parameters())
        matrices = [(n, p) for n, p in named if muon and is_hidden_matrix(n, p)]
        taken = {id(p) for _, p in matrices}
        self.pool, self.momentum, self.weight_decay = pool, momentum, weight_decay
        self.groups = {
            prefix: _MuonGroup([p for n, p in matrices if n.startswith("mtp.") == (prefix == "mtp")])
            for prefix in ("trunk", "mtp")
        }
        rest = [p for _, p in named if id(p) not in taken]
        decayed, plain = [p for p in rest if p.dim() >= 2], [p for p in rest if p.dim() < 2]
        self.adamw = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}],
            betas=(0.9, 0.95), eps=1e-10, fused=True,
        )  # fmt: skip

    @torch.no_grad()
    def step(self, *, lr: float) -> None:
        """Apply the gradients with learning rate ``lr`` and drop them."""
        for group in self.groups.values():
            group.step(self.pool, lr=lr, momentum=self.momentum, weight_decay=self.weight_decay)
        for options in self.adamw.param_groups:
            options["lr"] = lr
        self.adamw.step()

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only, for a checkpoint."""
        momentum = {
            f"{name}.{rows}x{cols}": stack
            for name, group in self.groups.items()
            for (rows, cols), stack in group.momentum.items()
        }
        return {"adamw": self.adamw.state_dict(), "momentum": momentum}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned for a model of the same shape."""
        self.adamw.load_state_dict(state["adamw"])
        for name, group in self.groups.items():
            for (rows, cols), stack in group.momentum.items():
                stack.copy_(state["momentum"][f"{name}.{rows}x{cols}"])
