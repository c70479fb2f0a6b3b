"""Hand-written gradients against automatic differentiation of the plain formula."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="training needs the extra `train`")

from sterna.train.pointwise import delta_inputs, rms_norm


def _normal(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def test_rms_norm_is_zero_centred_and_has_the_right_gradients() -> None:
    x, weight = _normal(3, 5, 8, seed=0), _normal(8, seed=1)
    expected = x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * (1 + weight)
    torch.testing.assert_close(rms_norm(x, weight), expected, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(rms_norm, (x, weight))
    assert torch.autograd.gradcheck(rms_norm, (x.transpose(0, 1)[..., :8], weight))


@pytest.mark.parametrize("length", [1, 2, 9])
def test_delta_inputs_gradients(length: int) -> None:
    inputs = (
        _normal(2, length, 2 * 2 * 3 + 4 * 5, seed=2),
        _normal(2, length, 4, seed=3),
        _normal(2, length, 4, seed=4),
        _normal(32, 1, 4, seed=5),
        _normal(4, seed=6),
        _normal(4, seed=7),
    )
    assert torch.autograd.gradcheck(lambda *tensors: delta_inputs(*tensors, 2, 3), inputs)
