"""How large a program is, and what it is compiled with."""

from triton import knobs

INTERPRETED = knobs.runtime.interpret  # when the kernels are defined, which is when they are imported

OPTIONS = {
    "num_warps": 4,
    "enable_fp_fusion": False,  # a fused multiply-add rounds once where the step rounds twice
}
# Sixteen elements a thread: with fewer, the head of the program weighs more; with more, too few warps fit.
_SIZES = {
    "float32": {"VECTORS": 512, "PARTIAL": 128},
    "split": {"VECTORS": 256, "PARTIAL": 128},
    "normal": {"VECTORS": 512},
}
# An operation of the interpreter takes about as long for thousands of elements as for one.
_INTERPRETED_SIZES = {
    "float32": {"VECTORS": 4096, "PARTIAL": 4096},
    "split": {"VECTORS": 4096, "PARTIAL": 8192},
    "normal": {"VECTORS": 16384},
}


def sizes(kind, interpreted=INTERPRETED):
    """Constants of a kernel; kind: a storage of the step, "float32" or "split", or "normal"."""
    return (_INTERPRETED_SIZES if interpreted else _SIZES)[kind]


def options(interpreted=INTERPRETED):
    """Keyword arguments of a launch besides the kernel's own."""
    return {} if interpreted else OPTIONS
