"""Noise "v1": the counter layout and the normals, in plain PyTorch integer and float operations."""

from __future__ import annotations

import torch
from torch import Tensor

KINDS = ("gaussian", "ih4")  # by their codes
STEP_NOISE, ROUNDING, INITIAL_NOISE, BATCH_ORDER = range(4)  # domains of the counter

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_KEY_DOMAIN = 0x4C4C4346  # "LLCF"
_MASK = 0xFFFFFFFF

_LOG = (
    1.0000064373016357,
    -0.6666942834854126,
    0.4994245767593384,
    -0.3981376588344574,
    0.34486448764801025,
    -0.3236100375652313,
    0.2016475796699524,
)
_SIN = (0.7853981256484985, -0.08074536919593811, 0.002489872043952346, -3.587725950637832e-05)
_IH4 = (0.9588397145271301, 0.01667272485792637, -0.002032571006566286, 0.00031776257674209774)
_COS = (1.0, -0.3084242641925812, 0.015849916264414787, -0.00031888068770058453)


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Ten rounds of Philox4x32 on Python integers (Salmon et al. 2011)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def chain_key(seed: int, chain: int) -> tuple[int, int]:
    """The Philox key of a chain; seed and chain are unsigned 64-bit integers."""
    words = philox4x32(
        (chain & _MASK, (chain >> 32) & _MASK, 0, _KEY_DOMAIN), (seed & _MASK, (seed >> 32) & _MASK)
    )
    return words[0], words[1]


def _mul(a: int | Tensor, b: int) -> tuple[Tensor | int, Tensor | int]:
    """High and low words of a 32 x 32 bit product held in int64 (whose overflow keeps the bits)."""
    p = a * b
    return (p >> 32) & _MASK, p & _MASK


def words(
    index: Tensor, key: tuple[int | Tensor, int | Tensor], step: int, tensor_id: int, domain: int
) -> list[Tensor]:
    """The four random words of each block index (int64 tensor), as int64 tensors of 32-bit values.

    key: of all of them, or int64 tensors that broadcast with index.
    """
    x0 = index & _MASK
    x1 = ((index >> 32) & _MASK) | (domain << 24)
    x2 = torch.full_like(index, step)
    x3 = torch.full_like(index, tensor_id)
    k0, k1 = key
    for _ in range(10):
        hi0, lo0 = _mul(x0, _M0)
        hi1, lo1 = _mul(x2, _M1)
        x0, x1, x2, x3 = hi1 ^ x1 ^ k0, lo1, hi0 ^ x3 ^ k1, lo0  # type: ignore[assignment]
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return [x0, x1, x2, x3]


def _signed(word: Tensor) -> Tensor:
    """Reinterpret 32-bit values in int64 as int32."""
    return (word - ((word >> 31) << 32)).to(torch.int32)


def sqrt(x: Tensor) -> Tensor:
    """Correctly rounded square root: float32's own on the CPU is not, float64's rounded once is."""
    return torch.sqrt(x.double()).to(x.dtype)


def horner(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """Polynomial, lowest power first; every product and sum is rounded."""
    q = x * coefficients[-1] + coefficients[-2]
    for c in coefficients[-3::-1]:
        q = q * x + c
    return q


def gaussian(a: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Two fp32 standard normals from two random words (int64 tensors of 32-bit values)."""
    m = (a >> 2).to(torch.float32) + 0.5
    ix = m.view(torch.int32) - (0x3F3504F3 + (30 << 23))
    k = (ix >> 23).to(torch.float32)
    f = ((ix & 0x7FFFFF) + 0x3F3504F3).view(torch.float32) - 1.0
    q = horner(f, _LOG)
    q = q * f + -2.0
    r = sqrt(k * -1.3862943611198906 + q * f)
    y = _signed(c).to(torch.float32) * 2.0**-31
    v = y * y
    s = y * horner(v, _SIN)
    k = horner(v, _COS)
    k = torch.where((a & 1).bool(), -k, k)
    swap = (a & 2).bool()
    return r * torch.where(swap, s, k), r * torch.where(swap, k, s)


def ih4(x: Tensor) -> Tensor:
    """A coarser fp32 normal from one word (int64 tensor): the sum of its bytes, 1,021 atoms, through a polynomial."""
    pairs = (x & 0x00FF00FF) + ((x >> 8) & 0x00FF00FF)
    total = (pairs & 0xFFFF) + (pairs >> 16)
    t = (2 * total - 1020).to(torch.float32) * 0.0033829498570412397
    return t * horner(t * t, _IH4)


def _block_normals(
    block: Tensor, key: tuple[int, int], step: int, tensor_id: int, domain: int, kind: str
) -> Tensor:
    """The four normals of each block, along a new last axis."""
    x0, x1, x2, x3 = words(block, key, step, tensor_id, domain)
    if kind == "ih4":
        return ih4(torch.stack((x0, x1, x2, x3), dim=-1))
    return torch.stack((*gaussian(x0, x1), *gaussian(x2, x3)), dim=-1)


def normal_at(
    index: Tensor,
    key: tuple[int, int],
    *,
    step: int,
    tensor_id: int,
    domain: int = STEP_NOISE,
    kind: str = "gaussian",
) -> Tensor:
    """The normal of each global element index (int64 tensor of any shape), fp32, on its device."""
    flat = index.reshape(-1)
    if flat.numel() and bool((flat[1:] - flat[:-1] == 1).all()):
        first, last = int(flat[0]), int(flat[-1])
        block = torch.arange(first >> 2, (last >> 2) + 1, dtype=torch.int64, device=index.device)
        n = _block_normals(block, key, step, tensor_id, domain, kind).reshape(-1)
        return n[first & 3 : (first & 3) + flat.numel()].reshape(index.shape)
    n = _block_normals(flat >> 2, key, step, tensor_id, domain, kind)
    return n.gather(-1, (flat & 3).unsqueeze(-1)).reshape(index.shape)


def rounding_bits(index: Tensor, key: tuple[int, int], *, step: int, tensor_id: int) -> Tensor:
    """Sixteen random bits of each global element index, as int64: eight elements share a block."""
    x = torch.stack(words(index >> 3, key, step, tensor_id, ROUNDING), dim=-1)
    word = x.gather(-1, ((index & 7) >> 1).unsqueeze(-1)).squeeze(-1)
    return (word >> (16 * (index & 1))) & 0xFFFF
