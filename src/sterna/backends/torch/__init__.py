"""The PyTorch backend (extra: gpu), eager and in float32. torch is imported when a backend is made, not before."""

from sterna.backends.torch.backend import TorchBackend

__all__ = ["TorchBackend"]
