"""Writes the clips of this directory and what transformers' video processor makes of them (clips.npz).

Usage: python make_clips.py; needs av, torch, torchvision and transformers. torchvision may be a build without operators.
"""

import json
from pathlib import Path

import av
import numpy as np
import torch

HERE = Path(__file__).parent
OPERATORS = ("nms", "qnms")
# name: (container, codec, pixel format, width, height, frames, frames per second)
CLIPS = {
    "short.mp4": ("mp4", "mpeg4", "yuv420p", 80, 48, 5, 8),
    "odd.mov": ("mov", "png", "rgb24", 75, 50, 23, 12),
    "tiny.avi": ("avi", "mjpeg", "yuvj420p", 24, 20, 9, 3),
    "long.webm": ("webm", "libvpx-vp9", "yuv420p", 128, 64, 89, 25),
}


def frame(i: int, width: int, height: int) -> np.ndarray:
    """A gradient with a square that moves to the right."""
    y, x = np.mgrid[0:height, 0:width]
    image = np.stack([x * 255 // width, y * 255 // height, (x + y + 9 * i) % 256], axis=-1).astype(np.uint8)
    left = (3 * i) % max(1, width - 10)
    image[5:15, left : left + 10] = (255, 40, 0)
    return image


def write(path: Path, container: str, codec: str, pixel_format: str, width: int, height: int, frames: int, fps: int) -> None:
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        for i in range(frames):
            picture = av.VideoFrame.from_ndarray(frame(i, width, height), format="rgb24")
            out.mux(stream.encode(picture))
        out.mux(stream.encode(None))


def reference(path: Path) -> dict[str, np.ndarray]:
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
    from transformers.video_utils import VideoMetadata

    size = {"shortest_edge": 4096, "longest_edge": 25165824}
    mean = [0.5, 0.5, 0.5]
    processor = Qwen3VLVideoProcessor(size=size, image_mean=mean, image_std=mean, cap_pixels_per_frame=False)
    with av.open(str(path)) as container:
        fps = float(container.streams.video[0].average_rate)
        frames = np.stack([f.to_rgb().to_ndarray() for f in container.decode(video=0)])
    metadata = VideoMetadata(total_num_frames=len(frames), fps=fps, frames_indices=None)
    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2)
    out = processor(videos=[tensor], video_metadata=[metadata], return_metadata=True, return_tensors="np")
    meta = out["video_metadata"][0]
    indices = np.asarray(meta.frames_indices)
    times = Qwen3VLProcessor._calculate_timestamps(processor, indices.copy(), fps, 2)
    pixels = np.round(out["pixel_values_videos"] * 127.5 + 127.5).astype(np.uint8)
    return {"pixels": pixels, "grid": out["video_grid_thw"][0], "indices": indices, "times": np.asarray(times)}


def main() -> None:
    # torchvision registers shapes for its compiled operators, which need not be there for resizing.
    library = torch.library.Library("torchvision", "DEF")
    for operator in OPERATORS:
        library.define(f"{operator}() -> Tensor")
    arrays = {}
    for name, spec in CLIPS.items():
        write(HERE / name, *spec)
        result = reference(HERE / name)
        print(name, (HERE / name).stat().st_size, json.dumps({k: v.shape for k, v in result.items()}), result["times"][:3])
        arrays |= {f"{name}/{key}": value for key, value in result.items()}
    np.savez_compressed(HERE / "clips.npz", **arrays)


if __name__ == "__main__":
    main()
