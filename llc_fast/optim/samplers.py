"""SGLD, RMSpropSGLD, SGHMC and SGNHT."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from ..scalars import check_scalar
from ..types import Selection
from .base import Langevin


def given(**settings: Any) -> dict[str, Any]:
    """Defaults of groups; nbeta is left out where it was not given, which is then reported as missing."""
    return {name: value for name, value in settings.items() if name != "nbeta" or value is not None}


class SGLD(Langevin):
    """Stochastic gradient Langevin dynamics, localized at the weights it is constructed with.

    w <- w - lr/2 (nbeta g + weight_decay w + localization (w - w0)) + sqrt(lr) noise_level z, clamped to
    w0 +- bounding_box_size if that is given (Welling & Teh 2011; Lau et al. 2023, arXiv 2308.12108).

    params: tensors, (name, tensor) pairs, or groups of either. Names, where all have one, count the noise by
    their sorted order, else positions do: give all of a model's parameters. lr: step size eps. nbeta: inverse
    temperature times sample size, required. seed, chain: unsigned 64-bit, the noise's only source. Parameters
    with requires_grad=False stay; ones without a gradient move by prior and noise.
    mask: a boolean tensor for each parameter of a group (None: all of it), outside of which nothing moves.
    selection: of named parameters, from `llc_fast.select`; its table counts the noise. state: of bf16 parameters:
    "split" keeps an int16 remainder, "sr" rounds stochastically, where that does not heat the chain (`notes` says
    where it would). fp16 parameters get an fp32 master. noise: "gaussian", or the cheaper "ih4".
    save_metrics: norms and dot products of each step's parts, from the same pass. sketch_dim, sketch_seed: count
    sketches of them. Raises ArgumentError and ArgumentTypeError naming the argument.

    >>> import torch
    >>> layer = torch.nn.Linear(2, 2)
    >>> sampler = SGLD(layer.named_parameters(), lr=1e-4, nbeta=30.0, localization=100.0, seed=7)
    >>> layer(torch.ones(1, 2)).sum().backward()
    >>> sampler.step()
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        *,
        nbeta: float | None = None,
        localization: float = 0.0,
        weight_decay: float = 0.0,
        noise_level: float = 1.0,
        bounding_box_size: float | None = None,
        mask: Any = None,
        save_metrics: bool = False,
        sketch_dim: int | None = None,
        sketch_seed: int = 0,
        selection: Selection | None = None,
        seed: int = 0,
        chain: int = 0,
        backend: str = "auto",
        state: str = "split",
        noise: str = "gaussian",
    ) -> None:
        super().__init__(
            params,
            given(
                sampler="sgld",
                lr=lr,
                nbeta=nbeta,
                localization=localization,
                weight_decay=weight_decay,
                noise_level=noise_level,
                bounding_box_size=bounding_box_size,
            ),
            mask=mask,
            save_metrics=save_metrics,
            sketch_dim=sketch_dim,
            sketch_seed=sketch_seed,
            selection=selection,
            seed=seed,
            chain=chain,
            backend=backend,
            state=state,
            noise=noise,
        )


class RMSpropSGLD(Langevin):
    """SGLD preconditioned by a running mean square V of the loss gradient (Li et al. 2016, arXiv 1512.07666).

    V <- alpha V + (1 - alpha) g^2, G = 1/(sqrt(V) + eps); the drift of `SGLD` is scaled by G, its noise by
    sqrt(G). The term of G's derivative is left out, as is usual: where V moves fast the samples are biased.
    The other arguments are those of `SGLD`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        *,
        nbeta: float | None = None,
        localization: float = 0.0,
        weight_decay: float = 0.0,
        noise_level: float = 1.0,
        alpha: float = 0.99,
        eps: float = 0.1,
        bounding_box_size: float | None = None,
        mask: Any = None,
        save_metrics: bool = False,
        sketch_dim: int | None = None,
        sketch_seed: int = 0,
        selection: Selection | None = None,
        seed: int = 0,
        chain: int = 0,
        backend: str = "auto",
        state: str = "split",
        noise: str = "gaussian",
    ) -> None:
        super().__init__(
            params,
            given(
                sampler="rmsprop_sgld",
                lr=lr,
                nbeta=nbeta,
                localization=localization,
                weight_decay=weight_decay,
                noise_level=noise_level,
                alpha=alpha,
                eps=eps,
                bounding_box_size=bounding_box_size,
            ),
            mask=mask,
            save_metrics=save_metrics,
            sketch_dim=sketch_dim,
            sketch_seed=sketch_seed,
            selection=selection,
            seed=seed,
            chain=chain,
            backend=backend,
            state=state,
            noise=noise,
        )


class SGHMC(Langevin):
    """Stochastic gradient Hamiltonian Monte Carlo with friction (Chen et al. 2014, arXiv 1402.4102).

    v <- v - (lr a + friction v) + sqrt(2 friction lr) noise_level z, w <- w + v, with the drift a of `SGLD`; at the
    box v changes sign. v starts at 0. lr is the square of the paper's step: friction 1 is SGLD at twice the lr.
    The other arguments are those of `SGLD`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        *,
        nbeta: float | None = None,
        localization: float = 0.0,
        weight_decay: float = 0.0,
        noise_level: float = 1.0,
        friction: float = 0.1,
        bounding_box_size: float | None = None,
        mask: Any = None,
        save_metrics: bool = False,
        sketch_dim: int | None = None,
        sketch_seed: int = 0,
        selection: Selection | None = None,
        seed: int = 0,
        chain: int = 0,
        backend: str = "auto",
        state: str = "split",
        noise: str = "gaussian",
    ) -> None:
        super().__init__(
            params,
            given(
                sampler="sghmc",
                lr=lr,
                nbeta=nbeta,
                localization=localization,
                weight_decay=weight_decay,
                noise_level=noise_level,
                friction=friction,
                bounding_box_size=bounding_box_size,
            ),
            mask=mask,
            save_metrics=save_metrics,
            sketch_dim=sketch_dim,
            sketch_seed=sketch_seed,
            selection=selection,
            seed=seed,
            chain=chain,
            backend=backend,
            state=state,
            noise=noise,
        )


class SGNHT(Langevin):
    """Stochastic gradient Nose-Hoover thermostat (Ding et al. 2014): SGHMC whose friction finds the temperature.

    The friction xi of each group starts at diffusion_factor, and after each step becomes xi + mean(v^2) - lr, over
    the group's selected weights: it takes out the heat that noise of the gradient brings in. `thermostats` reads
    it. lr is the square of the paper's step. The other arguments are those of `SGLD`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        diffusion_factor: float = 0.01,
        bounding_box_size: float | None = None,
        *,
        nbeta: float | None = None,
        localization: float = 0.0,
        weight_decay: float = 0.0,
        noise_level: float = 1.0,
        mask: Any = None,
        save_metrics: bool = False,
        sketch_dim: int | None = None,
        sketch_seed: int = 0,
        selection: Selection | None = None,
        seed: int = 0,
        chain: int = 0,
        backend: str = "auto",
        state: str = "split",
        noise: str = "gaussian",
    ) -> None:
        if check_scalar("diffusion_factor", diffusion_factor) > 0.5:
            warnings.warn(
                f"diffusion_factor is {diffusion_factor}: above 1/2 the thermostat has no resting point",
                stacklevel=2,
            )
        super().__init__(
            params,
            given(
                sampler="sgnht",
                lr=lr,
                nbeta=nbeta,
                localization=localization,
                weight_decay=weight_decay,
                noise_level=noise_level,
                diffusion_factor=diffusion_factor,
                bounding_box_size=bounding_box_size,
            ),
            mask=mask,
            save_metrics=save_metrics,
            sketch_dim=sketch_dim,
            sketch_seed=sketch_seed,
            selection=selection,
            seed=seed,
            chain=chain,
            backend=backend,
            state=state,
            noise=noise,
        )

    def _own(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return ("diffusion_factor",)

    @property
    def thermostats(self) -> list[float]:
        """xi of each group that has weights which move."""
        found = [self._thermostat(group) for group in self.param_groups]
        return [float(t) for t in found if t is not None]
