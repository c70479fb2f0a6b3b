"""Images and videos from the parts of a request to tokens: once per content, shared by content, exact in pieces."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sterna.backends.numpy import NumpyBackend
from sterna.chat.messages import ChatRequest, End, Message
from sterna.checkpoint import Checkpoint
from sterna.config import EngineConfig
from sterna.engine.engine import Engine
from sterna.engine.features import Features, FeatureStore
from sterna.engine.media import media_kind
from sterna.errors import ContextOverflowError, UsageError
from sterna.llm import LLM
from sterna.types import SamplingParams
from sterna.vision import MediaSpan, VisionLimits
from sterna.vision.media import MediaShape
from support.golden import GOLDEN, reference
from support.pictures import png
from support.tiny_checkpoint import write_tiny_checkpoint

GREEDY = SamplingParams(temperature=0.0, max_tokens=6)
CLIP = Path(__file__).parents[1] / "data" / "vision" / "short.mp4"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("seeing"), vision=True)


def load(checkpoint: Path, **options: Any) -> LLM:
    config = EngineConfig(max_model_len=2048, prefill_chunk_tokens=options.pop("chunk", 512))
    return LLM.load(checkpoint, backend="native", engine_config=config, **options)


@pytest.fixture
def llm(checkpoint: Path) -> Iterator[LLM]:
    with load(checkpoint) as loaded:
        yield loaded


def image(data: bytes) -> dict[str, Any]:
    return {"type": "image", "data": data}


def url(data: bytes, kind: str = "image/png") -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{base64.b64encode(data).decode()}"}}


def ask(llm: LLM, *parts: Any, **options: Any) -> End:
    content = [part if isinstance(part, dict) else {"type": "text", "text": part} for part in parts]
    return end_of(llm, ChatRequest((Message("user", content),), sampling=GREEDY), **options)


def end_of(llm: LLM, request: ChatRequest, **options: Any) -> End:
    last = list(llm.chat(request, **options))[-1]
    assert isinstance(last, End)
    return last


def said(llm: LLM, *parts: Any, namespace: str = "") -> list[tuple[int, float | None]]:
    """The sampled tokens with their log-probabilities, which differ where a single bit of the logits does."""
    content = [part if isinstance(part, dict) else {"type": "text", "text": part} for part in parts]
    request = ChatRequest((Message("user", content),), sampling=replace(GREEDY, logprobs=0))
    prepared = llm.prepare(request, namespace=namespace)
    stream = llm.generate(
        prepared.prompt.token_ids, request.sampling, namespace=namespace, turn_starts=prepared.prompt.turn_starts,
        media=prepared.media,
    )  # fmt: skip
    return [(event.token_id, event.logprob) for event in stream]


def encoded(llm: LLM) -> int:
    assert llm.media is not None
    return llm.media.num_encoded


def test_the_prompt_has_a_token_per_feature_row(llm: LLM) -> None:
    with_image = ask(llm, image(png(128, 64)), "what is it").usage.prompt_tokens
    assert with_image - ask(llm, "what is it").usage.prompt_tokens == 2 * 4 + 2


def test_one_content_is_encoded_once_and_shared_whatever_carries_it(llm: LLM) -> None:
    data = png(96, 96)
    first = ask(llm, image(data), "hello")
    second = ask(llm, url(data), "hello")
    assert encoded(llm) == 1
    # up to the start of the answer, which is behind the image
    assert second.usage.cached_tokens >= 20 > first.usage.cached_tokens
    assert second.message.token_ids == first.message.token_ids


def test_images_of_one_size_are_not_confused(llm: LLM) -> None:
    one, other = png(96, 96, 1), png(96, 96, 2)
    fresh = said(llm, image(other), "hello", namespace="elsewhere")
    ask(llm, image(one), "hello")
    after = ask(llm, image(other), "hello")
    assert encoded(llm) == 2
    assert after.usage.cached_tokens < 12
    assert "an image" in (after.usage.cache_miss_reason or "")
    assert said(llm, image(other), "hello") == fresh != said(llm, image(one), "hello")


def test_two_images_in_order(llm: LLM) -> None:
    one, other = image(png(96, 96, 1)), image(png(128, 64, 2))
    answers = [said(llm, *parts) for parts in ((one, other, "x"), (other, one, "x"), (one, one, "x"))]
    assert encoded(llm) == 2
    assert answers[0] != answers[1] != answers[2] != answers[0]


@pytest.mark.parametrize("chunk", [5, 64])
def test_prompts_cut_inside_an_image_have_the_same_bits(llm: LLM, checkpoint: Path, chunk: int) -> None:
    parts = ("before", image(png(200, 120)), "between", image(png(96, 160, 3)), "after")
    with load(checkpoint, chunk=chunk) as other:
        assert said(other, *parts) == said(llm, *parts)
    # and once more, from the cache
    assert said(llm, *parts) == said(llm, *parts, namespace="elsewhere")


def test_images_inside_tool_results(llm: LLM) -> None:
    messages = (
        Message("user", "look"),
        Message("assistant", "yes"),
        Message("tool", [{"type": "text", "text": "a screenshot:"}, url(png(64, 64))]),
    )
    plain = replace(messages[2], content="a screenshot:")
    with_image = end_of(llm, ChatRequest(messages, sampling=GREEDY)).usage.prompt_tokens
    without = end_of(llm, ChatRequest((*messages[:2], plain), sampling=GREEDY)).usage.prompt_tokens
    assert with_image == without + 4 + 2


def test_text_that_looks_like_a_placeholder_is_text(llm: LLM) -> None:
    end = ask(llm, "<|vision_start|><|image_pad|><|vision_end|>", image(png(64, 64)))
    assert encoded(llm) == 1 and end.usage.prompt_tokens > 0


def test_video(llm: LLM) -> None:
    pytest.importorskip("av", reason="video needs PyAV, the extra `video`")
    part = {"type": "video", "data": CLIP.read_bytes()}
    first = ask(llm, part, "what moves")
    again = ask(llm, part, "what moves")
    assert encoded(llm) == 1
    assert again.message.token_ids == first.message.token_ids
    assert again.usage.cached_tokens >= again.usage.prompt_tokens - 8


def test_features_outlive_a_restart(checkpoint: Path, tmp_path: Path) -> None:
    with load(checkpoint, features=tmp_path) as first:
        text = ask(first, image(png(96, 96)), "hello").message.token_ids
        assert encoded(first) == 1
    with load(checkpoint, features=tmp_path) as second:
        assert ask(second, image(png(96, 96)), "hello").message.token_ids == text
        assert encoded(second) == 0
    (file,) = tmp_path.rglob("*.npz")
    file.write_bytes(file.read_bytes()[:-200])
    with load(checkpoint, features=tmp_path) as third:
        assert ask(third, image(png(96, 96)), "hello").message.token_ids == text
        assert encoded(third) == 1


def test_other_weights_do_not_find_stored_features(checkpoint: Path, tmp_path: Path) -> None:
    other = write_tiny_checkpoint(tmp_path / "other", seed=1, vision=True)
    for directory in (checkpoint, other):
        with load(directory, features=tmp_path / "features") as llm:
            ask(llm, image(png(96, 96)), "hello")
            assert encoded(llm) == 1


def test_a_model_without_vision_says_so(tmp_path: Path) -> None:
    blind = write_tiny_checkpoint(tmp_path / "blind")
    with load(blind) as llm:
        with pytest.raises(UsageError, match="blind has no vision weights and cannot see the image"):
            ask(llm, image(png(64, 64)))
        with pytest.raises(UsageError, match="cannot see the video"):
            ask(llm, {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}})


def test_limits_are_named(checkpoint: Path) -> None:
    with load(checkpoint, vision_limits=VisionLimits(max_media=2, max_image_pixels=10_000)) as llm:
        with pytest.raises(UsageError, match="3 images and videos, allowed are 2 .max_media"):
            ask(llm, *[image(png(64, 64, i)) for i in range(3)])
        with pytest.raises(UsageError, match="max_image_pixels"):
            ask(llm, image(png(101, 100)))


def test_a_prompt_that_is_too_long_is_not_encoded(checkpoint: Path) -> None:
    config = EngineConfig(max_model_len=64)
    with LLM.load(checkpoint, backend="native", engine_config=config) as llm:
        with pytest.raises(ContextOverflowError):
            ask(llm, image(png(256, 256)), "x")
        assert encoded(llm) == 0


def test_other_streams_go_on_during_an_encoding(llm: LLM) -> None:
    """Between two steps of the tower the engine's lock is free."""
    assert llm.media is not None
    reached, go_on = threading.Event(), threading.Event()
    start = llm.media.vision.start

    class Watched:
        def __init__(self, running: Any) -> None:
            self.running, self.steps = running, 0

        def advance(self, steps: int) -> bool:
            self.steps += 1
            return bool(self.running.advance(steps))

        def features(self) -> Any:
            return self.running.features()

    def pixel_values(values: Any) -> Any:
        def rows(first: int, last: int) -> Any:
            reached.set()
            return values(first, last)

        return rows

    running: list[Watched] = []

    def watched(values: Any, grid: Any) -> Watched:
        running.append(Watched(start(pixel_values(values), grid)))
        return running[0]

    llm.media.vision.start = watched  # type: ignore[method-assign]
    thread = threading.Thread(target=lambda: (ask(llm, image(png(256, 256)), "x"), go_on.set()))
    with llm._lock:
        thread.start()
    assert reached.wait(30)
    assert ask(llm, "hello").usage.completion_tokens > 0
    thread.join()
    assert go_on.is_set() and running[0].steps == 2 * 2 + 2


def test_kinds_of_parts() -> None:
    assert media_kind({"type": "input_image", "image_url": "x"}) == "image"
    assert media_kind({"type": "video_url", "video_url": {}}) == "video"
    assert media_kind({"video": "x"}) == "video"


# the engine on the golden checkpoint ---------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [4, 512])
def test_engine_positions_and_features_follow_the_reference(chunk: int) -> None:
    checkpoint = Checkpoint(GOLDEN)
    backend = NumpyBackend()
    backend.load(checkpoint, checkpoint.config)
    engine = Engine(backend, EngineConfig(max_model_len=256, block_size=16, prefill_chunk_tokens=chunk))
    ids = reference()["img_ids"][0].tolist()
    starts = [i for i, token in enumerate(ids) if token in (500, 501) and ids[i - 1] not in (500, 501)]
    parts = (reference()["feat_img"], *np.split(reference()["feat_vid"], 2))
    grids = ((2, 3), (2, 2), (2, 2))
    spans = [MediaSpan(s, *g, bytes([i]) * 32, f) for i, (s, g, f) in enumerate(zip(starts, grids, parts, strict=True))]
    captured = []
    forward = backend.model.head

    def head(x: Any, norm: Any, batch: Any) -> Any:
        logits = forward(x, norm, batch)
        if len(batch.logits_indices):
            captured.append(logits.to_numpy()[-1])
        return logits

    backend.model.head = head  # type: ignore[method-assign]
    # The next token is forced to be the reference's.
    engine.add_request(ids, SamplingParams(temperature=0.0, max_tokens=2, logit_bias={77: 1000.0}), spans=spans)
    while engine.has_work:
        engine.step()
    assert np.abs(captured[0] - reference()["img_logits"][0][-1]).max() <= 1e-4
    assert np.abs(captured[1] - reference()["next_logits"][0][-1]).max() <= 1e-4


# the store -----------------------------------------------------------------------------------------------------------


def features(name: int, rows: int = 4, width: int = 8) -> Features:
    shape = MediaShape("image", bytes([name]) * 32, (1, 4, rows), (), 2)
    return Features(shape, np.full((rows, width), name, np.float32))


def test_the_store_keeps_the_most_recently_used() -> None:
    store = FeatureStore(memory_bytes=3 * 4 * 8 * 4)
    for name in (1, 2, 3):
        store.put(features(name))
    assert store.get(bytes([1]) * 32) is not None
    store.put(features(4))
    assert store.get(bytes([2]) * 32) is None
    assert all(store.get(bytes([name]) * 32) is not None for name in (1, 3, 4))


def test_the_directory_stays_within_its_size(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, disk_bytes=5000)
    for name in range(8):
        store.put(features(name))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 5000
    reopened = FeatureStore(tmp_path)
    found = reopened.get(bytes([7]) * 32)
    assert found is not None and found.shape == features(7).shape
    assert np.array_equal(found.values, features(7).values)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04garbage", b"\x93NUMPY"])
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    FeatureStore(tmp_path).put(features(1))
    (file,) = tmp_path.iterdir()
    file.write_bytes(content)
    assert FeatureStore(tmp_path).get(bytes([1]) * 32) is None
