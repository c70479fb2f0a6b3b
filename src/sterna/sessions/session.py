"""What is known of one stored session: its tokens and which files hold their keys, values and states."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SegmentRef:
    """A file with the KV blocks (all attention layers, the MTP layer's included) of tokens ``start`` to ``end``."""

    name: str
    start: int
    end: int
    size: int


@dataclass(frozen=True, slots=True)
class StateRef:
    """A file with the DeltaNet states and convolution rows after ``position`` tokens; ``kind`` as `SnapshotKind`."""

    name: str
    position: int
    kind: int
    size: int


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """One conversation of one namespace. ``serial`` orders sessions by their last use, whatever the clock says.

    ``fingerprint`` names model, quantisation, kernel variant, layout and block size: only where it is equal are the files of
    use. ``turns`` are `StoredTurn` as JSON.
    """

    id: str
    namespace: str
    serial: int
    created: float
    updated: float
    fingerprint: str
    model: str
    tokens: Tokens
    segments: tuple[SegmentRef, ...]
    states: tuple[StateRef, ...]
    turns: tuple[dict[str, Any], ...] = ()

    @property
    def parts(self) -> list[SegmentRef | StateRef]:
        """All files that it names."""
        return [*self.segments, *self.states]

    @property
    def size(self) -> int:
        """Bytes of its files; files that it shares with others count in full."""
        return sum(part.size for part in self.parts) + self.tokens.nbytes

    def common(self, tokens: Tokens) -> int:
        """How many first tokens are the same."""
        return common_tokens(self.tokens, tokens)

    def best_state(self, limit: int) -> StateRef | None:
        """The state after the most tokens that are not more than ``limit`` and whose segments are there."""
        limit = min(limit, self.segments[-1].end if self.segments else 0)
        usable = [state for state in self.states if state.position <= limit]
        return max(usable, key=lambda state: state.position, default=None)

    def header(self) -> dict[str, Any]:
        """Everything but the tokens, for the manifest."""
        return {
            "kind": "session",
            **{name: getattr(self, name) for name in _PLAIN},
            "segments": [asdict(part) for part in self.segments],
            "states": [asdict(part) for part in self.states],
            "turns": list(self.turns),
        }

    @classmethod
    def from_manifest(cls, header: dict[str, Any], payload: npt.NDArray[np.uint8]) -> Session:
        """Inverse of `header` and the tokens' bytes."""
        return cls(
            **{name: header[name] for name in _PLAIN},
            tokens=np.frombuffer(payload.tobytes(), np.int64),
            segments=tuple(SegmentRef(**part) for part in header["segments"]),
            states=tuple(StateRef(**part) for part in header["states"]),
            turns=tuple(header["turns"]),
        )


_PLAIN = ("id", "namespace", "serial", "created", "updated", "fingerprint", "model")


def common_tokens(a: Tokens, b: Tokens) -> int:
    """How many first elements are equal."""
    length = min(len(a), len(b))
    differing = np.flatnonzero(a[:length] != b[:length])
    return int(differing[0]) if len(differing) else length


def as_tokens(ids: Sequence[int]) -> Tokens:
    """Token ids, or the keys of images, as int64."""
    return np.array(ids, np.int64)


def extend_chain(chain: str, tokens: Tokens) -> str:
    """Digest of all tokens so far, by which a file is known to belong where it is named."""
    return hashlib.sha256(chain.encode() + np.ascontiguousarray(tokens).tobytes()).hexdigest()


def directory_name(namespace: str) -> str:
    """The directory of a namespace, which does not give its key away."""
    if namespace.startswith(_BY_DIRECTORY):
        return namespace.removeprefix(_BY_DIRECTORY)
    return hashlib.sha256(f"sterna session namespace {namespace}".encode()).hexdigest()[:24]


def namespace_of(session: Session) -> str:
    """A namespace in which the session is found again, although the key that it was stored under is not known."""
    return _BY_DIRECTORY + session.namespace


# no key that comes over HTTP can hold it
_BY_DIRECTORY = "\0"


def now() -> float:
    """Seconds since the epoch, for people; nothing is decided by it."""
    return time.time()
