#!/usr/bin/env python3
"""Run a GGUF file in llama-cpp-python: logits of given tokens, a greedy continuation, and the MTP head's logits.

    python scripts/llama_cpp_logits.py MODEL.gguf TOKENS.json OUT.npz [--greedy N] [--threads N] [--text TEXT]

Needs llama-cpp-python and numpy, nothing of Sterna. Keys and values are kept in float32, so that what differs is the weights'
format and the order of sums. OUT.npz: ``logits`` [T, V], ``greedy`` [N], and where the file has an MTP head ``hidden`` [T, D],
``mtp_logits`` [T - 1, V]: row t pairs the hidden row t with token t + 1. ``text_ids`` are the tokens of --text.
"""

from __future__ import annotations

import argparse
import ctypes
import json
from pathlib import Path

import llama_cpp
import numpy as np
from llama_cpp import llama_cpp_ext

F32 = 0


def load(path: Path, *, mtp: bool) -> int:
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    params.load_mtp = mtp
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise SystemExit(f"error: llama.cpp cannot load {path}")
    return model


def new_context(model: int, tokens: int, threads: int, *, mtp: bool = False) -> int:
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = max(64, tokens)
    params.n_threads = params.n_threads_batch = threads
    params.type_k = params.type_v = F32
    params.flash_attn_type = 0
    params.n_outputs_max = params.n_outputs_max_per_seq = max(64, tokens)
    if mtp:
        params.ctx_type = llama_cpp.LLAMA_CONTEXT_TYPE_MTP
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        raise SystemExit("error: llama.cpp cannot make a context")
    return context


class Batch:
    """A `llama_batch` of one sequence that keeps its arrays alive."""

    def __init__(self, ids: np.ndarray, start: int, hidden: np.ndarray | None = None) -> None:
        count = len(ids)
        self.token = np.ascontiguousarray(ids, np.int32)
        self.pos = np.arange(start, start + count, dtype=np.int32)
        self.n_seq_id = np.ones(count, np.int32)
        self.logits = np.ones(count, np.int8)
        self.sequence = (ctypes.c_int32 * 1)(0)
        pointer = ctypes.cast(self.sequence, ctypes.POINTER(ctypes.c_int32))
        self.seq_id = (ctypes.POINTER(ctypes.c_int32) * count)(*[pointer] * count)
        self.hidden = None if hidden is None else np.ascontiguousarray(hidden, np.float32)
        batch = llama_cpp.llama_batch()
        batch.n_tokens = count
        batch.token = self.token.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        if self.hidden is not None:
            batch.embd = self.hidden.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        batch.pos = self.pos.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        batch.n_seq_id = self.n_seq_id.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        batch.seq_id = self.seq_id
        batch.logits = self.logits.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))
        self.raw = batch


def decode(context: int, ids: np.ndarray, start: int, width: int, hidden: np.ndarray | None = None) -> np.ndarray:
    """Logits [T, V] of one pass."""
    batch = Batch(ids, start, hidden)
    code = llama_cpp.llama_decode(context, batch.raw)
    if code != 0:
        raise SystemExit(f"error: llama_decode returned {code}")
    return np.stack([copied(llama_cpp.llama_get_logits_ith(context, i), width) for i in range(len(ids))])


def copied(pointer: object, width: int) -> np.ndarray:
    if not pointer:
        raise SystemExit("error: llama.cpp gave no row where one was asked for")
    return np.ctypeslib.as_array(pointer, (width,)).copy()


def greedy(context: int, last: np.ndarray, start: int, count: int) -> list[int]:
    """The most likely continuation, token by token, after a pass whose last row of logits is ``last``."""
    found = [int(last.argmax())]
    while len(found) < count:
        last = decode(context, np.array(found[-1:]), start + len(found) - 1, len(last))[0]
        found.append(int(last.argmax()))
    return found


def tokenize(model: int, text: str) -> list[int]:
    data = text.encode()
    vocab = llama_cpp.llama_model_get_vocab(model)
    tokens = (ctypes.c_int32 * (len(data) + 8))()
    count = llama_cpp.llama_tokenize(vocab, data, len(data), tokens, len(tokens), False, True)
    return list(tokens[:count])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("tokens", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--greedy", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--text", default="")
    args = parser.parse_args()
    llama_cpp.llama_backend_init()
    ids = np.array(json.loads(args.tokens.read_text()), np.int32)
    model = load(args.model, mtp=True)
    width = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    context = new_context(model, len(ids) + args.greedy, args.threads)
    has_mtp = llama_cpp.llama_model_n_layer_nextn(model) > 0
    if has_mtp:
        llama_cpp_ext.llama_set_embeddings_nextn(context, True, False)
    result = {"logits": decode(context, ids, 0, width)}
    if has_mtp:
        size = llama_cpp.llama_model_n_embd(model)
        rows = [copied(llama_cpp_ext.llama_get_embeddings_nextn_ith(context, i), size) for i in range(len(ids))]
        result["hidden"] = np.stack(rows)
        drafting = new_context(model, len(ids), args.threads, mtp=True)
        result["mtp_logits"] = decode(drafting, ids[1:], 0, width, result["hidden"][:-1])
    result["greedy"] = np.array(greedy(context, result["logits"][-1], len(ids), args.greedy), np.int32)
    result["text_ids"] = np.array(tokenize(model, args.text), np.int32)
    np.savez(args.out, **result)


if __name__ == "__main__":
    main()
