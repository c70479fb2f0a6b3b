"""Layouts, prefixes, shards and the manifest."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sterna.backends.numpy import NumpyBackend
from sterna.checkpoint import Checkpoint, SafetensorsFile, TensorView, expected_tensors, write_safetensors
from sterna.config import preset
from sterna.errors import CheckpointError
from sterna.ops import tolerances
from sterna.ops.bfloat16 import to_bfloat16
from support.golden import GOLDEN, Piece, Stream, logits_of, open_backend, reference

Tensors = dict[str, TensorView]
TEXT = "model.language_model."
ROUTER = "model.language_model.layers.3.mlp.gate.weight"


def golden() -> Tensors:
    return dict(SafetensorsFile(GOLDEN / "model.safetensors"))


def view(name: str, array: np.ndarray, dtype: str = "F32") -> TensorView:
    return TensorView(name, dtype, np.ascontiguousarray(array))


def write(directory: Path, tensors: Tensors) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_bytes((GOLDEN / "config.json").read_bytes())
    write_safetensors(directory / "model.safetensors", tensors)
    return directory


def write_shards(directory: Path, tensors: Tensors, shards: int = 3) -> dict[str, str]:
    names = [f"model-{i:05}-of-{shards:05}.safetensors" for i in range(1, shards + 1)]
    weight_map = {name: names[i % shards] for i, name in enumerate(tensors)}
    for shard in names:
        write_safetensors(directory / shard, {n: t for n, t in tensors.items() if weight_map[n] == shard})
    (directory / "config.json").write_bytes((GOLDEN / "config.json").read_bytes())
    write_index(directory, weight_map)
    return weight_map


def write_index(directory: Path, weight_map: object) -> None:
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def assert_same(directory: Path) -> None:
    original, other = Checkpoint(GOLDEN), Checkpoint(directory)
    assert other.groups == original.groups
    for name in original.names("text", "vision"):
        assert np.array_equal(other.tensor(name).to_float32(), original.array(name)), name
        assert other.storage(name)[0] == original.tensor(name).shape


def per_expert(tensors: Tensors) -> Tensors:
    result: Tensors = {}
    for name, tensor in tensors.items():
        prefix, _, last = name.rpartition(".")
        halves = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}.get(last)
        if halves is None:
            result[name] = tensor
            continue
        for projection, part in zip(halves, np.split(tensor.array, len(halves), axis=1), strict=True):
            for expert, matrix in enumerate(part):
                key = f"{prefix}.{expert}.{projection}.weight"
                result[key] = view(key, matrix)
    return result


def mlx(tensors: Tensors) -> Tensors:
    """``switch_mlp`` experts, norms with the 1 added, conv1d with the kernel in the middle."""
    result: Tensors = {}
    for name, tensor in tensors.items():
        array, prefix = tensor.array, name.rpartition(".experts.")[0]
        if name.endswith(".experts.gate_up_proj"):
            for projection, part in zip(("gate_proj", "up_proj"), np.split(array, 2, axis=1), strict=True):
                result[f"{prefix}.switch_mlp.{projection}.weight"] = view(name, part)
        elif name.endswith(".experts.down_proj"):
            result[f"{prefix}.switch_mlp.down_proj.weight"] = tensor
        elif name.endswith(".conv1d.weight"):
            result[name] = view(name, array.transpose(0, 2, 1))
        elif "norm" in name and "linear_attn" not in name and "visual" not in name:
            result[name] = view(name, array + 1)
        else:
            result[name] = tensor
    return result


def renamed(*pairs: tuple[str, str]) -> Callable[[Tensors], Tensors]:
    def rename(tensors: Tensors) -> Tensors:
        result = {}
        for name, tensor in tensors.items():
            for old, new in pairs:
                if name.startswith(old):
                    name = new + name[len(old) :]
                    break
            result[name] = tensor
        return result

    return rename


def appended_weight(tensors: Tensors) -> Tensors:
    return {n + ".weight" if n.endswith(("gate_up_proj", "experts.down_proj")) else n: t for n, t in tensors.items()}


LAYOUTS: dict[str, Callable[[Tensors], Tensors]] = {
    "per expert": per_expert,
    "fused with .weight": appended_weight,
    "text-only prefix": renamed((TEXT, "model."), ("model.visual.", "visual.")),
    "language_model first": renamed(
        (TEXT, "language_model.model."), ("lm_head.", "language_model.lm_head."), ("model.visual.", "vision_tower.")
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_layouts_read_as_the_official_one(tmp_path: Path, layout: str) -> None:
    assert_same(write(tmp_path / "x", LAYOUTS[layout](golden())))


def test_shards(tmp_path: Path) -> None:
    write_shards(tmp_path, per_expert(golden()))
    assert_same(tmp_path)


def test_mlx_conventions_give_golden_logits(tmp_path: Path) -> None:
    backend = open_backend(NumpyBackend, Checkpoint(write(tmp_path / "x", mlx(golden()))))
    logits = logits_of(backend, Piece(Stream(), reference()["ids"][0]))
    assert np.abs(logits - reference()["full"][0]).max() <= tolerances.GOLDEN_LOGITS


def test_bfloat16_weights_are_the_rounded_float32_weights(tmp_path: Path) -> None:
    rounded = {name: TensorView(name, "BF16", to_bfloat16(tensor.array)) for name, tensor in golden().items()}
    as_float32 = {name: view(name, tensor.to_float32()) for name, tensor in rounded.items()}
    backends = [
        open_backend(NumpyBackend, Checkpoint(write(tmp_path / kind, tensors)))
        for kind, tensors in (("bf16", rounded), ("f32", as_float32))
    ]
    pieces = [Piece(Stream(), reference()["ids"][0][:20]) for _ in backends]
    a, b = (logits_of(backend, piece) for backend, piece in zip(backends, pieces, strict=True))
    assert np.array_equal(a, b)


def test_groups_are_recorded(tmp_path: Path) -> None:
    checkpoint = Checkpoint(GOLDEN)
    assert (checkpoint.has_mtp, checkpoint.has_vision) == (False, True)
    text_only = {name: tensor for name, tensor in golden().items() if ".visual." not in name}
    assert Checkpoint(write(tmp_path / "x", text_only)).groups == {"text"}


def test_the_official_manifest() -> None:
    tensors = expected_tensors(preset("qwen3.6-35b-a3b"))
    groups = {
        group: [spec.shape for spec in tensors.values() if spec.group == group] for group in ("text", "mtp", "vision")
    }
    assert {group: len(shapes) for group, shapes in groups.items()} == {"text": 693, "mtp": 19, "vision": 333}
    assert sum(map(math.prod, groups["text"])) == 34_660_610_688


def without(name: str) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.pop(name) and None


def replaced(name: str, array: np.ndarray, dtype: str = "F32") -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({name: view(name, array, dtype)})


UNKNOWN = "model.language_model.layers.3.self_attn.q_proj.bias"
EXPERT = "model.language_model.layers.0.mlp.experts"
DAMAGES: dict[str, tuple[Callable[[Tensors], None], str]] = {
    "missing": (without(ROUTER), r"lacks the tensor '.*layers.3.mlp.gate.weight' of shape \[16, 64\]"),
    "missing head": (without("lm_head.weight"), "lacks the tensor 'lm_head.weight'"),
    "extra": (replaced(UNKNOWN, np.zeros(256, np.float32)), "unknown tensor '.*q_proj.bias'"),
    "wrong shape": (
        replaced(ROUTER, np.zeros((64, 16), np.float32)), r"gate.weight' has shape \[64, 16\], expected is \[16, 64\]"
    ),
    "wrong type": (
        replaced(ROUTER, np.zeros((16, 64), np.int32), "I32"), "gate.weight' has dtype I32, allowed is F32, F16, BF16"
    ),
    "part of the vision tower": (without("model.visual.pos_embed.weight"), "lacks the tensor 'model.visual.pos_embed"),
    "part of the head": (replaced("mtp.norm.weight", np.zeros(64, np.float32)), r"lacks the tensor 'mtp\."),
    "a layer too many": (
        replaced("model.language_model.layers.8.input_layernorm.weight", np.zeros(64, np.float32)), "unknown tensor"
    ),
    "two names for one tensor": (
        replaced("language_model.lm_head.weight", np.zeros((512, 64), np.float32)), "are both"
    ),
    "experts in two layouts": (
        replaced(f"{EXPERT}.0.up_proj.weight", np.zeros((32, 64), np.float32)), "in two layouts"
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_wrong_set_of_tensors_is_named(tmp_path: Path, damage: str) -> None:
    change, message = DAMAGES[damage]
    tensors = golden()
    change(tensors)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(write(tmp_path / "x", tensors))


EXPERT_DAMAGES: dict[str, tuple[Callable[[Tensors], None], str]] = {
    "missing expert": (without(f"{EXPERT}.7.up_proj.weight"), "lack up_proj of expert 7"),
    "an expert too many": (
        replaced(f"{EXPERT}.16.up_proj.weight", np.zeros((32, 64), np.float32)), "expert 16, the model has 16"
    ),
    "wrong shape": (
        replaced(f"{EXPERT}.3.down_proj.weight", np.zeros((32, 64), np.float32)),
        r"3.down_proj.weight' has shape \[32, 64\], expected is \[64, 32\]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", EXPERT_DAMAGES)
def test_a_wrong_expert_is_named(tmp_path: Path, damage: str) -> None:
    change, message = EXPERT_DAMAGES[damage]
    tensors = per_expert(golden())
    change(tensors)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(write(tmp_path / "x", tensors))


@pytest.mark.parametrize(
    "shard", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "model.bin", "..", "a\\b.safetensors"]
)
def test_an_index_cannot_reach_outside_its_directory(tmp_path: Path, shard: str) -> None:
    weight_map = write_shards(tmp_path, golden())
    write_index(tmp_path, {**weight_map, ROUTER: shard})
    with pytest.raises(CheckpointError, match=r"allowed is a \.safetensors file beside it"):
        Checkpoint(tmp_path)


def test_an_index_that_contradicts_its_shards(tmp_path: Path) -> None:
    weight_map = write_shards(tmp_path, golden())
    write_index(tmp_path, {**weight_map, "ghost": weight_map[ROUTER]})
    with pytest.raises(CheckpointError, match=r"puts tensor 'ghost' into .*, it is in no file"):
        Checkpoint(tmp_path)
    write_index(tmp_path, {name: shard for name, shard in weight_map.items() if name != ROUTER})
    with pytest.raises(CheckpointError, match=r"holds tensor '.*gate.weight', .* puts it into no file"):
        Checkpoint(tmp_path)
    write_index(tmp_path, {**weight_map, "x": "gone.safetensors"})
    with pytest.raises(CheckpointError, match=r"cannot read .*gone.safetensors"):
        Checkpoint(tmp_path)
    for content in ([], {"a": 1}, None):
        write_index(tmp_path, content)
        with pytest.raises(CheckpointError, match=r"has no weight_map|lacks the tensor"):
            Checkpoint(tmp_path)


def test_a_directory_without_weights_or_with_two_sets(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((GOLDEN / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match="holds neither") as error:
        Checkpoint(tmp_path)
    assert error.value.hint
    write_shards(tmp_path, golden())
    write(tmp_path, golden())
    with pytest.raises(CheckpointError, match="holds both"):
        Checkpoint(tmp_path)


def test_the_fingerprint_follows_the_values(tmp_path: Path) -> None:
    tensors = golden()
    before = Checkpoint(write(tmp_path / "x", tensors)).fingerprint()
    assert Checkpoint(write(tmp_path / "y", tensors)).fingerprint() == before
    tensors[ROUTER] = view(ROUTER, tensors[ROUTER].array + 1)
    assert Checkpoint(write(tmp_path / "y", tensors)).fingerprint() != before
