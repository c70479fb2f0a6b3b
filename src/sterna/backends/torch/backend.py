"""`Backend` over the torch op set, on the CPU or one CUDA device."""

from __future__ import annotations

from sterna.backends.common import ModelBackend
from sterna.backends.host_memory import available_host_bytes
from sterna.errors import BackendError


class TorchBackend(ModelBackend):
    """Float32 on ``device`` (``cpu``, ``cuda``, ``cuda:N``); without torch or the device a `BackendError`."""

    weight_itemsize = 4

    def __init__(self, device: str = "cpu") -> None:
        try:
            import torch

            from sterna.backends.torch.opset import TorchOps
        except ImportError as error:
            raise BackendError(f"torch cannot be imported ({error})", hint="install sterna[gpu]") from error
        try:
            self.device = torch.device(device)
            torch.empty(1, device=self.device)
        except (RuntimeError, AssertionError) as error:
            first_line = str(error).splitlines()[0]
            raise BackendError(
                f"torch cannot use the device {device!r} ({first_line})",
                hint="use cpu, or cuda on a machine with a GPU",
            ) from error
        super().__init__(TorchOps(self.device))

    def available_bytes(self) -> int | None:
        """Free memory of the device, with what the loaded weights take already."""
        import torch

        if self.device.type != "cuda":
            return available_host_bytes(self._weight_bytes)
        return int(torch.cuda.mem_get_info(self.device)[0]) + self._weight_bytes

    def variant(self) -> str:
        """Version of torch and kind of device."""
        import torch

        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        return f"torch {torch.__version__} {name} float32"
