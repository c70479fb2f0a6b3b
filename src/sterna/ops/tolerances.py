"""Every tolerance of the tests by name: equal everywhere, with its reason."""

# Largest difference of float32 logits to the golden reference, whose own float32 rounding is about 3e-5 (spec §10).
GOLDEN_LOGITS = 1e-4
# Two float32 computations of the same logits in different order: prefill whole or in pieces, backend against backend.
FLOAT32_LOGITS = 1e-4
# One op in float32 against its float64 oracle, relative to the largest value of the result.
FLOAT32_OP = 2e-5
# The chunked delta rule against the recurrence, both in float64.
FLOAT64_CHUNKED = 1e-10
# A deviation from the specification must move golden logits by at least this much (spec §10: 0.24 and more).
NEGATIVE_CONTROL = 0.1
# Relative difference of YaRN inverse frequencies to the reference, which computes them in float32.
YARN_FREQUENCIES = 2e-7
# Normalised pixels (-1 to 1) against a processor that scales and centres in float32, in another order.
PIXELS = 1e-6
# 8-bit levels of video frames against torchvision, whose bicubic resampling rounds between its two passes differently.
VIDEO_LEVELS = 2
# Vision features of the golden tower (values up to about 2) against the reference, which computes in float32.
GOLDEN_FEATURES = 1e-5
