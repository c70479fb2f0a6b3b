"""The curves of a training run as a picture."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from sterna.errors import UsageError

SMOOTHING = 0.95


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete records of a ``metrics.jsonl``; a last line still being written is left out."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _smoothed(values: list[float]) -> list[float]:
    result, mean, weight = [], 0.0, 0.0
    for value in values:
        mean, weight = SMOOTHING * mean + (1 - SMOOTHING) * value, SMOOTHING * weight + (1 - SMOOTHING)
        result.append(mean / weight)
    return result


def draw_curves(metrics: Path, picture: Path) -> None:
    """Losses, held-out rates, and speed with learning rate over trained tokens, written to ``picture`` (PNG)."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("curves need matplotlib", hint="pip install 'sterna[train]'") from error
    records = read_metrics(metrics)
    figure = Figure(figsize=(9, 10), layout="constrained")
    FigureCanvasAgg(figure)
    losses, rates, speed = figure.subplots(3, 1, sharex=True)
    for name, label in (("loss", "next token"), ("mtp_loss", "token after it (MTP)")):
        points = [(record["tokens"] / 1e6, record[name]) for record in records if name in record]
        if points:
            tokens, values = zip(*points, strict=True)
            losses.plot(tokens, _smoothed(list(values)), label=label)
    held_out = [(record["tokens"] / 1e6, record["held_out"]) for record in records if record.get("held_out")]
    losses.plot([t for t, _ in held_out], [h["loss"] for _, h in held_out], "o-", label="held out, next token")
    losses.set(ylabel="loss (nats)", yscale="log")
    for name in sorted({name for _, measures in held_out for name in measures if name != "loss"}):
        points = [(tokens, measures[name]) for tokens, measures in held_out if name in measures]
        rates.plot([t for t, _ in points], [v for _, v in points], "o-", label=name)
    rates.set(ylabel="held-out rate right", ylim=(0, 1))
    tokens_seen = [record["tokens"] / 1e6 for record in records]
    speed.plot(tokens_seen, _smoothed([record["tokens_per_s"] for record in records]), label="tokens/s")
    speed.set(xlabel="million tokens", ylabel="tokens/s")
    rate_axis = speed.twinx()
    rate_axis.plot(tokens_seen, [record["lr"] for record in records], color="tab:orange")
    rate_axis.set_ylabel("learning rate (orange)")
    for axes in (losses, rates):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    temporary = picture.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=110)
    os.replace(temporary, picture)
