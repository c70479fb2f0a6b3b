"""Error and size of every format we write, on synthetic weights: ``python -m benchmarks.quant_error``.

The weights are labelled synthetic: Student's t of several tails, each row with its own scale (log-normal, sigma 0.5) and each
column slightly so (0.15). Printed is ``|W - Q(W)| / |W|`` in percent. The last line of standard output is the table as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys

import numpy as np

from sterna.quant import FORMATS
from sterna.quant.base import Format

TAILS: dict[str, float | None] = {"normal": None, "t(8)": 8, "t(5)": 5, "t(3.5)": 3.5}


def synthetic(tail: float | None, *, rows: int, k: int, seed: int) -> np.ndarray:
    """float32 [rows, K] of the given degrees of freedom, ``None`` for the normal distribution."""
    random = np.random.default_rng(seed)
    values = random.standard_normal((rows, k)) if tail is None else random.standard_t(tail, (rows, k))
    values *= np.exp(0.5 * random.standard_normal((rows, 1))) * np.exp(0.15 * random.standard_normal((1, k)))
    return (0.02 * values).astype(np.float32)


def relative_error(form: Format, weights: np.ndarray) -> float:
    """Root of the squared error over the squared weights."""
    difference = form.dequantize(form.quantize(weights), weights.shape) - weights
    return float(np.sqrt((difference.astype(np.float64) ** 2).sum() / (weights.astype(np.float64) ** 2).sum()))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=512, help="rows of each matrix (default 512)")
    parser.add_argument("--columns", type=int, default=2048, help="columns of each matrix (default 2048)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    matrices = {
        name: synthetic(tail, rows=arguments.rows, k=arguments.columns, seed=arguments.seed)
        for name, tail in TAILS.items()
    }
    points = []
    print("| format | bits per weight | " + " | ".join(matrices) + " |\n|---" + "|---:" * (1 + len(matrices)) + "|")
    for form in FORMATS.values():
        if form.encode is None or form.name == "F32":
            continue
        bits = 8 * form.nbytes((arguments.rows, arguments.columns)) / (arguments.rows * arguments.columns)
        errors = {name: 100 * relative_error(form, weights) for name, weights in matrices.items()}
        print(
            f"| {form.name} | {bits:.3f} | " + " | ".join(f"{error:.3f}" for error in errors.values()) + " |",
            flush=True,
        )
        points.append({"format": form.name, "bits_per_weight": bits, "error_percent": errors})
    json.dump(
        {"rows": arguments.rows, "columns": arguments.columns, "seed": arguments.seed, "points": points}, sys.stdout
    )
    print()


if __name__ == "__main__":
    main()
