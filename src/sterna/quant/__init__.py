"""Weight formats: one file each with its byte layout, reference decoder and, where we write it, encoder; `FORMATS` names them.

Formats of safetensors re-packs that spread one matrix over several tensors are in `fp8`, `gptq`, `awq`, `compressed_tensors` and
`nvfp4`; `sterna.checkpoint.packed_formats` finds and joins their parts.
"""

from sterna.quant.base import Format
from sterna.quant.floats import BF16, F16, F32
from sterna.quant.iq4_xs import IQ4_XS
from sterna.quant.mxfp4 import MXFP4
from sterna.quant.q3_k import Q3_K
from sterna.quant.q4 import Q4, Q4_G64
from sterna.quant.q4_0 import Q4_0
from sterna.quant.q4_k import Q4_K
from sterna.quant.q5_k import Q5_K
from sterna.quant.q6 import Q6
from sterna.quant.q6_k import Q6_K
from sterna.quant.q8 import Q8
from sterna.quant.q8_0 import Q8_0

FORMATS: dict[str, Format] = {
    f.name: f for f in (F32, F16, BF16, Q8, Q6, Q4, Q4_G64, Q4_0, Q8_0, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_XS, MXFP4)
}
"""Every format of one self-contained byte string, by name."""

GGML_TYPES: dict[int, Format] = {f.ggml_type: f for f in FORMATS.values() if f.ggml_type is not None}
"""The same by number in GGUF files."""

__all__ = ["BF16", "F32", "FORMATS", "GGML_TYPES", "Format"]
