"""`Backend` over the native op set."""

from __future__ import annotations

from sterna.backends.common import ModelBackend
from sterna.backends.host_memory import available_host_bytes
from sterna.backends.native.opset import QUANTIZED_FORMATS, KvDtype, NativeOpSet
from sterna.checkpoint.gguf_checkpoint import GgufCheckpoint
from sterna.checkpoint.opening import LoadableCheckpoint
from sterna.models.vision import VisionSource


class NativeBackend(ModelBackend):
    """The CPU backend. Arguments as for `NativeOpSet`."""

    computes_quantized = True

    def __init__(
        self, *, variant: str | None = None, kv_dtype: KvDtype = "bfloat16", num_threads: int | None = None
    ) -> None:
        self._native_ops = NativeOpSet(variant=variant, kv_dtype=kv_dtype, num_threads=num_threads)
        super().__init__(self._native_ops)

    def available_bytes(self) -> int | None:
        """Free memory of the machine, with what the loaded weights take already."""
        return available_host_bytes(self._weight_bytes)

    def _bytes_of(self, checkpoint: LoadableCheckpoint | VisionSource, name: str) -> int:
        size = super()._bytes_of(checkpoint, name)
        if not isinstance(checkpoint, GgufCheckpoint):
            return size
        form = checkpoint.format_of(name)
        # Some formats of these files grow a little in tiles, their 6-bit scales become bytes.
        _, packed = QUANTIZED_FORMATS.get(form.name, (0, form.block_bytes))
        return size // form.block_bytes * packed

    def variant(self) -> str:
        """Kernel variant and KV type: together with the weights they decide every bit."""
        return f"{self._native_ops.variant} {self._native_ops.kv_dtype}"
