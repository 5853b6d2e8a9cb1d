"""Compile the kernels ahead of time, without a device: what their PTX and machine code hold can be checked anywhere."""

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .launch import OPTIONS, sizes
from .noise import normal
from .sgld_step import sgld_step

TERMS = range(16)
_ARGUMENTS = {
    "sgld_step": {
        "table": "*i64",
        "first_chunk": "*i32",
        "buckets": "*i32",
        "grads": "*i64",
        "scalars": "*i32",
        "shift": "i32",
    },
    "normal": {"out": "*fp32", "arguments": "*i64"},
}


def variants():
    """Every compiled variant by name: (kernel, signature, constants, elements a thread).

    >>> list(variants())[:2], len(variants())
    (['normal', 'sgld_step_float32_0'], 33)
    """
    threads = 32 * OPTIONS["num_warps"]
    constants = sizes("normal", False)
    table = {"normal": _variant(normal, constants, constants["VECTORS"] * 4 // threads)}
    for storage, width in (("float32", 4), ("split", 8)):
        constants = sizes(storage, False)
        elements = constants["VECTORS"] * width // threads
        for terms in TERMS:
            own = {"TERMS": terms, "SPLIT": storage == "split"}
            table[f"sgld_step_{storage}_{terms}"] = _variant(sgld_step, own | constants, elements)
    return table


def _variant(kernel, constants, elements):
    signature = dict(_ARGUMENTS[kernel.__name__]) | dict.fromkeys(constants, "constexpr")
    return kernel, signature, constants, elements


def compile_variant(name, arch=90, **options):
    """The compiled kernel of a variant, with texts and binaries in `.asm["ptx"]`, `.asm["cubin"]`; arch: sm_<arch>.

    options: of Triton, instead of those of a launch.
    """
    kernel, signature, constants, _ = variants()[name]
    pointers = [i for i, kind in enumerate(signature.values()) if kind.startswith("*")]
    aligned = {(i,): [["tt.divisibility", 16]] for i in pointers}  # as PyTorch's allocations are
    source = ASTSource(kernel, signature, constants, aligned)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=OPTIONS | options)
