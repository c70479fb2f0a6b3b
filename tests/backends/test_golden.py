"""Logits of every backend against the golden reference (transformers, float32), along every path through the caches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sterna.backends.base import EmbedRows
from sterna.backends.common import ModelBackend
from sterna.checkpoint import Checkpoint
from sterna.config import RopeParameters
from sterna.ops import tolerances
from support.golden import BACKENDS, GOLDEN, Piece, Stream, batch_of, image_prompt, logits_of, open_backend, reference


def ids() -> np.ndarray:
    return reference()["ids"][0]


def full() -> np.ndarray:
    return reference()["full"][0]


def assert_golden(logits: np.ndarray, expected: np.ndarray) -> None:
    assert logits.shape == expected.shape
    assert np.abs(logits - expected).max() <= tolerances.GOLDEN_LOGITS


def test_prefill(backend: ModelBackend) -> None:
    assert_golden(logits_of(backend, Piece(Stream(), ids())), full())


def test_prefill_then_cached_decode(backend: ModelBackend) -> None:
    stream, expected = Stream(), reference()["cached"][0]
    prompt = int(reference()["P"])
    rows = [logits_of(backend, Piece(stream, ids()[:prompt]))]
    rows += [logits_of(backend, Piece(stream, ids()[t : t + 1])) for t in range(prompt, len(expected))]
    assert_golden(np.concatenate(rows), expected)


@pytest.mark.parametrize("pieces", [(70, 37, 43), (1, 63, 65, 21), (2, 1, 1, 146)])
def test_prefill_in_pieces(backend: ModelBackend, pieces: tuple[int, ...]) -> None:
    stream = Stream(blocks=[9, 3, 17, 0, 30, 2, 8, 40, 41, 1], slot=2)
    rows = [logits_of(backend, Piece(stream, part)) for part in np.split(ids(), np.cumsum(pieces)[:-1])]
    assert_golden(np.concatenate(rows), full())


def test_several_sequences_in_one_batch_with_blocks_out_of_order(backend: ModelBackend) -> None:
    a = Stream(blocks=[5, 1, 33, 7, 20, 60, 11, 12, 13, 14], slot=3)
    b = Stream(blocks=[0, 2, 4, 6, 8, 10, 63, 21, 22, 23], slot=1)
    logits_of(backend, Piece(b, ids()[:40]))
    first = logits_of(backend, Piece(a, ids()[:33]), Piece(b, ids()[40:41]))
    second = logits_of(backend, Piece(b, ids()[41:150]), Piece(a, ids()[33:150]))
    assert_golden(np.concatenate([first[:33], second[109:]]), full())
    assert_golden(np.concatenate([first[33:], second[:109]]), full()[40:])


def test_image_and_video_prompt_and_the_token_after_it(backend: ModelBackend) -> None:
    stream = Stream(slot=4)
    assert_golden(logits_of(backend, image_prompt(stream)), reference()["img_logits"][0])
    stream.delta = int(reference()["delta"].item())
    assert_golden(logits_of(backend, Piece(stream, [77])), reference()["next_logits"][0])


def test_image_prompt_cut_inside_the_image(backend: ModelBackend) -> None:
    stream = Stream()
    whole = image_prompt(stream)
    assert whole.positions is not None and whole.features is not None
    rows, values = whole.features
    cut = int(rows[2])
    first = Piece(stream, whole.token_ids[:cut], whole.positions[:, :cut], (rows[:2], values[:2]))
    got = [logits_of(backend, first)]
    rest = Piece(stream, whole.token_ids[cut:], whole.positions[:, cut:], (rows[2:] - cut, values[2:]))
    got.append(logits_of(backend, rest))
    assert_golden(np.concatenate(got), reference()["img_logits"][0])


def test_only_the_rows_asked_for_have_logits(backend: ModelBackend) -> None:
    batch = replace(batch_of(Piece(Stream(), ids())), logits_indices=np.array([149, 3], np.int32))
    result = backend.forward(batch)
    assert_golden(result.to_numpy(), full()[[149, 3]])


def test_embed_rows_replace_embeddings(backend: ModelBackend) -> None:
    table = Checkpoint(GOLDEN).array("model.language_model.embed_tokens.weight")
    rows = np.array([0, 5, 149], np.int32)
    wrong = ids().copy()
    wrong[rows] = 489
    batch = replace(batch_of(Piece(Stream(), wrong)), embed_rows=EmbedRows(rows, table[ids()[rows]]))
    assert_golden(backend.forward(batch).to_numpy(), full())


def test_a_resumed_pass_with_another_pass_between_every_two_layers(backend: ModelBackend) -> None:
    long, short = Stream(slot=0), Stream(blocks=range(40, 56), slot=1)
    running, steps = backend.start(batch_of(Piece(long, ids()))), []
    for t in range(20):
        if running.advance(1):
            break
        steps.append(logits_of(backend, Piece(short, ids()[t : t + 1])))
    assert len(steps) == len(backend.config.text.layer_types) - 1
    assert_golden(running.logits().to_numpy(), full())
    assert_golden(np.concatenate(steps), full()[: len(steps)])


YARN = RopeParameters(1e7, 0.5, (3, 3, 2), rope_type="yarn", factor=4.0, original_max_position_embeddings=64)


def test_yarn(backend: ModelBackend) -> None:
    config = Checkpoint(GOLDEN).config
    checkpoint = Checkpoint(GOLDEN, replace(config, text=replace(config.text, rope_parameters=YARN)))
    with np.load(GOLDEN / "yarn.npz") as stored:
        expected, rows = stored["logits"], stored["rows"]
    logits = logits_of(open_backend(BACKENDS[backend.name], checkpoint), Piece(Stream(), ids()))
    assert_golden(logits[rows], expected)
    assert np.abs(expected - full()[rows]).max() > tolerances.NEGATIVE_CONTROL
