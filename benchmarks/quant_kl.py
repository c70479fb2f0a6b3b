"""How far each recipe and GGUF format moves the built-in model: KL divergence from its BF16 logits on text it was not calibrated on.

    python -m benchmarks.quant_kl [--tokens 1024]

Exact weights of each format, float32 activations (numpy backend): the error of the weights alone. Q4_K, Q6_K need rows of 256; the
built-in model's down projections have 128 and take Q8_0 there, which flatters those rows of the table.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sterna.backends.numpy.recording import input_importance
from sterna.chat.tokenizer import Tokenizer
from sterna.checkpoint import Checkpoint
from sterna.checkpoint.gguf_checkpoint import GgufCheckpoint
from sterna.checkpoint.gguf_writer import write_gguf
from sterna.checkpoint.packed_checkpoint import PackedCheckpoint
from sterna.checkpoint.packed_writer import copy_model_files, write_packed
from sterna.cli.logits import chunk_sizes, compute_logits
from sterna.locate import STERNULA_DIRECTORY, make_backend
from sterna.quant import FORMATS
from sterna.quant.recipes import recipe

ROOT = Path(__file__).resolve().parents[1]
CALIBRATION = ("src/sterna/agent/textfile.py", "src/sterna/agent/editor.py", "docs/dev/transcript.md")
MEASURED = ("src/sterna/agent/loop.py", "src/sterna/agent/tools.py")
NEVER = (".mlp.gate.weight", ".in_proj_a.weight", ".in_proj_b.weight", ".conv1d.weight", ".shared_expert_gate.weight")


def gguf_format(wanted: str) -> Callable[[str, tuple[int, ...]], str]:
    """One format wherever rows hold whole blocks of it, Q8_0 elsewhere; Q4_K_M as in `benchmarks.random_gguf`."""

    def choose(name: str, shape: tuple[int, ...]) -> str:
        if len(shape) == 1 or name.endswith(NEVER):
            return "F32"
        form = wanted
        if wanted == "Q4_K_M":
            form = (
                "Q6_K" if name == "lm_head.weight" or name.endswith((".v_proj.weight", ".out_proj.weight")) else "Q4_K"
            )
        return form if shape[-1] % FORMATS[form].block_size == 0 else "Q8_0"

    return choose


def logits(checkpoint: Any, ids: list[int]) -> np.ndarray:
    backend, _ = make_backend("numpy")
    backend.load(checkpoint, checkpoint.config)
    return compute_logits(backend, ids, chunk_sizes(len(ids), None)).astype(np.float64)


def variants(source: Checkpoint, ids: list[int], folder: Path) -> Iterator[tuple[str, float, Any]]:
    """(label, bits per weight of the text model's matrices, checkpoint)."""
    importance = input_importance(source, ids)
    for name in ("q8", "q4", "q4-small"):
        for label, weights in ((name, {}), (f"{name}, calibrated", importance)):
            if name == "q8" and weights:
                continue
            out = folder / label
            copy_model_files(STERNULA_DIRECTORY, out)
            records = write_packed(out, source, recipe(name), importance=weights)
            yield label, bits(records), PackedCheckpoint(out, dequantize=True)
    for name in ("Q8_0", "Q4_K_M", "Q4_K", "Q4_0"):
        path = folder / f"{name}.gguf"
        records = write_gguf(path, source, choose=gguf_format(name))
        yield f"GGUF {name}", bits(records), GgufCheckpoint(path, dequantize=True)


def bits(records: list[Any]) -> float:
    sizes = [(8 * record.nbytes, int(np.prod(record.shape))) for record in records if len(record.shape) > 1]
    return sum(size for size, _ in sizes) / sum(count for _, count in sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    args = parser.parse_args()
    tokenizer = Tokenizer.from_directory(STERNULA_DIRECTORY)
    texts = ("".join((ROOT / name).read_text() for name in names) for names in (CALIBRATION, MEASURED))
    calibration, measured = (tokenizer.encode(text)[: args.tokens] for text in texts)
    source = Checkpoint(STERNULA_DIRECTORY)
    exact = normalised(logits(source, measured))
    print(f"{len(calibration)} tokens of calibration, {len(measured)} measured\n")
    print("| weights | bits | KL mean | median | 99 % | same top |\n|---|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for label, size, checkpoint in variants(source, calibration, Path(folder)):
            found = normalised(logits(checkpoint, measured))
            kl = (np.exp(exact) * (exact - found)).sum(axis=1)
            same = 100 * np.mean(exact.argmax(1) == found.argmax(1))
            print(
                f"| {label} | {size:.2f} | {kl.mean():.4f} | {np.median(kl):.4f} | {np.quantile(kl, 0.99):.3f} "
                f"| {same:.1f} % |",
                flush=True,
            )


def normalised(values: np.ndarray) -> np.ndarray:
    return values - np.logaddexp.reduce(values, axis=1, keepdims=True)


if __name__ == "__main__":
    main()
