"""Rotary position embedding: partial, half-split, three interleaved axes, optionally YaRN (spec §3.2, §4.4, §5)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from sterna.config import RopeParameters, TextConfig

Float32 = npt.NDArray[np.float32]
# Rotations per original context above which YaRN leaves a frequency alone, and below which it divides by the factor.
YARN_BETA_FAST, YARN_BETA_SLOW = 32, 1


def inverse_frequencies(rope: RopeParameters, rotary_dim: int) -> npt.NDArray[np.float64]:
    """float64 [rotary_dim / 2]: ``theta^(-2i / rotary_dim)``, interpolated for YaRN."""
    base = rope.rope_theta ** (-np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim)
    if rope.rope_type == "default":
        return base
    assert rope.factor is not None and rope.original_max_position_embeddings is not None

    def correction(rotations: float) -> float:
        wavelengths = rope.original_max_position_embeddings / (rotations * 2 * math.pi)  # type: ignore[operator]
        return rotary_dim * math.log(wavelengths) / (2 * math.log(rope.rope_theta))

    low = max(math.floor(correction(YARN_BETA_FAST)), 0)
    high = min(math.ceil(correction(YARN_BETA_SLOW)), rotary_dim - 1)
    # The constant only keeps a ramp of no width from dividing by zero.
    ramp = np.clip((np.arange(rotary_dim // 2) - low) / max(high - low, 0.001), 0, 1)
    return base * (1 - ramp) + base / rope.factor * ramp


def attention_factor(rope: RopeParameters) -> float:
    """Multiplies cos and sin: ``0.1 ln(factor) + 1`` for YaRN, else 1."""
    return 1.0 if rope.factor is None else 0.1 * math.log(rope.factor) + 1.0


def frequency_axes(mrope_section: tuple[int, int, int]) -> npt.NDArray[np.int32]:
    """int32 [rotary_dim / 2]: position axis (0 temporal, 1 height, 2 width) of each frequency: T H W T H W …"""
    axes = np.zeros(sum(mrope_section), np.int32)
    for axis in (1, 2):
        axes[axis : 3 * mrope_section[axis] : 3] = axis
    return axes


def rope_cos_sin(positions: npt.NDArray[np.int32], config: TextConfig) -> tuple[Float32, Float32]:
    """cos and sin, float32 [T, rotary_dim / 2] each, for positions int32 [3, T].

    Angles are float32 products, as in the reference; cosine and sine are taken in float64 and rounded once.
    """
    rope = config.rope_parameters
    frequencies = inverse_frequencies(rope, config.rotary_dim).astype(np.float32)
    angles = positions[frequency_axes(rope.mrope_section)].T.astype(np.float32) * frequencies
    factor = attention_factor(rope)
    return (
        (np.cos(angles.astype(np.float64)) * factor).astype(np.float32),
        (np.sin(angles.astype(np.float64)) * factor).astype(np.float32),
    )


def apply_rope(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Rotate the first ``2 * cos.shape[1]`` dimensions of every head, pairing i with i + half; the others pass through.

    x [T, H, head_dim], cos and sin [T, half].
    """
    half = cos.shape[-1]
    cos, sin = cos[:, None].astype(x.dtype), sin[:, None].astype(x.dtype)
    first, second = x[..., :half], x[..., half : 2 * half]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, x[..., 2 * half :]], axis=-1)
