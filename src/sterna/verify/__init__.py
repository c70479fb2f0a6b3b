"""Is this checkpoint the real thing, and do we run it right: hashes, tensors, vectors, then numbers layer by layer."""

from sterna.verify.checks import Check
from sterna.verify.run import VerifyRequest, verify

__all__ = ["Check", "VerifyRequest", "verify"]
