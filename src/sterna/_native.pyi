"""Types of the extension module; `sterna.backends.native` is its only user."""

import numpy as np

class Tensor:
    @property
    def shape(self) -> tuple[int, ...]: ...
    def numpy(self) -> np.ndarray: ...

class Matrix:
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def nbytes(self) -> int: ...

class Experts:
    @property
    def nbytes(self) -> int: ...

class DeltaNetState:
    def __init__(
        self, *, slots: int, value_heads: int, key_dim: int, value_dim: int, channels: int, kernel: int
    ) -> None: ...
    def read(self, slot: int) -> tuple[np.ndarray, np.ndarray]: ...
    def write(self, slot: int, recurrent: np.ndarray, conv: np.ndarray) -> None: ...
    def copy(self, source: int, target: int) -> None: ...

class KvCache:
    def __init__(self, *, blocks: int, block_size: int, kv_heads: int, head_dim: int, float32: bool) -> None: ...
    def read(self, block: int) -> np.ndarray: ...
    def write(self, block: int, data: np.ndarray) -> None: ...
    def copy(self, source: int, target: int) -> None: ...

class Context:
    def __init__(
        self,
        cu_seqlens: np.ndarray,
        context_lens: np.ndarray,
        block_tables: np.ndarray,
        slot_mapping: np.ndarray,
        state_slots: np.ndarray,
        snapshot_at: np.ndarray,
        cos: np.ndarray,
        sin: np.ndarray,
    ) -> None: ...

class Ops:
    def __init__(self, variant: str) -> None: ...
    @property
    def variant(self) -> str: ...
    def pack_linear(self, weight: np.ndarray) -> Matrix: ...
    def pack_experts(self, gate_up_proj: np.ndarray, down_proj: np.ndarray) -> Experts: ...
    def pack_quantized(self, format: str, data: np.ndarray, rows: int, columns: int) -> Matrix: ...
    def pack_quantized_experts(
        self,
        format: str,
        gate_up_proj: np.ndarray,
        down_format: str,
        down_proj: np.ndarray,
        *,
        count: int,
        hidden: int,
        width: int,
    ) -> Experts: ...
    def embedding(self, token_ids: np.ndarray, weight: Matrix) -> Tensor: ...
    def take_rows(self, x: Tensor, rows: np.ndarray) -> Tensor: ...
    def set_rows(self, x: Tensor, rows: np.ndarray, values: np.ndarray) -> None: ...
    def concat(self, a: Tensor, b: Tensor) -> Tensor: ...
    def add(self, x: Tensor, y: Tensor) -> None: ...
    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor: ...
    def linear(self, x: Tensor, weight: Matrix) -> Tensor: ...
    def sparse_moe(
        self,
        u: Tensor,
        gate: Matrix,
        experts: Experts,
        shared_gate_proj: Matrix,
        shared_up_proj: Matrix,
        shared_down_proj: Matrix,
        shared_expert_gate: Matrix,
        top_k: int,
    ) -> Tensor: ...
    def gated_delta_net(
        self,
        u: Tensor,
        in_proj_qkv: Matrix,
        in_proj_z: Matrix,
        in_proj_b: Matrix,
        in_proj_a: Matrix,
        conv1d: Tensor,
        A_log: Tensor,
        dt_bias: Tensor,
        norm: Tensor,
        out_proj: Matrix,
        state: DeltaNetState,
        context: Context,
        key_heads: int,
        eps: float,
    ) -> Tensor: ...
    def gqa_attention(
        self,
        u: Tensor,
        q_proj: Matrix,
        k_proj: Matrix,
        v_proj: Matrix,
        o_proj: Matrix,
        q_norm: Tensor,
        k_norm: Tensor,
        cache: KvCache,
        context: Context,
        heads: int,
        eps: float,
    ) -> Tensor: ...

def tensor(array: np.ndarray) -> Tensor: ...
def variants() -> list[tuple[str, str, bool]]: ...
def num_threads() -> int: ...
def set_num_threads(threads: int) -> None: ...
def set_fill_nan(on: bool) -> None: ...
