"""Reference sampler: the next token as a pure function of (logits, parameters, seed, absolute position).

Processors run in this fixed order, each on the result of the one before:

    1. ``logit_bias``           added to the named tokens
    2. ``repetition_penalty``   tokens of prompt and response: divide positive logits, multiply negative ones
    3. ``frequency_penalty``    tokens of the response: subtract penalty * count
    4. ``presence_penalty``     tokens of the response: subtract penalty once
    5. ``allowed``              a grammar's mask: everything else becomes impossible
    6. ``temperature``          divide; 0 means greedy and ends here: the highest logit, ties to the lower id
    7. ``top_k``                keep the k highest, ties to the lower id
    8. ``top_p``                keep the smallest set of highest probabilities whose sum reaches top_p
    9. ``min_p``                keep probabilities of at least min_p times the highest

The choice itself is the Gumbel-max trick: the highest of ``logit + noise``. The noise of a token depends on seed,
position and token id alone, never on the logits, the batch or the other candidates. A draft model that uses the same
noise agrees with the target as often as their logits allow, and the text is the same with speculation on and off at
every temperature.

The generator is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) with key = seed
and counter = (token id, position low, position high, 0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sterna.errors import BackendError, UsageError
from sterna.types import SamplingParams

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
UInt32 = npt.NDArray[np.uint32]

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW_32 = np.uint64(0xFFFFFFFF)
_NUCLEUS_GUESS = 1024


@dataclass(frozen=True, slots=True)
class Choice:
    """A chosen token; natural-log probabilities under the unprocessed logits, ``None`` and empty unless asked for."""

    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


def philox4x32(counter: UInt32, *, key: tuple[int, int]) -> UInt32:
    """Ten rounds of Philox4x32: counter uint32 [N, 4] and a 64-bit key as two words -> uint32 [N, 4]."""
    c0, c1, c2, c3 = (counter[:, i].astype(np.uint64) for i in range(4))
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            p1 & _LOW_32,
            (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            p0 & _LOW_32,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def gumbel_noise(token_ids: Int64, *, seed: int, position: int) -> Float64:
    """Gumbel noise of tokens int64 [N] at an absolute position -> float64 [N]; ``seed`` is taken modulo 2**64."""
    counter = np.zeros((len(token_ids), 4), np.uint32)
    counter[:, 0] = token_ids
    counter[:, 1] = position & 0xFFFFFFFF
    counter[:, 2] = position >> 32
    words = philox4x32(counter, key=(seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)).astype(np.uint64)
    bits = (words[:, 0] << np.uint64(21)) ^ (words[:, 1] >> np.uint64(11))
    uniform = (bits.astype(np.float64) + 0.5) * 2.0**-53
    noise: Float64 = -np.log(-np.log(uniform))
    return noise


def penalise(
    logits: Float64, params: SamplingParams, *, prompt_ids: Sequence[int] = (), output_ids: Sequence[int] = ()
) -> None:
    """Apply ``logit_bias`` and the three penalties (steps 1 to 4) in place to float64 [V]."""
    for token_id, bias in params.logit_bias.items():
        if not 0 <= token_id < len(logits):
            raise UsageError(f"logit_bias names token {token_id}, allowed is 0 to {len(logits) - 1}")
        logits[token_id] += bias
    if params.repetition_penalty != 1.0:
        seen = np.unique(np.concatenate([np.asarray(prompt_ids, np.int64), np.asarray(output_ids, np.int64)]))
        values = logits[seen]
        logits[seen] = np.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    if output_ids and (params.frequency_penalty or params.presence_penalty):
        produced, counts = np.unique(np.asarray(output_ids, np.int64), return_counts=True)
        logits[produced] -= params.frequency_penalty * counts + params.presence_penalty


def candidates(logits: Float64, params: SamplingParams) -> tuple[Int64, Float64]:
    """Steps 6 to 9 on penalised logits [V]: (token ids, their logits divided by temperature), the most likely first."""
    scaled = logits / params.temperature
    possible = int(np.count_nonzero(scaled > -np.inf))
    keep = min(params.top_k, possible) if params.top_k else possible
    if params.top_k == 0 and params.top_p == 1.0 and params.min_p == 0.0:
        ids = np.flatnonzero(scaled > -np.inf)
        return ids, scaled[ids]
    shifted = scaled - scaled.max()
    ids = _highest(scaled, keep if params.top_k else min(keep, _NUCLEUS_GUESS))
    total = np.exp(shifted[ids] if params.top_k else shifted).sum()
    kept = _filter(np.exp(shifted[ids]) / total, params)
    if kept == len(ids) < keep:
        ids = _highest(scaled, keep)
        kept = _filter(np.exp(shifted[ids]) / total, params)
    return ids[:kept], scaled[ids[:kept]]


def _highest(values: Float64, k: int) -> Int64:
    """Indices of the k highest values in falling order, ties to the lower index."""
    if k < len(values):
        threshold = np.partition(values, len(values) - k)[len(values) - k]
        above, equal = np.flatnonzero(values > threshold), np.flatnonzero(values == threshold)
        ids = np.sort(np.concatenate([above, equal[: k - len(above)]]))
    else:
        ids = np.arange(len(values))
    order: Int64 = ids[np.argsort(-values[ids], kind="stable")]
    return order


def _filter(probabilities: Float64, params: SamplingParams) -> int:
    """How many of the falling probabilities top_p and then min_p keep; at least one."""
    kept = len(probabilities)
    if params.top_p < 1.0:
        kept = min(kept, int(np.searchsorted(np.cumsum(probabilities), params.top_p)) + 1)
    if params.min_p > 0.0:
        kept = min(kept, int(np.count_nonzero(probabilities >= params.min_p * probabilities[0])))
    return max(kept, 1)


def sample(
    logits: npt.NDArray[np.float32],
    params: SamplingParams,
    *,
    seed: int,
    position: int,
    prompt_ids: Sequence[int] = (),
    output_ids: Sequence[int] = (),
    allowed: npt.NDArray[np.bool_] | None = None,
) -> Choice:
    """Choose the token at absolute ``position`` from float32 logits [V]; ``allowed`` is bool [V].

    Raises `BackendError` for NaN or +inf logits and `UsageError` when nothing is allowed.
    """
    work = logits.astype(np.float64)
    if not work.max() < np.inf:
        raise BackendError(f"the logits for position {position} hold NaN or infinity, no token can be chosen")
    penalise(work, params, prompt_ids=prompt_ids, output_ids=output_ids)
    if allowed is not None:
        work[~allowed] = -np.inf
    if not np.any(work > -np.inf):
        raise UsageError(
            f"no token is allowed at position {position}", hint="the grammar or logit_bias excludes them all"
        )
    if params.temperature == 0.0:
        token_id = int(np.argmax(work))
    else:
        ids, values = candidates(work, params)
        # argmax takes the first of equal sums; in id order that is the lower id, whatever order the filters left
        by_id = np.argsort(ids)
        ids, values = ids[by_id], values[by_id]
        token_id = int(ids[np.argmax(values + gumbel_noise(ids, seed=seed, position=position))])
    return _with_logprobs(logits, token_id, params.logprobs)


def _with_logprobs(logits: npt.NDArray[np.float32], token_id: int, count: int | None) -> Choice:
    if count is None:
        return Choice(token_id)
    values = logits.astype(np.float64)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    top = tuple((int(i), float(values[i])) for i in _highest(values, min(count, len(values)))) if count else ()
    return Choice(token_id, float(values[token_id]), top)


def probabilities(
    logits: npt.NDArray[np.float32],
    params: SamplingParams,
    *,
    prompt_ids: Sequence[int] = (),
    output_ids: Sequence[int] = (),
) -> Mapping[int, float]:
    """The distribution that `sample` draws from: token id -> probability, for tests and explanations."""
    work = logits.astype(np.float64)
    penalise(work, params, prompt_ids=prompt_ids, output_ids=output_ids)
    if params.temperature == 0.0:
        return {int(np.argmax(work)): 1.0}
    ids, values = candidates(work, params)
    weights = np.exp(values - values.max())
    return dict(zip(ids.tolist(), (weights / weights.sum()).tolist(), strict=True))
