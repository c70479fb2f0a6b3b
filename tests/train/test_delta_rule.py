"""Chunked gated delta rule against its definition: outputs and every gradient, at lengths around the chunk borders."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="training needs the extra `train`")

from sterna.train.delta_rule import chunk_gated_delta_rule, recurrent_gated_delta_rule

ATOL = 1e-9


def _inputs(length: int, *, strong_decay: bool) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    batch, key_heads, value_heads, key_dim, value_dim = 2, 2, 4, 8, 12
    q = torch.nn.functional.normalize(normal(batch, length, key_heads, key_dim), dim=-1) * key_dim**-0.5
    k = torch.nn.functional.normalize(normal(batch, length, key_heads, key_dim), dim=-1)
    g = -torch.nn.functional.softplus(normal(batch, length, value_heads)) * (30.0 if strong_decay else 0.05)
    tensors = {
        "q": q,
        "k": k,
        "v": normal(batch, length, value_heads, value_dim),
        "g": g,
        "beta": torch.sigmoid(normal(batch, length, value_heads)),
    }
    return {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}


@pytest.mark.parametrize("strong_decay", [False, True], ids=["slow-decay", "fast-decay"])
@pytest.mark.parametrize(("length", "chunk"), [(1, 64), (63, 64), (64, 64), (65, 64), (130, 32), (200, 64)])
def test_chunked_equals_recurrent(length: int, chunk: int, strong_decay: bool) -> None:
    inputs = _inputs(length, strong_decay=strong_decay)
    expected = recurrent_gated_delta_rule(**inputs)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected_grads = torch.autograd.grad((expected * weights).sum(), list(inputs.values()))
    found = chunk_gated_delta_rule(**inputs, chunk=chunk)
    found_grads = torch.autograd.grad((found * weights).sum(), list(inputs.values()))
    torch.testing.assert_close(found, expected, rtol=0, atol=ATOL)
    for name, found_grad, expected_grad in zip(inputs, found_grads, expected_grads, strict=True):
        torch.testing.assert_close(found_grad, expected_grad, rtol=0, atol=ATOL, msg=lambda m, n=name: f"{n}: {m}")
