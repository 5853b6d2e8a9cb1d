"""How large a program is, and what it is compiled with."""

import triton
from triton import knobs

INTERPRETED = knobs.runtime.interpret  # when the kernels are defined, which is when they are imported

# Before 3.6, roots and quotients flush subnormals to 0.
KEEPS_SUBNORMALS = INTERPRETED or tuple(int(n) for n in triton.__version__.split(".")[:2]) >= (3, 6)

OPTIONS = {
    "num_warps": 4,
    "enable_fp_fusion": False,  # a fused multiply-add rounds once where the step rounds twice
}
# Sixteen elements a thread: with fewer, the head of the program weighs more; with more, too few warps fit.
_SIZES = {
    "float32": {"VECTORS": 512, "PARTIAL": 128},
    "split": {"VECTORS": 256, "PARTIAL": 128},
    "sr": {"VECTORS": 256, "PARTIAL": 128},
    "float16": {"VECTORS": 256, "PARTIAL": 128},
    "normal": {"VECTORS": 512},
    "totals": {"WIDTH": 1, "CHUNKS": 4096},
}
# An operation of the interpreter takes about as long for thousands of elements as for one.
_INTERPRETED_SIZES = {
    "float32": {"VECTORS": 4096, "PARTIAL": 4096},
    "split": {"VECTORS": 4096, "PARTIAL": 8192},
    "sr": {"VECTORS": 4096, "PARTIAL": 8192},
    "float16": {"VECTORS": 4096, "PARTIAL": 8192},
    "normal": {"VECTORS": 16384},
    "totals": {"WIDTH": 32, "CHUNKS": 1024},
}


def sizes(kind, sums=False, interpreted=INTERPRETED):
    """Constants of a kernel; kind: a storage of the step, with sums or without, "normal" or "totals"."""
    found = dict((_INTERPRETED_SIZES if interpreted else _SIZES)[kind])
    if sums and not interpreted:  # which take registers too
        found["VECTORS"] //= 2
    return found


def options(interpreted=INTERPRETED):
    """Keyword arguments of a launch besides the kernel's own."""
    return {} if interpreted else OPTIONS
