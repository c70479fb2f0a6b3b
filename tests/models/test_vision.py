"""The vision tower of every backend against the golden reference, and what must not go unnoticed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sterna.backends.common import ModelBackend
from sterna.backends.numpy import NumpyBackend
from sterna.checkpoint import Checkpoint
from sterna.models import vision as vision_model
from sterna.models.vision import VisionModel
from sterna.ops import tolerances
from sterna.ops import vision as vision_ops
from sterna.vision import MediaSpan, multimodal_positions
from support.golden import BACKENDS, GOLDEN, Piece, Stream, logits_of, open_backend, reference

IMAGE, VIDEO = (1, 4, 6), (2, 4, 4)


def model_of(name: str) -> VisionModel:
    checkpoint = Checkpoint(GOLDEN)
    backend = BACKENDS[name]()
    backend.load(checkpoint, checkpoint.config)
    assert backend.vision is not None
    return backend.vision


@pytest.fixture(params=BACKENDS, scope="module")
def model(request: pytest.FixtureRequest) -> VisionModel:
    return model_of(request.param)


def difference(got: np.ndarray, name: str) -> float:
    expected = reference()[name]
    assert got.shape == expected.shape
    return float(np.abs(got - expected).max())


def test_features(model: VisionModel) -> None:
    assert difference(model.encode(reference()["px"], IMAGE), "feat_img") <= tolerances.GOLDEN_FEATURES
    assert difference(model.encode(reference()["vx"], VIDEO), "feat_vid") <= tolerances.GOLDEN_FEATURES


def test_features_in_small_pieces(model: VisionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = model.encode(reference()["vx"], VIDEO)
    monkeypatch.setattr(vision_model, "ROWS_AT_ONCE", 5)
    pieces = model.encode(reference()["vx"], VIDEO)
    assert np.abs(whole - pieces).max() <= tolerances.GOLDEN_FEATURES


def test_an_encoding_resumed_step_by_step_has_the_same_bits(model: VisionModel) -> None:
    pixels = reference()["px"]
    running = model.start(lambda start, stop: pixels[start:stop], IMAGE)
    steps = 0
    while not running.advance(1):
        model.encode(reference()["vx"], VIDEO)
        steps += 1
    assert steps == running.num_steps - 1
    assert np.array_equal(running.features(), model.encode(pixels, IMAGE))


def spans() -> list[MediaSpan]:
    ids = reference()["img_ids"][0]
    starts = [i for i, token in enumerate(ids) if token in (500, 501) and ids[i - 1] not in (500, 501)]
    features = (reference()["feat_img"], *np.split(reference()["feat_vid"], 2))
    grids = ((2, 3), (2, 2), (2, 2))
    return [MediaSpan(start, *grid, bytes(32), rows) for start, grid, rows in zip(starts, grids, features, strict=True)]


def test_positions() -> None:
    positions, delta = multimodal_positions(len(reference()["img_ids"][0]), spans())
    assert np.array_equal(positions, reference()["pos"][:, 0])
    assert delta == int(reference()["delta"].item())


def prompt_logits(backend: ModelBackend, positions: np.ndarray) -> np.ndarray:
    """Logits of the image and video prompt with features of this backend's own tower."""
    assert backend.vision is not None
    ids = reference()["img_ids"][0]
    rows = np.concatenate([np.arange(span.start, span.end) for span in spans()])
    features = [backend.vision.encode(reference()[name], grid) for name, grid in (("px", IMAGE), ("vx", VIDEO))]
    return logits_of(backend, Piece(Stream(), ids, positions, (rows, np.concatenate(features))))


@pytest.mark.parametrize("name", BACKENDS)
def test_from_pixels_to_logits_and_the_next_token(name: str) -> None:
    backend = open_backend(BACKENDS[name])
    positions, delta = multimodal_positions(len(reference()["img_ids"][0]), spans())
    logits = prompt_logits(backend, positions)
    assert np.abs(logits - reference()["img_logits"][0]).max() <= tolerances.GOLDEN_LOGITS
    stream = Stream(cached=len(positions[0]), delta=delta)
    following = logits_of(backend, Piece(stream, [77]))
    assert np.abs(following - reference()["next_logits"][0]).max() <= tolerances.GOLDEN_LOGITS


# negative controls ---------------------------------------------------------------------------------------------------


def plain(positions: np.ndarray) -> np.ndarray:
    return np.tile(np.arange(positions.shape[1], dtype=np.int32), (3, 1))


def swapped_axes(positions: np.ndarray) -> np.ndarray:
    return positions[[0, 2, 1]]


def one_axis(positions: np.ndarray) -> np.ndarray:
    return positions[[0, 0, 0]]


@pytest.mark.parametrize("wrong", [plain, swapped_axes, one_axis], ids=lambda wrong: wrong.__name__)
def test_wrong_positions_are_detected(wrong: Callable[[np.ndarray], np.ndarray]) -> None:
    positions, _ = multimodal_positions(len(reference()["img_ids"][0]), spans())
    logits = prompt_logits(open_backend(NumpyBackend), wrong(positions))
    assert np.abs(logits - reference()["img_logits"][0]).max() > 100 * tolerances.GOLDEN_LOGITS


@pytest.mark.parametrize("delta_error", [1, -2])
def test_a_wrong_position_after_the_image_is_detected(delta_error: int) -> None:
    backend = open_backend(NumpyBackend)
    positions, delta = multimodal_positions(len(reference()["img_ids"][0]), spans())
    prompt_logits(backend, positions)
    following = logits_of(backend, Piece(Stream(cached=len(positions[0]), delta=delta + delta_error), [77]))
    assert np.abs(following - reference()["next_logits"][0]).max() > 100 * tolerances.GOLDEN_LOGITS


def erf_gelu_in_the_blocks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(vision_ops, "gelu_tanh", vision_ops.gelu)


def tanh_gelu_in_the_merger(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(vision_ops, "gelu", vision_ops.gelu_tanh)


def attention_over_all_frames(patch: pytest.MonkeyPatch) -> None:
    attention = vision_ops.vision_attention

    def joint(qkv: Any, rope: Any, *, heads: int, frame_patches: int) -> Any:
        frames = len(qkv) // frame_patches
        return attention(qkv, np.tile(rope, (frames, 1)), heads=heads, frame_patches=len(qkv))

    patch.setattr(vision_ops, "vision_attention", joint)


def row_major_order(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(vision_ops, "block_order", lambda rows, columns, merge: np.mgrid[0:rows, 0:columns].reshape(2, -1))


def corners_not_aligned(patch: pytest.MonkeyPatch) -> None:
    def neighbours(count: int, side: int) -> Any:
        at = np.clip((np.arange(count) + 0.5) * side / count - 0.5, 0, side - 1)
        low = np.floor(at).astype(int)
        return low, np.minimum(low + 1, side - 1), at - low

    patch.setattr(vision_ops, "_neighbours", neighbours)


def rotation_of_adjacent_pairs(patch: pytest.MonkeyPatch) -> None:
    def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
        even, odd, result = x[..., 0::2], x[..., 1::2], x.copy()
        cos, sin = cos[:, None].astype(x.dtype), sin[:, None].astype(x.dtype)
        result[..., 0::2], result[..., 1::2] = even * cos - odd * sin, odd * cos + even * sin
        return result

    patch.setattr(vision_ops, "apply_rope", rotate)


@pytest.mark.parametrize(
    "control",
    [
        erf_gelu_in_the_blocks, tanh_gelu_in_the_merger, attention_over_all_frames, row_major_order,
        corners_not_aligned, rotation_of_adjacent_pairs,
    ],
    ids=lambda control: control.__name__,
)  # fmt: skip
def test_a_deviation_of_the_tower_is_detected(
    control: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("numpy")
    control(monkeypatch)
    assert difference(model.encode(reference()["vx"], VIDEO), "feat_vid") > 5 * tolerances.GOLDEN_FEATURES
