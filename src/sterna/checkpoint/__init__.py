"""Reading and writing checkpoints: safetensors files, tensor names and layouts, checked against the configuration."""

from sterna.checkpoint.checkpoint import Checkpoint
from sterna.checkpoint.manifest import TensorSpec, expected_tensors
from sterna.checkpoint.safetensors import SafetensorsFile, write_safetensors
from sterna.checkpoint.tensor_view import TensorView

__all__ = [
    "Checkpoint",
    "SafetensorsFile",
    "TensorSpec",
    "TensorView",
    "expected_tensors",
    "write_safetensors",
]
