"""The regular part of a step: full vectors of sixteen bytes, without a branch."""

import triton
import triton.language as tl

from .memory import mask_of_vectors, vectors
from .noise import halves_of_vectors, normals_of_vectors
from .samplers import update
from .storage import load_vectors, store_vectors
from .sums import observe
from .table import BOX, LOCALIZATION, NOISE


@triton.jit
def step_vectors(
    address,
    mask,
    block,
    counter,
    scalars,
    STORAGE: tl.constexpr,
    SAMPLER: tl.constexpr,
    KIND: tl.constexpr,
    TERMS: tl.constexpr,
    MASKED: tl.constexpr,
    SUMS: tl.constexpr,
    N: tl.constexpr,
):
    """N full vectors of one row, at aligned addresses, whose Philox blocks share their upper word; their sums."""
    V: tl.constexpr = 4 if STORAGE == "float32" else 8
    ANCHOR: tl.constexpr = SUMS or ((LOCALIZATION | BOX) & TERMS) != 0
    STATE: tl.constexpr = SAMPLER != "Sgld"
    w, g, w0, hi, lo = load_vectors(address, STORAGE, ANCHOR, N)
    aux = w
    if STATE:
        aux = tl.load(vectors(address[4], tl.float32, N, V))
    z = tl.zeros((N, V), tl.float32)
    if NOISE & TERMS:
        z = normals_of_vectors(block, counter, KIND, N, V)
    out, after = update(w, g, w0, z, aux, scalars, TERMS, SAMPLER)
    keep = tl.full((N, V), True, tl.int1)
    if MASKED:
        keep = mask_of_vectors(mask[0], mask[1], N, V)
    h = z
    if STORAGE == "sr":
        h = halves_of_vectors(block, counter, N)
    if STATE:
        tl.store(vectors(address[4], tl.float32, N, V), tl.where(keep, after, aux) if MASKED else after)
    store_vectors(address, out, h, keep, w, hi, lo, STORAGE, MASKED, N)
    sums = tl.zeros((32,), tl.float32)
    if SUMS:
        sums = observe(w, g, w0, z, after, keep, scalars, TERMS, SAMPLER)
    return sums
