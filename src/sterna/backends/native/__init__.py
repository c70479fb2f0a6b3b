"""The CPU backend: own kernels for several instruction sets, chosen at run time; bit-exact by construction."""

from sterna.backends.native.backend import NativeBackend
from sterna.backends.native.opset import NativeOpSet
from sterna.backends.native.variants import Variant, choose_variant, variants

__all__ = ["NativeBackend", "NativeOpSet", "Variant", "choose_variant", "variants"]
