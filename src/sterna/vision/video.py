"""Bytes of a video file to sampled, resized frames and their times. The bytes are hostile; PyAV (extra ``video``) is imported here."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sterna.errors import UsageError
from sterna.vision.resize import frame_size, resample
from sterna.vision.settings import VisionLimits, VisionSettings

# Demuxer by first bytes: naming it keeps FFmpeg from trying formats that open other files or addresses (playlists).
_DEMUXERS = (
    (4, b"ftyp", "mp4"),
    (0, b"\x1a\x45\xdf\xa3", "matroska"),
    (0, b"GIF8", "gif"),
)
CONTAINERS = ("MP4", "QuickTime", "WebM", "Matroska", "AVI", "GIF")
CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "libaom-av1", "mpeg4", "mjpeg", "gif", "png", "rawvideo")
# The reference's assumption for files that do not say.
DEFAULT_FPS = 24.0


@dataclass(frozen=True, slots=True)
class SampledVideo:
    """``frames`` uint8 [n, height, width, 3] after resizing; ``indices`` into the source, which ran at ``fps``."""

    frames: npt.NDArray[np.uint8]
    indices: tuple[int, ...]
    fps: float


def sample_indices(total: int, fps: float, settings: VisionSettings) -> tuple[int, ...]:
    """Which of ``total`` frames are read: ``settings.fps`` per second within the limits of number, evenly spaced (spec §4.2)."""
    count = int(total / fps * settings.fps)
    count = min(max(count, settings.min_frames), settings.max_frames, total)
    return tuple(np.linspace(0, total - 1, count).round().astype(int).tolist())


def patch_times(indices: tuple[int, ...], fps: float, settings: VisionSettings) -> tuple[float, ...]:
    """Seconds of every temporal patch: the mean of its first and last frame's; a missing last frame repeats."""
    step = settings.temporal_patch_size
    padded = [*indices, *[indices[-1]] * (-len(indices) % step)]
    seconds = [index / fps for index in padded]
    return tuple((seconds[i] + seconds[i + step - 1]) / 2 for i in range(0, len(seconds), step))


def decode_video(data: bytes, settings: VisionSettings, limits: VisionLimits) -> SampledVideo:
    """Sample and resize a video. Raises `UsageError`, naming the limit, for what is too long, too large or damaged."""
    if len(data) > limits.max_video_bytes:
        raise UsageError(
            f"the video has {len(data):,} bytes, allowed are {limits.max_video_bytes:,} (max_video_bytes)",
            hint="cut or compress it",
        )
    demuxer = _demuxer(data)
    try:
        import av
    except ImportError as error:
        raise UsageError(f"video needs PyAV ({error})", hint="pip install 'sterna[video]'") from error
    try:
        return _decode(av, data, demuxer, settings, limits)
    except UsageError:
        raise
    # FFmpeg's errors are of many kinds, and a damaged file can make its wrapper raise ValueError and others.
    except Exception as error:
        raise UsageError(f"the video cannot be decoded ({str(error)[:100] or type(error).__name__})") from error


def _demuxer(data: bytes) -> str:
    for offset, mark, name in _DEMUXERS:
        if data[offset : offset + len(mark)] == mark:
            return name
    if data[:4] == b"RIFF" and data[8:11] == b"AVI":
        return "avi"
    what = "the data is not a video of a known container" if data else "the video is empty"
    raise UsageError(f"{what}, allowed are {', '.join(CONTAINERS)}")


def _decode(av: Any, data: bytes, demuxer: str, settings: VisionSettings, limits: VisionLimits) -> SampledVideo:
    deadline = time.monotonic() + limits.decode_timeout_s
    total, fps = _measure(av, data, demuxer, limits, deadline)
    indices = sample_indices(total, fps, settings)
    if len(indices) < settings.temporal_patch_size:
        raise UsageError(f"the video has {total} frames, allowed are {settings.temporal_patch_size} or more")
    # Several samples of a short clip may be the same frame.
    wanted = {index: [i for i, each in enumerate(indices) if each == index] for index in indices}
    frames: npt.NDArray[np.uint8] | None = None
    found = 0
    for index, frame in enumerate(_frames(av, data, demuxer, limits, deadline)):
        if index in wanted:
            image = frame.to_image()
            if frames is None:
                height, width = frame_size(image.height, image.width, len(indices), settings)
                frames = np.empty((len(indices), height, width, 3), np.uint8)
            frames[wanted[index]] = np.asarray(resample(image, frames.shape[1], frames.shape[2]))
            found += len(wanted[index])
        if index >= indices[-1]:
            break
    if frames is None or found < len(indices):
        raise UsageError(f"the video is damaged: {found} of {len(indices)} wanted frames could be decoded")
    return SampledVideo(frames, indices, fps)


def _measure(av: Any, data: bytes, demuxer: str, limits: VisionLimits, deadline: float) -> tuple[int, float]:
    """Frames, counted and not as the header claims, and frames per second."""
    with av.open(io.BytesIO(data), format=demuxer) as container:
        stream = _stream(container, limits)
        total = 0
        for packet in container.demux(stream):
            total += packet.size > 0
            _check_time(deadline, limits)
            if total > limits.max_video_frames:
                raise UsageError(
                    f"the video has more than {limits.max_video_frames:,} frames (max_video_frames)", hint="cut it"
                )
        rate = stream.average_rate
        fps = float(rate) if rate else DEFAULT_FPS
    if not math.isfinite(fps) or fps <= 0:
        fps = DEFAULT_FPS
    if not total:
        raise UsageError("the video has no frames")
    if total / fps > limits.max_video_seconds:
        raise UsageError(
            f"the video lasts {total / fps:,.0f} s, allowed are {limits.max_video_seconds:,.0f} (max_video_seconds)",
            hint="cut it",
        )
    return total, fps


def _frames(av: Any, data: bytes, demuxer: str, limits: VisionLimits, deadline: float) -> Iterator[Any]:
    with av.open(io.BytesIO(data), format=demuxer) as container:
        stream = _stream(container, limits)
        for frame in container.decode(stream):
            _check_time(deadline, limits)
            _check_frame(frame.width, frame.height, limits)
            yield frame


def _stream(container: Any, limits: VisionLimits) -> Any:
    if not container.streams.video:
        raise UsageError("the file has no video stream")
    stream = container.streams.video[0]
    context = stream.codec_context
    if context is None or context.name not in CODECS:
        name = context.name if context is not None else "unknown"
        raise UsageError(f"the video's codec is {name}, allowed are {', '.join(CODECS)}")
    if context.width and context.height:
        _check_frame(context.width, context.height, limits)
    return stream


def _check_frame(width: int, height: int, limits: VisionLimits) -> None:
    if width < 1 or height < 1 or width * height > limits.max_image_pixels:
        raise UsageError(
            f"the video's frames are {width}x{height}, allowed are 1 to {limits.max_image_pixels:,} pixels "
            "(max_image_pixels)",
            hint="scale it down",
        )


def _check_time(deadline: float, limits: VisionLimits) -> None:
    if time.monotonic() > deadline:
        raise UsageError(
            f"decoding the video takes longer than {limits.decode_timeout_s:g} s (decode_timeout_s)", hint="cut it"
        )
