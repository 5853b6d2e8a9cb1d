"""SGMCMC: devinterp's optimizer and its factories, over our samplers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError, ArgumentTypeError
from .base import Langevin
from .samplers import SGNHT, given

RMSPROP = {"alpha": 0.99, "eps": 0.1}
CUSTOM = "is computed in fused kernels, which cannot call Python: "


class SGMCMC(Langevin):
    """SGLD or RMSprop-SGLD with devinterp 2.0.1's arguments; the factories `sgld`, `rmsprop_sgld`, `sgnht` are easier.

    prior: None; a number, the localization at the weights it is constructed with; 'initial', localization 1; or
    centre tensors, one a parameter, towards which localization 1 pulls. preconditioner: None or 'identity' for
    SGLD, 'rmsprop' with preconditioner_kwargs alpha and eps. Groups may have their own, and `localization`,
    `weight_decay`. nbeta is required. The other arguments are those of `SGLD`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float = 0.01,
        noise_level: float = 1.0,
        nbeta: float | None = None,
        prior: Any = None,
        preconditioner: Any = "identity",
        preconditioner_kwargs: dict[str, Any] | None = None,
        bounding_box_size: float | None = None,
        mask: Any = None,
        save_metrics: bool = False,
        sketch_dim: int | None = None,
        sketch_seed: int = 0,
        localization: float = 0.0,
        weight_decay: float = 0.0,
        selection: Any = None,
        seed: int = 0,
        chain: int = 0,
        backend: str = "auto",
        state: str = "split",
        noise: str = "gaussian",
    ) -> None:
        self._options = {
            "prior": prior,
            "preconditioner": preconditioner,
            "preconditioner_kwargs": preconditioner_kwargs,
        }
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

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters; a group may have its own `prior`, `preconditioner` and `mask`."""
        if not isinstance(param_group, dict):
            raise ArgumentTypeError(f"param_group is a {type(param_group).__name__}: give a dictionary")
        group = dict(param_group)
        options = {name: group.pop(name, value) for name, value in self._options.items()}
        strength = group.get("localization", self.defaults["localization"])
        centres = None
        if options["prior"] is not None:
            centres = _prior(group, options["prior"], strength)
        _preconditioner(group, options["preconditioner"], options["preconditioner_kwargs"] or {})
        if centres is not None:
            if (
                self.save_metrics
                or group.get("bounding_box_size", self.defaults["bounding_box_size"]) is not None
            ):
                raise ArgumentError(
                    "prior has centre tensors, the bounding box and metrics are about the initial weights: "
                    "use one of them"
                )
            group["params"] = _listed(group["params"])
            if len(centres) != len(group["params"]):
                raise ArgumentError(
                    f"prior has {len(centres)} centres for {len(group['params'])} params: give one each"
                )
            for entry, centre in zip(group["params"], centres, strict=True):
                p = entry[-1] if isinstance(entry, tuple) else entry  # or (name, tensor)
                if isinstance(p, Tensor) and centre.shape != p.shape:
                    raise ArgumentError(
                        f"prior has a centre of shape {tuple(centre.shape)} for a parameter of {tuple(p.shape)}"
                    )
        super().add_param_group(group)
        for p, centre in zip(self.param_groups[-1]["params"], centres or [], strict=False):
            self.state[p]["anchor"] = centre.detach().to(p.device, p.dtype, copy=True).contiguous()

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_options": self._options}

    @classmethod
    def sgld(
        cls,
        params: Iterable[Any],
        lr: float = 0.01,
        noise_level: float = 1.0,
        weight_decay: float = 0.0,
        localization: float = 0.0,
        nbeta: float | None = None,
        bounding_box_size: float | None = None,
        mask: Any = None,
        save_metrics: bool = False,
        sketch_dim: int | None = None,
        sketch_seed: int = 0,
        **ours: Any,
    ) -> SGMCMC:
        """SGLD with localization; see `llc_fast.SGLD`. ours: seed, chain, backend, state, noise, selection."""
        return cls(
            params,
            lr=lr,
            noise_level=noise_level,
            weight_decay=weight_decay,
            localization=localization,
            nbeta=nbeta,
            bounding_box_size=bounding_box_size,
            mask=mask,
            save_metrics=save_metrics,
            sketch_dim=sketch_dim,
            sketch_seed=sketch_seed,
            **ours,
        )

    @classmethod
    def rmsprop_sgld(
        cls,
        params: Iterable[Any],
        lr: float = 0.01,
        noise_level: float = 1.0,
        weight_decay: float = 0.0,
        localization: float = 0.0,
        nbeta: float | None = None,
        alpha: float = 0.99,
        eps: float = 0.1,
        add_grad_correction: bool = False,
        bounding_box_size: float | None = None,
        mask: Any = None,
        save_metrics: bool = False,
        sketch_dim: int | None = None,
        sketch_seed: int = 0,
        **ours: Any,
    ) -> SGMCMC:
        """SGLD preconditioned by RMSprop; see `llc_fast.RMSpropSGLD`."""
        return cls(
            params,
            lr=lr,
            noise_level=noise_level,
            weight_decay=weight_decay,
            localization=localization,
            nbeta=nbeta,
            preconditioner="rmsprop",
            preconditioner_kwargs={"alpha": alpha, "eps": eps, "add_grad_correction": add_grad_correction},
            bounding_box_size=bounding_box_size,
            mask=mask,
            save_metrics=save_metrics,
            sketch_dim=sketch_dim,
            sketch_seed=sketch_seed,
            **ours,
        )

    @classmethod
    def sgnht(
        cls,
        params: Iterable[Any],
        lr: float = 0.01,
        diffusion_factor: float = 0.01,
        nbeta: float | None = None,
        bounding_box_size: float | None = None,
        save_metrics: bool = False,
        sketch_dim: int | None = None,
        sketch_seed: int = 0,
        **ours: Any,
    ) -> SGNHT:
        """The thermostat of `llc_fast.SGNHT`; devinterp's of this name is SGLD with other noise."""
        return SGNHT(
            params,
            lr,
            diffusion_factor,
            bounding_box_size,
            nbeta=nbeta,
            save_metrics=save_metrics,
            sketch_dim=sketch_dim,
            sketch_seed=sketch_seed,
            **ours,
        )

    @classmethod
    def get_method(cls, method: str) -> Callable[..., Langevin]:
        """The factory of a name: 'sgld', 'rmsprop_sgld' or 'sgnht'."""
        methods: dict[str, Callable[..., Langevin]] = {
            "sgld": cls.sgld,
            "rmsprop_sgld": cls.rmsprop_sgld,
            "sgnht": cls.sgnht,
        }
        if method not in methods:
            raise ArgumentError(f"method is {method!r}: use one of {', '.join(methods)}")
        return methods[method]

    def get_params(self) -> Iterable[Tensor]:
        """All parameters, group by group."""
        return (p for group in self.param_groups for p in group["params"])

    @property
    def device(self) -> torch.device:
        """Of the first parameter."""
        return next(iter(self.get_params())).device


def _listed(params: Any) -> list[Any]:
    return [params] if isinstance(params, Tensor) else list(params)


def _prior(group: dict[str, Any], prior: Any, strength: float) -> list[Tensor] | None:
    """Put a prior's strength into a group; returns its centres, None for the initial weights."""
    if isinstance(prior, Real) and not isinstance(prior, bool):
        group["localization"] = prior
        return None
    group["localization"] = strength or 1.0
    if prior == "initial" if isinstance(prior, str) else False:
        return None
    centres = [prior] if isinstance(prior, Tensor) else None
    if centres is None and isinstance(prior, list | tuple):
        centres = list(prior)
    if centres is None or not all(isinstance(centre, Tensor) for centre in centres):
        raise ArgumentTypeError(
            f"prior is {prior!r}: a prior {CUSTOM}give None, a number, 'initial' or centre tensors"
        )
    return centres


def _preconditioner(group: dict[str, Any], preconditioner: Any, options: dict[str, Any]) -> None:
    """Put a preconditioner's sampler and numbers into a group."""
    if preconditioner is None or preconditioner == "identity":
        if options:
            raise ArgumentError(f"preconditioner_kwargs has {sorted(options)[0]!r}: 'identity' takes none")
        group["sampler"] = "sgld"
        return
    if not isinstance(preconditioner, str) or preconditioner != "rmsprop":
        raise ArgumentTypeError(
            f"preconditioner is {preconditioner!r}: a preconditioner {CUSTOM}give 'identity' or 'rmsprop'"
        )
    options = dict(options)
    if options.pop("add_grad_correction", False):
        raise ArgumentError(
            "add_grad_correction is True: the term of G's derivative is not computed, give False"
        )
    unknown = sorted(options.keys() - RMSPROP.keys())
    if unknown:
        raise ArgumentError(f"preconditioner_kwargs has {unknown[0]!r}: 'rmsprop' takes alpha and eps")
    own = {name: group.get(name, default) for name, default in RMSPROP.items()}
    group |= {"sampler": "rmsprop_sgld"} | own | options
