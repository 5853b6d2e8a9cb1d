"""What a chain keeps beside a parameter: where it started, what completes its weights, the sampler's own state."""

from __future__ import annotations

import torch
from torch import Tensor

from .samplers import Sampler
from .shard import full

HEAT = 0.01  # share of the noise that stochastic rounding may add


def heating(p: Tensor, lr: float, noise_level: float = 1.0) -> float:
    """By how much stochastic rounding of bf16 heats an SGLD chain at these weights: D^2 / (6 lr noise_level^2).

    D^2 is the mean squared distance of neighbouring bf16 numbers at p: rounding adds D^2/6 of variance a step to
    the lr noise_level^2 of the noise. Infinite without noise.
    """
    noise = lr * noise_level**2
    if noise == 0.0 or p.numel() == 0:
        return float("inf") if p.numel() else 0.0
    exponent = torch.frexp(
        full(p).detach().float()
    ).exponent  # |w| in [2^(e-1), 2^e), neighbours 2^(e-8) apart
    spacing = torch.exp2(2.0 * (exponent.double() - 8))
    return float(spacing.mean()) / (6.0 * noise)


def start(
    name: str, p: Tensor, sampler: Sampler, state: str, lr: float, noise_level: float
) -> tuple[dict[str, Tensor], str | None]:
    """What is kept for a parameter at a chain's start, by name: anchor, remainder, the sampler's buffer.

    Also says why, where state="sr" is asked for and a remainder is kept all the same.
    """
    kept = {"anchor": p.detach().clone(memory_format=torch.contiguous_format)}
    note = None
    if p.dtype == torch.float16:
        kept["remainder"] = p.detach().float().contiguous()
    if p.dtype == torch.bfloat16:
        if state == "sr":
            note = refusal(name, p, sampler, lr, noise_level)
        if state == "split" or note is not None:
            kept["remainder"] = torch.zeros_like(
                p, dtype=torch.int16, memory_format=torch.contiguous_format, requires_grad=False
            )
    if sampler.buffer is not None:
        wide = torch.float64 if p.dtype == torch.float64 else torch.float32
        kept[sampler.buffer] = torch.zeros_like(
            p, dtype=wide, memory_format=torch.contiguous_format, requires_grad=False
        )
    return kept, note


def refusal(name: str, p: Tensor, sampler: Sampler, lr: float, noise_level: float) -> str | None:
    """Why a tensor is not rounded stochastically, or None."""
    if sampler.name != "sgld":
        return f"{name}: state 'sr' is for SGLD, whose noise is known beforehand; kept in split bf16"
    heat = heating(p, lr, noise_level)
    if heat <= HEAT:
        return None
    amount = "has no noise to hide in" if heat == float("inf") else f"would heat it by {heat:.1%}"
    return f"{name}: stochastic rounding {amount} at this lr; kept in split bf16"
