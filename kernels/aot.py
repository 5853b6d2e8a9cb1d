"""Compile the kernels ahead of time, without a device: what their PTX and machine code hold can be checked anywhere."""

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .launch import OPTIONS, sizes
from .noise import normal
from .samplers import TWINS
from .sgld_step import sgld_step
from .sums import totals

STORAGES = {"float32": 4, "split": 8, "sr": 8, "float16": 8}  # elements of a vector
_ARGUMENTS = {
    "sgld_step": {
        "table": "*i64",
        "first_chunk": "*i32",
        "buckets": "*i32",
        "grads": "*i64",
        "scalars": "*i32",
        "partials": "*fp32",
        "shift": "i32",
    },
    "normal": {"out": "*fp32", "arguments": "*i64"},
    "totals": {"partials": "*fp32", "bounds": "*i64", "sums": "*fp64", "chunks": "i32"},
}


def variants():
    """A selection by name: (kernel, signature, constants, elements a thread); `totals`, which sums up, apart.

    SGLD with every combination of terms in fp32 and split bf16; all else with what a chain mostly has, 6
    (localization and noise), and with everything, 15. Masks and sums once each with every storage and sampler.

    >>> list(variants())[:3], len(variants())
    (['normal', 'normal_ih4', 'sgld_step_float32_0'], 70)
    """
    table = {}
    for kind, name in (("gaussian", "normal"), ("ih4", "normal_ih4")):
        constants = {"KIND": kind} | sizes("normal", interpreted=False)
        table[name] = _variant(normal, constants, constants["VECTORS"] * 4)
    for storage in ("float32", "split"):
        for terms in range(16):
            table[f"sgld_step_{storage}_{terms}"] = _step(storage, terms)
    for storage in STORAGES:
        for sampler in TWINS:
            for terms in (6, 15):
                name = "" if sampler == "Sgld" else f"{sampler.lower()}_"
                table[f"sgld_step_{name}{storage}_{terms}"] = _step(storage, terms, sampler)
        table[f"sgld_step_ih4_{storage}_6"] = _step(storage, 6, kind="ih4")
    for storage, sampler in zip(STORAGES, (*TWINS, TWINS[0]), strict=True):
        name = f"{sampler.lower()}_{storage}"
        table[f"sgld_step_masked_{name}_6"] = _step(storage, 6, sampler, masked=True)
        table[f"sgld_step_sums_{name}_6"] = _step(storage, 6, sampler, sums=True)
        table[f"sgld_step_masked_sums_{name}_15"] = _step(storage, 15, sampler, masked=True, sums=True)
    return table


def _step(storage, terms, sampler="Sgld", kind="gaussian", masked=False, sums=False):
    own = {
        "STORAGE": storage,
        "SAMPLER": sampler,
        "KIND": kind,
        "TERMS": terms,
        "MASKED": masked,
        "SUMS": sums,
    }
    constants = own | sizes(storage, sums, interpreted=False)
    if not sums:
        constants["partials"] = None
    return _variant(sgld_step, constants, constants["VECTORS"] * STORAGES[storage])


def _variant(kernel, constants, elements):
    signature = dict(_ARGUMENTS[kernel.__name__]) | dict.fromkeys(constants, "constexpr")
    return kernel, signature, constants, elements // (32 * OPTIONS["num_warps"])


def compile_variant(name, arch=90, **options):
    """The compiled kernel of a variant, with texts and binaries in `.asm["ptx"]`, `.asm["cubin"]`; arch: sm_<arch>.

    options: of Triton, instead of those of a launch.
    """
    apart = {"totals": _variant(totals, sizes("totals", interpreted=False), 0)}
    kernel, signature, constants, _ = (apart | variants())[name]
    pointers = [i for i, kind in enumerate(signature.values()) if kind.startswith("*")]
    aligned = {(i,): [["tt.divisibility", 16]] for i in pointers}  # as PyTorch's allocations are
    source = ASTSource(kernel, signature, constants, aligned)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=OPTIONS | options)
