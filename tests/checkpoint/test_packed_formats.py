"""Quantised safetensors directories opened as checkpoints: parts found by name, joined, and refused where they do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sterna.checkpoint import Checkpoint, TensorView, write_safetensors
from sterna.checkpoint.packed_formats import identify, read_quantization, unpacked
from sterna.errors import CheckpointError, ConfigError
from sterna.quant import awq, compressed_tensors, fp8, gptq, nvfp4
from support.golden import GOLDEN

LAYER = "model.language_model.layers.0"
MATRIX = f"{LAYER}.linear_attn.in_proj_z.weight"
GPTQ = {"quant_method": "gptq", "bits": 4}


def random_parts(kind: str, n: int, k: int, seed: int) -> tuple[dict[str, TensorView], np.ndarray]:
    """Random parts of one layer [N, K] and the values that they mean."""
    random = np.random.default_rng(seed)

    def i32(*shape: int) -> np.ndarray:
        return random.integers(-(2**31), 2**31, shape, dtype=np.int32)

    def f16(*shape: int) -> np.ndarray:
        return (0.01 + 0.01 * random.random(shape)).astype(np.float16)

    e4m3 = random.integers(8, 96, (n, k), dtype=np.uint8)
    one = np.array([0.125], np.float32)
    if kind == "gptq":
        parts: dict[str, tuple[str, np.ndarray]] = {
            "qweight": ("I32", i32(k // 8, n)), "qzeros": ("I32", i32(2, n // 8)), "scales": ("F16", f16(2, n)),
            "g_idx": ("I32", random.permutation(np.arange(k, dtype=np.int32) % 2)),
        }  # fmt: skip
        arrays = [array for _, array in parts.values()]
        values = gptq.assemble(arrays[0], arrays[1], arrays[2].astype(np.float32), arrays[3]).dequantize()
    elif kind == "awq":
        parts = {"qweight": ("I32", i32(k, n // 8)), "qzeros": ("I32", i32(2, n // 8)), "scales": ("F16", f16(2, n))}
        arrays = [array for _, array in parts.values()]
        values = awq.assemble(arrays[0], arrays[1], arrays[2].astype(np.float32)).dequantize()
    elif kind == "int4":
        parts = {
            "weight_packed": ("I32", i32(n, k // 8)), "weight_scale": ("F16", f16(n, 2)),
            "weight_shape": ("I64", np.array([n, k], np.int64)), "weight_zero_point": ("I32", i32(n // 8, 2)),
        }  # fmt: skip
        arrays = [array for _, array in parts.values()]
        values = compressed_tensors.assemble(arrays[0], arrays[1].astype(np.float32), *arrays[2:]).dequantize()
    elif kind.startswith("nvfp4"):
        scale = random.integers(8, 64, (n, k // 16), dtype=np.uint8)
        codes = random.integers(0, 256, (n, k // 2), dtype=np.uint8)
        if kind == "nvfp4_modelopt":
            parts = {"weight": ("U8", codes), "weight_scale": ("F8_E4M3", scale), "weight_scale_2": ("F32", one)}
            values = nvfp4.dequantize(codes, scale, multiply=one)
        else:
            parts = {
                "weight_packed": ("U8", codes), "weight_scale": ("F8_E4M3", scale), "weight_global_scale": ("F32", one),
                "input_global_scale": ("F32", one),
            }  # fmt: skip
            values = nvfp4.dequantize(codes, scale, divide=one)
    elif kind == "fp8_block":
        parts = {"weight": ("F8_E4M3", e4m3), "weight_scale_inv": ("F32", one.reshape(1, 1))}
        values = fp8.dequantize_block(e4m3, one.reshape(1, 1))
    elif kind == "fp8":
        channel = f16(n, 1).astype(np.float32)
        parts = {"weight": ("F8_E4M3", e4m3), "weight_scale": ("F32", channel), "input_scale": ("F32", one)}
        values = fp8.dequantize_channel(e4m3, channel)
    else:
        channel, codes = f16(n, 1).astype(np.float32), random.integers(-127, 128, (n, k), dtype=np.int8)
        parts = {"weight": ("I8", codes), "weight_scale": ("F32", channel)}
        values = codes.astype(np.float32) * channel
    return {part: TensorView(part, dtype, array) for part, (dtype, array) in parts.items()}, values


METHOD: dict[str, dict[str, Any]] = {
    "gptq": GPTQ,
    "awq": {"quant_method": "awq", "bits": 4},
    "int4": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    "nvfp4_modelopt": {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"},
    "nvfp4_global": {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"},
    "fp8_block": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "fp8": {"quant_method": "compressed-tensors"},
    "int8": {"quant_method": "quark"},
}


def packed_directory(directory: Path, kind: str) -> dict[str, np.ndarray]:
    """The golden checkpoint with one projection, and all experts one by one, in packed form; the meant values by official name."""
    golden = Checkpoint(GOLDEN)
    meant: dict[str, np.ndarray] = {}
    tensors = {name: golden.tensor(name) for name in golden.names("text", "vision")}

    def put(name: str, seed: int) -> np.ndarray:
        parts, values = random_parts(kind, *shape, seed)
        layer = name.removesuffix(".weight")
        tensors.update({f"{layer}.{part}": TensorView(part, view.dtype, view.array) for part, view in parts.items()})
        return values

    shape = tensors.pop(MATRIX).shape
    meant[MATRIX] = put(MATRIX, 1)
    experts = tensors.pop(f"{LAYER}.mlp.experts.gate_up_proj").shape
    down = tensors.pop(f"{LAYER}.mlp.experts.down_proj").shape
    gates, downs = [], []
    for e in range(experts[0]):
        shape = (experts[1] // 2, experts[2])
        gates.append(
            np.concatenate(
                [put(f"{LAYER}.mlp.experts.{e}.{p}_proj.weight", 3 * e + i) for i, p in enumerate(("gate", "up"))]
            )
        )
        shape = down[1:]
        downs.append(put(f"{LAYER}.mlp.experts.{e}.down_proj.weight", 3 * e + 2))
    meant[f"{LAYER}.mlp.experts.gate_up_proj"], meant[f"{LAYER}.mlp.experts.down_proj"] = (
        np.stack(gates),
        np.stack(downs),
    )
    config = json.loads((GOLDEN / "config.json").read_text()) | {"quantization_config": METHOD[kind]}
    (directory / "config.json").write_text(json.dumps(config))
    write_safetensors(directory / "model.safetensors", tensors)
    return meant


@pytest.mark.parametrize("kind", METHOD)
def test_a_packed_directory_opens_as_a_checkpoint(kind: str, tmp_path: Path) -> None:
    meant = packed_directory(tmp_path, kind)
    checkpoint, golden = Checkpoint(tmp_path), Checkpoint(GOLDEN)
    for name, values in meant.items():
        view = checkpoint.tensor(name)
        assert view.dtype == "F32"
        assert np.array_equal(view.array, values)
        assert checkpoint.storage(name) == (values.shape, 4)
    untouched = f"{LAYER}.linear_attn.out_proj.weight"
    assert np.array_equal(checkpoint.array(untouched), golden.array(untouched))


def test_a_pack_without_its_scale_is_refused(tmp_path: Path) -> None:
    parts, _ = random_parts("fp8_block", 32, 64, 0)
    quantization = {"quantization_config": METHOD["fp8_block"]}
    (tmp_path / "config.json").write_text(json.dumps(quantization))
    with pytest.raises(CheckpointError, match="'x.weight' has dtype F8_E4M3 and no scale"):
        unpacked([{"x.weight": parts["weight"]}], tmp_path)


@pytest.mark.parametrize(
    ("kind", "drop"),
    [("gptq", "scales"), ("int4", "weight_shape"), ("nvfp4_modelopt", "weight_scale_2"), ("awq", "qzeros")],
)
def test_incomplete_parts_are_refused(kind: str, drop: str) -> None:
    parts, _ = random_parts(kind, 32, 64, 0)
    del parts[drop]
    parts.pop("input_global_scale", None)
    with pytest.raises(CheckpointError, match="make no known format"):
        identify("x.weight", parts, read_quantization(METHOD[kind]))


def test_other_widths_are_refused() -> None:
    parts, _ = random_parts("gptq", 32, 64, 0)
    parts["qweight"] = TensorView("qweight", "I32", np.zeros((16, 24), np.int32))
    with pytest.raises(CheckpointError, match="fit neither GPTQ nor AWQ in 4 bits"):
        identify("x.weight", parts, read_quantization(GPTQ))
    for config, message in [
        ({"quant_method": "gptq", "bits": 3}, "bits is 3, allowed is 4"),
        ({"quant_method": "gguf"}, "quant_method is 'gguf', allowed is fp8"),
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "allowed are two positive integers"),
    ]:
        with pytest.raises(ConfigError, match=message):
            read_quantization(config)


def test_integers_stay_available_for_kernels() -> None:
    parts, values = random_parts("awq", 32, 64, 0)
    packed = identify("x.weight", parts, read_quantization(METHOD["awq"]))
    assert packed.shape == (32, 64) and packed.kind == "awq"
    grouped = packed.grouped()
    assert grouped.contiguous_group == 32
    assert np.array_equal(grouped.dequantize(), values)
    other, _ = random_parts("fp8", 32, 64, 0)
    other.pop("input_scale")
    with pytest.raises(CheckpointError, match="packed as fp8, not as 4-bit integers"):
        identify("x.weight", other, read_quantization(METHOD["fp8"])).grouped()
