"""The law of the hybrid model: however a text is cut, stored and resumed, the state and the logits are the same."""

from __future__ import annotations

import numpy as np
import pytest

from sterna.backends.common import ModelBackend
from sterna.errors import BackendError
from sterna.ops import tolerances
from support.golden import BACKENDS, Piece, Stream, batch_of, logits_of, open_backend, reference

N, M = 65, 30


def close(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool(np.abs(a - b).max() <= tolerances.FLOAT32_LOGITS)


def ids() -> np.ndarray:
    return reference()["ids"][0]


def state_of(backend: ModelBackend, slot: int) -> np.ndarray:
    return backend.snapshot_state(slot).view(np.float32)


@pytest.mark.parametrize("n", [1, 3, 63, 65])
def test_prefill_whole_in_steps_or_from_a_restored_snapshot(backend: ModelBackend, n: int) -> None:
    whole = Stream(slot=0)
    expected = logits_of(backend, Piece(whole, ids()[: n + M]))
    final = state_of(backend, 0)

    stepped = Stream(blocks=range(16, 32), slot=1)
    logits_of(backend, Piece(stepped, ids()[:n]))
    snapshot = backend.snapshot_state(1)
    steps = [logits_of(backend, Piece(stepped, ids()[t : t + 1])) for t in range(n, n + M)]
    assert close(np.concatenate(steps), expected[n:])
    assert close(state_of(backend, 1), final)

    backend.restore_state(2, snapshot)
    restored = Stream(blocks=range(16, 32), slot=2, cached=n)
    assert close(logits_of(backend, Piece(restored, ids()[n : n + M])), expected[n:])
    assert close(state_of(backend, 2), final)


def test_snapshot_at_stores_the_state_inside_a_pass(backend: ModelBackend) -> None:
    stream = Stream(slot=0)
    piece = Piece(stream, ids()[:100], snapshots=[(N - 1, 5), (0, 6), (99, 7)])
    whole = logits_of(backend, piece)
    for n, slot in ((N, 5), (1, 6), (100, 7)):
        other = Stream(blocks=range(16, 32), slot=1)
        logits_of(backend, Piece(other, ids()[:n]))
        assert close(state_of(backend, slot), state_of(backend, 1))
    assert np.array_equal(backend.snapshot_state(7), backend.snapshot_state(0))
    resumed = Stream(slot=5, cached=N)
    assert close(logits_of(backend, Piece(resumed, ids()[N:100])), whole[N:])


def test_snapshots_of_the_second_sequence_of_a_batch(backend: ModelBackend) -> None:
    a, b = Stream(slot=0), Stream(blocks=range(16, 32), slot=1)
    logits_of(backend, Piece(a, ids()[:20]), Piece(b, ids()[50:90], snapshots=[(9, 8)]))
    alone = Stream(blocks=range(32, 48), slot=2)
    logits_of(backend, Piece(alone, ids()[50:60]))
    assert close(state_of(backend, 8), state_of(backend, 2))


@pytest.mark.parametrize("accepted", [1, 2, 4])
def test_commit_keeps_the_accepted_rows_of_a_verification(backend: ModelBackend, accepted: int) -> None:
    stream = Stream(slot=0)
    logits_of(backend, Piece(stream, ids()[:N]))
    draft = [*ids()[N : N + accepted], *[7] * (4 - accepted)]
    logits_of(backend, Piece(stream, draft, snapshots=[(row, 8 + row) for row in range(3)]))
    backend.commit(0, accepted)
    stream.cached = N + accepted
    expected = logits_of(backend, Piece(Stream(blocks=range(16, 32), slot=1), ids()[:100]))
    assert close(logits_of(backend, Piece(stream, ids()[N + accepted : 100])), expected[N + accepted :])


def test_commit_of_rows_whose_state_was_not_stored_is_an_error(backend: ModelBackend) -> None:
    logits_of(backend, Piece(Stream(slot=0), ids()[:4], snapshots=[(1, 8)]))
    for n in (0, 5):
        with pytest.raises(BackendError, match="its last pass had 4"):
            backend.commit(0, n)
    with pytest.raises(BackendError, match="stored no state after 3 rows"):
        backend.commit(0, 3)
    backend.commit(0, 2)


def test_a_fresh_sequence_starts_from_zeros_whatever_the_slot_held(backend: ModelBackend) -> None:
    logits_of(backend, Piece(Stream(slot=3), ids()[50:]))
    first = logits_of(backend, Piece(Stream(slot=3), ids()[:5]))
    assert close(first, reference()["full"][0][:5])


def test_copied_states_and_blocks_fork_a_sequence(backend: ModelBackend) -> None:
    stream = Stream(blocks=range(16), slot=0)
    logits_of(backend, Piece(stream, ids()[:N]))
    backend.copy_state(0, 1)
    backend.copy_blocks([(i, 20 + i) for i in range(5)])
    expected = logits_of(backend, Piece(stream, ids()[N:90]))
    fork = Stream(blocks=range(20, 36), slot=1, cached=N)
    assert np.array_equal(logits_of(backend, Piece(fork, ids()[N:90])), expected)
    backend.copy_state(-1, 1)
    assert not state_of(backend, 1).any()


def test_blocks_and_states_survive_export_into_a_new_backend(backend: ModelBackend) -> None:
    stream = Stream(blocks=[4, 9, 2, 7, 11, 30, 31], slot=0)
    logits_of(backend, Piece(stream, ids()[:N]))
    blocks, state = backend.export_blocks([4, 9, 2, 7, 11]), backend.snapshot_state(0)
    expected = logits_of(backend, Piece(stream, ids()[N:90]))

    other = open_backend(BACKENDS[backend.name])
    assert other.fingerprint() == backend.fingerprint()
    other.import_blocks([0, 1, 2, 3, 4], blocks)
    other.restore_state(6, state)
    resumed = Stream(blocks=range(7), slot=6, cached=N)
    assert np.array_equal(logits_of(other, Piece(resumed, ids()[N:90])), expected)
    assert np.array_equal(other.export_blocks([0, 1, 2, 3]), blocks[:4])


def test_stored_data_of_the_wrong_size_is_refused(backend: ModelBackend) -> None:
    with pytest.raises(BackendError, match="the snapshot has"):
        backend.restore_state(0, backend.snapshot_state(0)[:-1])
    with pytest.raises(BackendError, match="the block data has shape"):
        backend.import_blocks([0], backend.export_blocks([0, 1]))


def test_an_unfinished_pass_has_no_logits(backend: ModelBackend) -> None:
    running = backend.start(batch_of(Piece(Stream(), ids()[:3])))
    assert not running.advance(3)
    with pytest.raises(BackendError, match="computed 3 of 8 layers"):
        running.logits()
    assert running.advance()
