"""Packed checkpoints on the native backend: the bits of quantising while loading, from tiles that are mapped and not copied."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sterna.backends.common import ModelBackend
from sterna.backends.native import NativeBackend
from sterna.checkpoint.opening import open_checkpoint
from sterna.checkpoint.packed_checkpoint import PackedCheckpoint
from sterna.checkpoint.packed_writer import write_packed
from sterna.checkpoint.quantizing import QuantizingCheckpoint
from sterna.checkpoint.random import RandomCheckpoint
from sterna.cli.main import main
from sterna.config import EngineConfig, ModelConfig
from sterna.errors import UsageError
from sterna.llm import LLM
from sterna.locate import STERNULA_DIRECTORY
from sterna.quant.recipes import recipe
from sterna.types import SamplingParams
from support.llama_cpp import run_numpy
from support.random_checkpoint import SMALL

IDS = np.random.default_rng(3).integers(0, SMALL.vocab_size, 33).tolist()


class Source(RandomCheckpoint):
    """Random weights with the groups that the writer asks for."""

    groups = frozenset({"text", "mtp"})


@pytest.mark.parametrize("name", ["q4", "q8", "bf16"])
def test_same_bits_as_quantised_at_load(name: str, tmp_path: Path) -> None:
    source = Source(ModelConfig(SMALL, None, (1,)))
    write_packed(tmp_path, source, recipe(name))
    packed = PackedCheckpoint(tmp_path, source.config)
    found = run_numpy(packed, IDS, NativeBackend(num_threads=1))
    quantizing = QuantizingCheckpoint(source, name)
    quantizing.config = source.config  # type: ignore[attr-defined]
    expected = run_numpy(quantizing, IDS, NativeBackend(num_threads=1))
    for key, values in expected.items():
        assert np.array_equal(found[key], values), key


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "sternula-q8"
    assert main(["quantize", "--model", str(STERNULA_DIRECTORY), "--recipe", "q8", "--out", str(out)]) == 0
    return out


def test_a_packed_directory_is_a_model_like_any_other(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with LLM.load(directory, backend="native") as llm:
        packed = "".join(llm.complete("def add(a, b):\n", SamplingParams(temperature=0, max_tokens=12)))
    with LLM.load(STERNULA_DIRECTORY, backend="native", recipe="q8") as llm:
        quantised = "".join(llm.complete("def add(a, b):\n", SamplingParams(temperature=0, max_tokens=12)))
    assert packed == quantised and packed


def test_the_plan_counts_the_bytes_of_the_file(directory: Path) -> None:
    checkpoint, config = open_checkpoint(directory, quantized=True)
    backend: ModelBackend = NativeBackend(num_threads=1)
    backend.load(checkpoint, config)
    planned = backend.plan_memory(EngineConfig(block_size=16)).weight_bytes
    assert planned == sum(checkpoint.file[name].array.nbytes for name in checkpoint.names("text", "mtp"))


def test_a_recipe_on_top_of_a_recipe_is_refused(directory: Path) -> None:
    with pytest.raises(UsageError, match="is quantised as its file says, recipe 'q4'"):
        open_checkpoint(directory, recipe="q4", quantized=True)
