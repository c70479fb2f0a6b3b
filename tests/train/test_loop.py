"""The training loop: it learns, a resumed run repeats an uninterrupted one, new shards are noticed, measures are right."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the extra `train`")

from sterna.errors import CheckpointError, ConfigError, UsageError
from sterna.train.loop import Trainer, TrainSettings, read_checkpoint
from sterna.train.shape import ModelShape
from sterna.train.shards import Shard, ShardStream, collate, find_shards
from sterna.train.validation import Vocabulary

TINY = ModelShape(
    vocab_size=64, hidden_size=32, num_hidden_layers=2, full_attention_interval=2, num_attention_heads=2,
    num_key_value_heads=1, head_dim=16, mrope_section=(2, 1, 1), linear_key_head_dim=8, linear_value_head_dim=8,
    num_experts=4, moe_intermediate_size=32, shared_expert_intermediate_size=32,
)  # fmt: skip
VOCABULARY = Vocabulary(
    markers={"<think>": 60, "</think>": 61, "<tool_call>": 62, "</tool_call>": 63}, text={7: "old_str", 8: "view"}
)


def _write_shard(path: Path, *, episodes: int, seed: int) -> None:
    """Episodes that repeat one of eight fixed patterns, so that there is something to learn that holds for all shards."""
    patterns = np.random.default_rng(0).integers(1, 60, (8, 5))
    generator = np.random.default_rng(seed)
    parts = [np.resize(patterns[generator.integers(8)], int(n)) for n in generator.integers(20, 150, episodes)]
    path.mkdir(parents=True)
    tokens = np.concatenate(parts).astype(np.uint16)
    weights = np.ones(len(tokens), dtype=np.float16)
    weights[::3] = 0.1
    weights[::7] = 0
    np.save(path / "tokens.npy", tokens)
    np.save(path / "weights.npy", weights)
    np.save(path / "offsets.npy", np.concatenate(([0], np.cumsum([len(p) for p in parts]))).astype(np.int64))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for number in range(2):
        _write_shard(root / f"train-{number:03d}", episodes=12, seed=number)
    _write_shard(root / "valid-000", episodes=6, seed=9)
    return root


def _trainer(data: Path, out: Path, *, tokens: int = 40_000, optimizer: str = "muon") -> Trainer:
    settings = TrainSettings(
        tokens=tokens, tokens_per_step=600, micro_tokens=400, max_length=128, warmup_steps=5, mtp_every=2,
        learning_rate=1e-2, threads=1, optimizer=optimizer, evaluate_every_s=1e9,
    )  # fmt: skip
    return Trainer(data=data, out=out, shape=TINY, settings=settings, vocabulary=VOCABULARY)


def _records(out: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    timed = ("seconds", "tokens_per_s")
    return [{name: value for name, value in line.items() if name not in timed} for line in lines]


def _quiet(record: dict[str, object]) -> None:
    del record


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_training_lowers_the_held_out_loss(data: Path, tmp_path: Path, optimizer: str) -> None:
    trainer = _trainer(data, tmp_path / "run", optimizer=optimizer)
    before = trainer.evaluate()
    assert before["loss"] == pytest.approx(np.log(64), rel=0.05)
    assert trainer.run(report=_quiet)
    after = trainer.evaluate()
    assert after["loss"] < before["loss"] - 0.8
    assert after["token"] > before["token"] + 0.2
    assert _records(tmp_path / "run")[-1]["held_out"] == after


def test_a_resumed_run_repeats_an_uninterrupted_one(data: Path, tmp_path: Path) -> None:
    _trainer(data, tmp_path / "whole").run(report=_quiet, max_steps=14)
    for steps in (3, 6, 5):
        _trainer(data, tmp_path / "pieces").run(report=_quiet, max_steps=steps)
    assert _records(tmp_path / "pieces") == _records(tmp_path / "whole")
    whole, pieces = (read_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("whole", "pieces"))
    for name, tensor in whole["model"].items():
        assert torch.equal(tensor, pieces["model"][name]), name


def test_steps_after_the_last_checkpoint_are_forgotten_and_repeated(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    _trainer(data, out).run(report=_quiet, max_steps=4)
    expected = _records(out)
    with (out / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 5, "loss": 0.0}\n{"step": 6, "lo')
    trainer = _trainer(data, out)
    assert trainer.progress.step == 4
    assert _records(out) == expected


RUN_UNTIL_KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_loop import _trainer
trainer = _trainer(Path(sys.argv[1]), Path(sys.argv[2]), tokens=10**9)
object.__setattr__(trainer.settings, "checkpoint_every_s", 0.0)
trainer.run(report=lambda record: print(record["step"], flush=True))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda n: n.name)
def test_a_killed_run_continues_from_a_complete_checkpoint(data: Path, tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-c", RUN_UNTIL_KILLED, str(data), str(tmp_path / "run"), str(Path(__file__).parent)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 5:
            break
    time.sleep(0.02)
    process.send_signal(number)
    process.stdout.close()
    process.wait(timeout=60)
    trainer = _trainer(data, tmp_path / "run")
    assert trainer.progress.step >= 4
    reference = _trainer(data, tmp_path / "reference", tokens=10**9)
    reference.run(report=_quiet, max_steps=trainer.progress.step)
    for (name, found), expected in zip(
        trainer.model.state_dict().items(), reference.model.state_dict().values(), strict=True
    ):
        assert torch.equal(found, expected), name


def test_every_episode_is_read_once_per_pass_and_a_new_shard_comes_next(data: Path) -> None:
    stream = ShardStream(data, seed=1, tokens_per_step=300, micro_tokens=256, max_length=128)
    shard = Shard.open(data / "train-000")
    plan = stream.plan(shard, use=0)
    assert sorted(i for step in plan for batch in step for i in batch) == list(range(12))
    assert plan != stream.plan(shard, use=1)
    steps = iter(stream)
    names = []
    while len(names) < 3:
        next(steps)
        if names[-1:] != [stream.current]:
            names.append(stream.current)
            if len(names) == 2:
                _write_shard(data / "train-002", episodes=3, seed=5)
    assert names == ["train-000", "train-001", "train-002"]
    while stream.current == "train-002":
        next(steps)
    assert stream.current == "train-000"


def test_collate_pads_with_tokens_that_count_nowhere() -> None:
    batch = collate([(np.arange(3, dtype=np.uint16), np.ones(3, dtype=np.float16)) for _ in range(2)])
    assert batch.token_ids.shape == (2, 64)
    assert batch.tokens == 6
    assert float(batch.weights.sum()) == 6


def test_kinds_and_first_edit_follow_the_markers() -> None:
    tokens = np.array([1, 60, 2, 61, 62, 8, 63, 3, 62, 7, 4, 63, 5])
    weights = np.ones(len(tokens))
    assert VOCABULARY.kinds(tokens).tolist() == [0, 1, 1, 1, 2, 2, 2, 0, 2, 2, 2, 2, 0]
    assert VOCABULARY.first_edit(tokens, weights) == slice(8, 12)
    weights[10] = 0
    assert VOCABULARY.first_edit(tokens, weights) is None


def test_held_out_shards_are_never_trained_on(data: Path) -> None:
    assert [path.name for path in find_shards(data, held_out=True)] == ["valid-000"]
    assert [path.name for path in find_shards(data, held_out=False)] == ["train-000", "train-001"]


def test_bad_input_is_named(data: Path, tmp_path: Path) -> None:
    np.save(data / "train-000" / "offsets.npy", np.array([0, 5, 99_999]))
    with pytest.raises(ConfigError, match="offsets end at"):
        Shard.open(data / "train-000")
    with pytest.raises(UsageError, match="is not a directory"):
        find_shards(tmp_path / "absent", held_out=False)
    (tmp_path / "checkpoint.pt").write_bytes(b"PK damaged")
    with pytest.raises(CheckpointError, match="cannot read"):
        read_checkpoint(tmp_path / "checkpoint.pt")
    with pytest.raises(UsageError, match="either in tokens or in hours"):
        Trainer(data=data, out=tmp_path / "x", shape=TINY, settings=TrainSettings(), vocabulary=VOCABULARY)
