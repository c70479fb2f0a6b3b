"""`Backend` over the native op set."""

from __future__ import annotations

from sterna.backends.common import ModelBackend
from sterna.backends.host_memory import available_host_bytes
from sterna.backends.native.opset import KvDtype, NativeOpSet
from sterna.checkpoint.gguf_checkpoint import GgufCheckpoint
from sterna.models.weights import AnyCheckpoint
from sterna.quant.q4_k import Q4_K

# Bytes of a super-block of 256 weights in the tiles of the native backend.
Q4_K_PACKED_BYTES = 148


class NativeBackend(ModelBackend):
    """The CPU backend. Arguments as for `NativeOpSet`."""

    def __init__(
        self, *, variant: str | None = None, kv_dtype: KvDtype = "bfloat16", num_threads: int | None = None
    ) -> None:
        self._native_ops = NativeOpSet(variant=variant, kv_dtype=kv_dtype, num_threads=num_threads)
        super().__init__(self._native_ops)

    def available_bytes(self) -> int | None:
        """Free memory of the machine, with what the loaded weights take already."""
        return available_host_bytes(self._weight_bytes)

    def _bytes_of(self, checkpoint: AnyCheckpoint, name: str) -> int:
        size = super()._bytes_of(checkpoint, name)
        # The 6-bit scales of this format are kept as whole bytes.
        if isinstance(checkpoint, GgufCheckpoint) and checkpoint.format_of(name) is Q4_K:
            return size // Q4_K.block_bytes * Q4_K_PACKED_BYTES
        return size

    def variant(self) -> str:
        """Kernel variant and KV type: together with the weights they decide every bit."""
        return f"{self._native_ops.variant} {self._native_ops.kv_dtype}"
