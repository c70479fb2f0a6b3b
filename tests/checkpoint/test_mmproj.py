"""mmproj files written by gguf-py, and the safetensors prefixes, give the weights of the golden tower."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from sterna.backends.numpy import NumpyBackend
from sterna.backends.numpy.opset import NumpyOps
from sterna.checkpoint import Checkpoint, SafetensorsFile, TensorView, write_safetensors
from sterna.checkpoint.mmproj import MmprojFile
from sterna.errors import BackendError, CheckpointError
from sterna.models.vision import VisionModel
from sterna.ops import tolerances
from support.golden import GOLDEN, reference

METADATA: dict[str, Any] = {
    "clip.projector_type": "qwen3vl_merger", "clip.has_vision_encoder": True, "clip.use_gelu": True,
    "clip.vision.image_size": 24, "clip.vision.patch_size": 4, "clip.vision.embedding_length": 32,
    "clip.vision.feed_forward_length": 48, "clip.vision.block_count": 2, "clip.vision.projection_dim": 64,
    "clip.vision.attention.head_count": 4, "clip.vision.attention.layer_norm_epsilon": 1e-6,
    "clip.vision.spatial_merge_size": 2, "clip.vision.image_mean": [0.48, 0.46, 0.41],
    "clip.vision.is_deepstack_layers": [False, False],
}  # fmt: skip
Tensors = dict[str, np.ndarray]


def stored_tensors() -> Tensors:
    """The golden tower by the names of a converter, written down here once more."""
    source = Checkpoint(GOLDEN)
    visual = {name.removeprefix("model.visual."): source.tensor(name).to_float32() for name in source.names("vision")}
    patch = visual.pop("patch_embed.proj.weight")
    tensors = {"v.patch_embd.weight": patch[:, :, 0], "v.patch_embd.weight.1": patch[:, :, 1]}
    parts = {
        "patch_embed.proj": "v.patch_embd", "pos_embed": "v.position_embd", "merger.norm": "v.post_ln",
        "merger.linear_fc1": "mm.0", "merger.linear_fc2": "mm.2", "norm1": "ln1", "norm2": "ln2", "attn.qkv": "attn_qkv",
        "attn.proj": "attn_out", "mlp.linear_fc1": "ffn_up", "mlp.linear_fc2": "ffn_down",
    }  # fmt: skip
    for name, values in visual.items():
        module, kind = name.rsplit(".", 1)
        if module.startswith("blocks."):
            _, number, part = module.split(".", 2)
            tensors[f"v.blk.{number}.{parts[part]}.{kind}"] = values
        else:
            tensors[f"{parts[module]}.{kind}"] = values
    return tensors


def write(path: Path, tensors: Tensors, metadata: dict[str, Any] = METADATA, *, quantize: str | None = None) -> Path:
    writer = gguf.GGUFWriter(path, "clip")
    for key, value in metadata.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        (writer.add_array if isinstance(value, list) else add[type(value)])(key, value)
    for name, values in tensors.items():
        values = np.ascontiguousarray(values, np.float32)
        if quantize == "Q8_0" and values.ndim == 2 and values.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values.astype(np.float16) if quantize == "F16" and values.ndim > 1 else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_converted_tower_has_the_golden_features(tmp_path: Path) -> None:
    file = MmprojFile(write(tmp_path / "mmproj.gguf", stored_tensors()))
    assert file.config == Checkpoint(GOLDEN).config.vision
    features = VisionModel(NumpyOps(), file, file.config).encode(reference()["px"], (1, 4, 6))
    assert np.abs(features - reference()["feat_img"]).max() <= tolerances.GOLDEN_FEATURES


@pytest.mark.parametrize(("quantize", "bound"), [("F16", 5e-3), ("Q8_0", 5e-2)])
def test_rounded_weights(tmp_path: Path, quantize: str, bound: float) -> None:
    file = MmprojFile(write(tmp_path / "mmproj.gguf", stored_tensors(), quantize=quantize))
    features = VisionModel(NumpyOps(), file, file.config).encode(reference()["px"], (1, 4, 6))
    assert 0 < np.abs(features - reference()["feat_img"]).max() <= bound
    assert file.storage("model.visual.blocks.0.attn.qkv.weight")[1] == (2 if quantize == "F16" else 4)


def test_the_fingerprint_follows_the_weights(tmp_path: Path) -> None:
    tensors = stored_tensors()
    first = MmprojFile(write(tmp_path / "a.gguf", tensors)).fingerprint()
    tensors["mm.2.bias"] = tensors["mm.2.bias"] + 1
    assert MmprojFile(write(tmp_path / "b.gguf", tensors)).fingerprint() != first


def test_a_text_model_takes_a_tower_of_its_width_only(tmp_path: Path) -> None:
    tensors = stored_tensors()
    tensors["mm.2.weight"], tensors["mm.2.bias"] = tensors["mm.2.weight"][:60], tensors["mm.2.bias"][:60]
    file = MmprojFile(write(tmp_path / "a.gguf", tensors, METADATA | {"clip.vision.projection_dim": 60}))
    checkpoint = Checkpoint(GOLDEN)
    backend = NumpyBackend()
    backend.load(checkpoint, checkpoint.config)
    with pytest.raises(BackendError, match="gives 60 values per token, the model takes 64"):
        backend.load_vision(file, file.config)


def without(name: str) -> Callable[[Tensors, dict[str, Any]], Any]:
    return lambda tensors, metadata: tensors.pop(name)


def setting(key: str, value: Any) -> Callable[[Tensors, dict[str, Any]], Any]:
    return lambda tensors, metadata: metadata.update({key: value})


def extra(tensors: Tensors, metadata: dict[str, Any]) -> None:
    tensors["v.deepstack.0.fc1.weight"] = np.zeros((2, 2))


def narrow(tensors: Tensors, metadata: dict[str, Any]) -> None:
    tensors["v.blk.1.ffn_up.weight"] = tensors["v.blk.1.ffn_up.weight"][:40]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("v.post_ln.bias"), "lacks the tensor 'v.post_ln.bias'"),
        (without("v.position_embd.weight"), "v.position_embd.weight"),
        (extra, "unknown tensor 'v.deepstack"),
        (narrow, "has shape"),
        (setting("clip.projector_type", "mlp"), "clip.projector_type 'mlp'"),
        (setting("clip.vision.block_count", 3), "lacks the tensor"),
        (setting("clip.vision.block_count", 4_000_000_000), "block_count is 4000000000"),
        (setting("clip.vision.is_deepstack_layers", [False, True]), "deepstack"),
        (setting("clip.vision.attention.layer_norm_epsilon", 1e-5), "layer_norm_epsilon"),
        (setting("clip.vision.attention.head_count", 3), "heads"),
        (setting("clip.use_gelu", False), "use_gelu"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, change: Callable[[Tensors, dict[str, Any]], Any], message: str) -> None:
    tensors, metadata = stored_tensors(), dict(METADATA)
    change(tensors, metadata)
    with pytest.raises(CheckpointError, match=message):
        MmprojFile(write(tmp_path / "mmproj.gguf", tensors, metadata))


@pytest.mark.parametrize("prefix", ["visual.", "vision_tower.", "model.visual."])
def test_prefixes_of_safetensors_files(tmp_path: Path, prefix: str) -> None:
    renamed = {
        name.replace("model.visual.", prefix): TensorView(name, view.dtype, view.array)
        for name, view in SafetensorsFile(GOLDEN / "model.safetensors").items()
    }
    write_safetensors(tmp_path / "model.safetensors", renamed)
    (tmp_path / "config.json").write_bytes((GOLDEN / "config.json").read_bytes())
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.has_vision and checkpoint.config.vision is not None
    features = VisionModel(NumpyOps(), checkpoint, checkpoint.config.vision).encode(reference()["px"], (1, 4, 6))
    assert np.abs(features - reference()["feat_img"]).max() <= tolerances.GOLDEN_FEATURES


def test_a_checkpoint_without_its_tower_loads_as_text(tmp_path: Path) -> None:
    text = {
        name: TensorView(name, view.dtype, view.array)
        for name, view in SafetensorsFile(GOLDEN / "model.safetensors").items()
        if "visual" not in name
    }
    write_safetensors(tmp_path / "model.safetensors", text)
    (tmp_path / "config.json").write_bytes((GOLDEN / "config.json").read_bytes())
    checkpoint = Checkpoint(tmp_path)
    backend = NumpyBackend()
    backend.load(checkpoint, checkpoint.config)
    assert not checkpoint.has_vision and backend.vision is None
