"""From the image and video parts of a request to features in its prompt, beside other streams and once per content."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sterna.backends.base import VisionEncoder
from sterna.backends.host_memory import available_host_bytes
from sterna.engine.features import Features, FeatureStore
from sterna.errors import OutOfMemoryError, UsageError
from sterna.vision.media import Kind, Media, content_digest, load_media
from sterna.vision.parts import media_source
from sterna.vision.positions import MediaSpan, media_spans
from sterna.vision.settings import VisionLimits, VisionSettings

GIB = 1 << 30


# Decoded, or encoded before.
Item = Media | Features


@dataclass(frozen=True, slots=True)
class PromptMedia:
    """The media of a prompt in order, and the indices of their tokens in it."""

    items: tuple[Item, ...] = ()
    placeholders: tuple[int, ...] = ()


class MediaEncoder:
    """Reads the parts of requests and encodes them. Thread-safe: one encoding runs at a time, its steps under the caller's lock."""

    def __init__(
        self,
        vision: VisionEncoder,
        settings: VisionSettings,
        *,
        limits: VisionLimits | None = None,
        store: FeatureStore | None = None,
    ) -> None:
        self.vision = vision
        self.settings = settings
        self.limits = limits or VisionLimits()
        self.store = store or FeatureStore()
        self.num_encoded = 0
        self._one_at_a_time = threading.Lock()

    @classmethod
    def open(
        cls,
        vision: VisionEncoder,
        settings: VisionSettings,
        directory: Path | None,
        *,
        limits: VisionLimits | None = None,
    ) -> MediaEncoder:
        """An encoder whose features are kept below ``directory``, in a folder that belongs to these weights."""
        folder = None if directory is None else directory / vision.fingerprint()[:32]
        return cls(vision, settings, limits=limits, store=FeatureStore(folder))

    def read(self, parts: Sequence[Mapping[str, Any]]) -> tuple[Item, ...]:
        """Decode the parts of a request, those excepted whose features are known. Computes nothing of the model.

        Raises `UsageError`, naming the limit, for what is too much, too large, damaged or not an image or video.
        """
        if len(parts) > self.limits.max_media:
            raise UsageError(
                f"the request has {len(parts)} images and videos, allowed are {self.limits.max_media} (max_media)",
                hint="start a new conversation, or leave old pictures out",
            )
        return tuple(self._read(part) for part in parts)

    def _read(self, part: Mapping[str, Any]) -> Item:
        kind = media_kind(part)
        data = media_source(kind, part, self.limits)
        known = self.store.get(content_digest(kind, data, self.settings))
        return known or load_media(kind, data, self.settings, self.limits)

    def encode(self, media: PromptMedia, lock: AbstractContextManager[Any]) -> list[MediaSpan]:
        """The spans of a prompt. ``lock`` is taken for each step of the tower, so that other passes run between them.

        Raises `OutOfMemoryError` before an encoding that does not fit.
        """
        features = [self._features(item, lock) for item in media.items]
        return media_spans(media.placeholders, [(each.shape, each.values) for each in features])

    def _features(self, item: Item, lock: AbstractContextManager[Any]) -> Features:
        if isinstance(item, Features):
            return item
        with self._one_at_a_time:
            known = self.store.get(item.digest)
            if known is not None:
                return known
            self._check_memory(item)
            running = self.vision.start(item.pixel_values, item.grid_thw)
            complete = False
            while not complete:
                with lock:
                    complete = running.advance(1)
            self.num_encoded += 1
            features = Features(item.without_patches(), running.features())
            self.store.put(features)
            return features

    def _check_memory(self, item: Media) -> None:
        needed = self.vision.workspace_bytes(len(item.patches))
        free = available_host_bytes(0)
        if free is not None and needed > free:
            raise OutOfMemoryError(
                f"encoding the {item.kind} of {len(item.patches):,} patches needs {needed / GIB:.2f} GiB, "
                f"free are {free / GIB:.2f} GiB",
                hint="scale it down",
            )


def placeholder_texts(items: Sequence[Item]) -> list[str]:
    """What stands for each in the prompt."""
    return [(item.shape if isinstance(item, Features) else item).placeholder for item in items]


def media_kind(part: Mapping[str, Any]) -> Kind:
    """Whether a part is an image or a video, by its type or its key."""
    names = (str(part.get("type", "")), *part)
    return "video" if any(name in ("video", "video_url", "input_video") for name in names) else "image"
