"""Noise "v1": Philox4x32-10 counted by blocks of four elements, their normals, and the bits that round."""

import triton
import triton.language as tl

from .table import ROUNDING

_M0 = tl.constexpr(0xD2511F53)
_M1 = tl.constexpr(0xCD9E8D57)
_W0 = tl.constexpr(0x9E3779B9)
_W1 = tl.constexpr(0xBB67AE85)
_BYTES = tl.constexpr(0x00FF00FF)  # every other one of a word


@triton.jit
def words(low, high, step, tensor_id, k0, k1):
    """The random words of blocks `low | high << 32`, uint32; `high` brings the domain in its top byte.

    What the blocks have in common should come as scalars: it stays scalar through the first two rounds.
    """
    x0, x1, x2, x3 = low, high, step, tensor_id
    for _ in tl.static_range(10):
        p0 = x0.to(tl.uint64) * _M0  # one instruction gives both halves, where umulhi needs two
        p1 = x2.to(tl.uint64) * _M1
        x0 = ((p1 >> 32).to(tl.uint32) ^ k0) ^ x1
        x2 = ((p0 >> 32).to(tl.uint32) ^ k1) ^ x3
        x1 = p1.to(tl.uint32)
        x3 = p0.to(tl.uint32)
        k0 += _W0
        k1 += _W1
    return x0, x1, x2, x3


@triton.jit
def gaussian(a, c):
    """Two normals from two words: Box-Muller on an eighth of the circle; every product and sum is rounded."""
    m = (a >> 2).to(tl.int32).to(tl.float32) + 0.5
    bits = m.to(tl.int32, bitcast=True) - (30 << 23)
    k = (bits - 0x3F3504F3) & ~0x7FFFFF  # 2^23 times the exponent, which a float holds
    f = (bits - k).to(tl.float32, bitcast=True) - 1.0
    q = f * 0.2016475796699524 + -0.3236100375652313
    q = q * f + 0.34486448764801025
    q = q * f + -0.3981376588344574
    q = q * f + 0.4994245767593384
    q = q * f + -0.6666942834854126
    q = q * f + 1.0000064373016357
    q = q * f + -2.0
    r = tl.sqrt_rn(k.to(tl.float32) * (-1.3862943611198906 / (1 << 23)) + q * f)
    y = c.to(tl.int32, bitcast=True).to(tl.float32) * 4.656612873077393e-10  # 2^-31
    v = y * y
    s = v * -3.587725950637832e-05 + 0.002489872043952346
    s = s * v + -0.08074536919593811
    s = s * v + 0.7853981256484985
    s = y * s
    k = v * -0.00031888068770058453 + 0.015849916264414787
    k = k * v + -0.3084242641925812
    k = k * v + 1.0
    sign = a << 31  # a & 1: the other half plane
    k = (k.to(tl.uint32, bitcast=True) ^ sign).to(tl.float32, bitcast=True)
    swap = (a & 2) != 0  # the other diagonal
    return r * tl.where(swap, s, k), r * tl.where(swap, k, s)


@triton.jit
def ih4(x):
    """A coarser normal from one word: the sum of its bytes, through a polynomial."""
    pairs = (x & _BYTES) + ((x >> 8) & _BYTES)
    twice = (pairs * ((2 << 16) | 2)) >> 16  # the upper half of a product adds both halves
    t = (twice.to(tl.int32) - 1020).to(tl.float32) * 0.0033829498570412397
    p = t * t
    q = p * 0.00031776257674209774 + -0.002032571006566286
    q = q * p + 0.01667272485792637
    q = q * p + 0.9588397145271301
    return t * q


@triton.jit
def normals(low, high, counter, KIND: tl.constexpr):
    """The four normals of each block; counter: step, tensor_id and the two words of the key."""
    step, tensor_id, k0, k1 = counter
    x0, x1, x2, x3 = words(low, high, step, tensor_id, k0, k1)
    if KIND == "ih4":
        n0, n1, n2, n3 = ih4(x0), ih4(x1), ih4(x2), ih4(x3)
    else:
        n0, n1 = gaussian(x0, x1)
        n2, n3 = gaussian(x2, x3)
    return n0, n1, n2, n3


@triton.jit
def halves(block, high, counter):
    """Two words for each block of four elements, whose halves are their bits to round by; high: of the block."""
    step, tensor_id, k0, k1 = counter
    low = (block >> 1).to(tl.uint32)  # eight elements share a block in this domain
    x0, x1, x2, x3 = words(low, (high >> 1) | (ROUNDING << 24), step, tensor_id, k0, k1)
    second = (block & 1) != 0
    return tl.where(second, x2, x0), tl.where(second, x3, x1)


@triton.jit
def interleave(n0, n1, n2, n3):
    """The normals in element order, along new last axes."""
    return tl.join(tl.join(n0, n2), tl.join(n1, n3))


@triton.jit
def normals_of_vectors(block, counter, KIND: tl.constexpr, N: tl.constexpr, V: tl.constexpr):
    """The normals of N consecutive vectors of V elements from a block on, if they share its upper word."""
    high = (block >> 32).to(tl.uint32)
    if V == 8:  # joined one by one: a two-dimensional block index would be sent through shared memory
        low = block.to(tl.uint32) + (tl.arange(0, N) * 2).to(tl.uint32)
        n0, n1, n2, n3 = normals(low, high, counter, KIND)
        m0, m1, m2, m3 = normals(low + 1, high, counter, KIND)
        z = interleave(tl.join(n0, m0), tl.join(n1, m1), tl.join(n2, m2), tl.join(n3, m3))
    else:
        n0, n1, n2, n3 = normals(block.to(tl.uint32) + tl.arange(0, N).to(tl.uint32), high, counter, KIND)
        z = interleave(n0, n1, n2, n3)
    return tl.reshape(z, (N, V))


@triton.jit
def halves_of_vectors(block, counter, N: tl.constexpr):
    """The bits to round by of N consecutive vectors of eight elements; the block is even."""
    step, tensor_id, k0, k1 = counter
    low = (block >> 1).to(tl.uint32) + tl.arange(0, N).to(tl.uint32)
    high = (block >> 33).to(tl.uint32) | (ROUNDING << 24)
    x0, x1, x2, x3 = words(low, high, step, tensor_id, k0, k1)
    x = tl.reshape(interleave(x0, x1, x2, x3), (N, 4))
    return tl.reshape(tl.join(x & 0xFFFF, x >> 16), (N, 8))


@triton.jit
def normal(out, arguments, KIND: tl.constexpr, VECTORS: tl.constexpr):
    """Fill fp32 `out` with normals; arguments: int64 start, numel, key, step, tensor_id, domain."""
    start = tl.load(arguments)
    numel = tl.load(arguments + 1)
    key = tl.load(arguments + 2)
    step = tl.load(arguments + 3).to(tl.uint32)
    tensor_id = tl.load(arguments + 4).to(tl.uint32)
    domain = tl.load(arguments + 5).to(tl.uint32)
    first = tl.program_id(0).to(tl.int64) * VECTORS
    block = (start >> 2) + first + tl.arange(0, VECTORS)
    high = (block >> 32).to(tl.uint32) | (domain << 24)
    counter = step, tensor_id, key.to(tl.uint32), (key >> 32).to(tl.uint32)
    n0, n1, n2, n3 = normals(block.to(tl.uint32), high, counter, KIND)
    z = tl.reshape(interleave(n0, n1, n2, n3), (VECTORS, 4))
    at = first * 4 + (tl.arange(0, VECTORS) * 4)[:, None] + tl.arange(0, 4)[None, :]
    if ((start & 3) == 0) & ((first + VECTORS) * 4 <= numel):
        tl.store(out + at, z)
    else:
        at -= start & 3
        tl.store(out + at, z, (at >= 0) & (at < numel))
