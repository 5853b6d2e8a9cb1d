"""Norms and dot products of what a step adds up, from its sums; the same quantities as devinterp's Metrics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from .samplers import Sampler
from .scalars import Scalars
from .sums import INDEX


@dataclass
class Metrics:
    """Sizes of the parts of one update, each a tensor of shape (1,): w <- w - (scaled_grad + prior) + noise.

    Norms: scaled_grad, the gradient's part after preconditioning; unscaled_grad, before; localization and
    weight_decay, the prior's parts; noise; distance, |w - w0| before the step. For samplers with a velocity these
    are the parts of its change. Dot products: of scaled_grad, of localization + weight_decay, of noise. numel: how
    many weights moved, an int on the CPU and after `aggregate`, until then a tensor.
    """

    NORM_FIELDS: ClassVar[tuple[str, ...]] = (
        "scaled_grad",
        "unscaled_grad",
        "localization",
        "weight_decay",
        "noise",
        "distance",
    )
    DOT_FIELDS: ClassVar[tuple[str, ...]] = ("dot_grad_prior", "dot_grad_noise", "dot_prior_noise")

    scaled_grad: Tensor
    unscaled_grad: Tensor
    localization: Tensor
    weight_decay: Tensor
    noise: Tensor
    distance: Tensor
    dot_grad_prior: Tensor
    dot_grad_noise: Tensor
    dot_prior_noise: Tensor
    numel: int | Tensor = 0

    @property
    def prior(self) -> Tensor:
        """Norm of localization and weight decay as two parts: sqrt(localization^2 + weight_decay^2)."""
        return (self.localization.square() + self.weight_decay.square()).sqrt()

    def to(self, device: torch.device | str | int) -> Metrics:
        """The same on another device."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return Metrics(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in moved.items()})

    @staticmethod
    def aggregate(parts: Iterable[Metrics]) -> Metrics:
        """Those of several disjoint sets of parameters together, on the CPU."""
        parts = [part.to("cpu") for part in parts]
        norms = {
            name: torch.stack([getattr(part, name) for part in parts]).square().sum(dim=0).sqrt()
            for name in Metrics.NORM_FIELDS
        }
        dots = {
            name: torch.stack([getattr(part, name) for part in parts]).sum(dim=0)
            for name in Metrics.DOT_FIELDS
        }
        return Metrics(**norms, **dots, numel=sum(int(part.numel) for part in parts))


def metrics(total: Tensor, s: Scalars, sampler: Sampler) -> Metrics:
    """The metrics of a step from its sums, fp64 (24,), without synchronisation."""
    pre = sampler.preconditioner is not None

    def at(name: str, preconditioned: bool = pre) -> Tensor:
        return total[INDEX[f"G_{name}" if preconditioned else name]].view(1)

    half = s.lr if s.friction is not None else s.lr / 2
    noise = s.c3 if s.friction is not None else s.c2
    nbeta, gamma, decay = s.nbeta, s.localization, s.weight_decay

    def size(factor: float, square: Tensor) -> Tensor:
        return (abs(factor) * square.clamp(min=0.0).sqrt()).float()

    prior = gamma * at("gd") + decay * at("gw")
    return Metrics(
        scaled_grad=size(half * nbeta, at("g2")),
        unscaled_grad=size(half * nbeta, at("g2", False)),
        localization=size(half * gamma, at("d2")),
        weight_decay=size(half * decay, at("w2")),
        noise=size(noise, at("z2")),
        distance=size(1.0, at("d2", False)),
        dot_grad_prior=(half * half * nbeta * prior).float(),
        dot_grad_noise=(half * nbeta * noise * at("gz")).float(),
        dot_prior_noise=(half * noise * (gamma * at("dz") + decay * at("wz"))).float(),
        numel=total[INDEX["n"]],
    )


def virial(total: Tensor, s: Scalars) -> Tensor:
    """The mean of d.a, a free thermometer: at equilibrium of SGLD on a quadratic the mean of 1/(1 - lr a_i/4).

    total: sums of one or more steps, fp64 (..., 24).
    """
    d_dot_a = s.nbeta * total[..., INDEX["gd"]] + s.localization * total[..., INDEX["d2"]]
    d_dot_a = d_dot_a + s.weight_decay * total[..., INDEX["dw"]]
    return d_dot_a / total[..., INDEX["n"]]


def control(total: Tensor, s: Scalars) -> Tensor:
    """z.(w + c1 a - w0), a control variate whose mean is 0 at any step size; total: fp64 (..., 24).

    With a preconditioner G it is sqrt(G) z.(w + c1 G a - w0).
    """
    names = ("dz", "gz", "wz")
    dz, gz, wz = (total[..., INDEX[name]] for name in names)
    if s.eps:
        first = total[..., INDEX["half_dz"]]
        dz, gz, wz = (total[..., INDEX[f"G_{name}"]] for name in names)
    else:
        first = dz
    return first + s.c1 * (s.nbeta * gz + s.localization * dz + s.weight_decay * wz)
