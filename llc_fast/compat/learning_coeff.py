"""devinterp 1.3.2's `estimate_learning_coeff`, on our chains."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .. import diagnostics
from ..errors import ArgumentError, ArgumentTypeError, DataError
from ..estimate import estimate_llc
from ..masked import selection_of
from ..nbeta import default_nbeta
from ..optim import SGLD
from ..results import LLCResult
from ..sampling import kept_rng
from ..scalars import check_integer, check_scalar
from .methods import translate
from .watch import Watched, check_callbacks


def estimate_learning_coeff_with_summary(
    model: nn.Module,
    loader: Iterable[Any],
    callbacks: Sequence[Callable[..., Any]] = (),
    evaluate: Callable[[nn.Module, Any], Any] | None = None,
    sampling_method: Any = SGLD,
    optimizer_kwargs: Mapping[str, Any] | None = None,
    num_draws: int = 100,
    num_chains: int = 10,
    num_burnin_steps: int = 0,
    num_steps_bw_draws: int = 1,
    init_loss: float | None = None,
    grad_accum_steps: int = 1,
    cores: int | Sequence[Any] = 1,
    seed: int | Sequence[int] | None = None,
    device: torch.device | str = "cpu",
    gpu_idxs: Sequence[int] | None = None,
    verbose: bool = True,
    optimize_over_per_model_param: Mapping[str, Tensor] | None = None,
    online: bool = False,
    use_amp: bool = False,
    *,
    eval_mode: bool = True,
) -> dict[str, Any]:
    """The local learning coefficient, with devinterp 1.3.2's arguments and the keys of its results.

    loader: batches; a chain passes over the first that it needs, in orders of its own. evaluate(model, batch): the
    mean loss, or (loss, results); None: model(batch). callbacks: called at every draw with what 1.3.2 gave them, less
    the optimizer: weights are those that `loss` was taken at. sampling_method: a class of devinterp or ours, or a
    factory of SGMCMC, known by its name. optimizer_kwargs: lr (.01), nbeta (n / log n of the batch), localization (0)
    and so on. init_loss: what losses are compared with, instead of those of the same batches at w0.
    optimize_over_per_model_param: a boolean mask for each parameter. cores, gpu_idxs: without effect on the results;
    chains run on `device`. seed: a list counts as a whole. eval_mode: ours; 1.3.2 sampled in training mode.

    Returns "llc/mean", "llc/std" (ddof 1), "llc-chain/i", "loss/trace" (chains, draws); online "init_loss",
    "llc/means", "llc/stds", "llc/trace", "loss/trace". Beside them "llc/mcse", "llc/interval_95", "llc/verdict",
    "llc/notes" and "llc/dead_chains", all of `llc_fast.estimate_llc`. Dead chains are NaN and not counted.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(f"model is a {type(model).__name__}: give a torch.nn.Module")
    if evaluate is not None and not callable(evaluate):
        raise ArgumentTypeError(
            f"evaluate is a {type(evaluate).__name__}: give a function of model and batch"
        )
    check_callbacks(callbacks)
    device = _device(device, gpu_idxs, cores)
    draws = check_integer("num_draws", num_draws, minimum=1)
    chains = check_integer("num_chains", num_chains, minimum=1)
    burnin = check_integer("num_burnin_steps", num_burnin_steps)
    thinning = check_integer("num_steps_bw_draws", num_steps_bw_draws, minimum=1)
    accumulated = check_integer("grad_accum_steps", grad_accum_steps, minimum=1)
    start = None if init_loss is None else check_scalar("init_loss", init_loss, minimum=-float("inf"))
    settings = translate(sampling_method, optimizer_kwargs)
    if "nbeta" not in settings:
        settings["nbeta"] = _default_nbeta(loader, accumulated)
    if use_amp and device.type == "cpu":
        warnings.warn("use_amp is for GPUs: it is left out", stacklevel=2)
    where = [(p, p.device) for p in model.parameters()]
    component: Any = "full"
    if optimize_over_per_model_param:
        component = _component(model, optimize_over_per_model_param)
    with kept_rng():
        groups = _groups(loader, accumulated, burnin + draws * thinning)
    watched = Watched(
        groups,
        evaluate or (lambda model, batch: model(batch)),
        device=device,
        use_amp=bool(use_amp) and device.type != "cpu",
        callbacks=callbacks,
        draws={burnin + i * thinning: i for i in range(draws)},
        num_chains=chains,
        init_loss=start,
        given={
            "loader": loader,
            "evaluate": evaluate,
            "callbacks": callbacks,
            "optimizer_kwargs": dict(optimizer_kwargs or {}),
            "sampling_method": sampling_method,
            "optimize_over_per_model_param": optimize_over_per_model_param,
            "num_draws": draws,
            "num_burnin_steps": burnin,
            "num_steps_bw_draws": thinning,
            "grad_accum_steps": accumulated,
            "seed": seed,
            "device": device,
            "use_amp": use_amp,
            "verbose": verbose,
        },
        verbose=bool(verbose),
    )
    number = _seed(seed, chains)
    try:
        model.to(device)
        result = estimate_llc(
            model,
            watched.loss,
            groups,
            component=component,
            num_chains=chains,
            num_draws=draws,
            num_burnin_steps=burnin,
            num_steps_bw_draws=thinning,
            seed=number,
            eval_mode=eval_mode,
            stacked=False,  # callbacks look at the model's own weights
            progress=watched.step,
            **settings,
        )
    finally:
        watched.close()
        if len({place for _, place in where}) == 1:
            model.to(where[0][1])
    return _summary(result, watched, settings["nbeta"], start, online, callbacks)


def estimate_learning_coeff(
    model: nn.Module,
    loader: Iterable[Any],
    callbacks: Sequence[Callable[..., Any]] = (),
    evaluate: Callable[[nn.Module, Any], Any] | None = None,
    sampling_method: Any = SGLD,
    optimizer_kwargs: Mapping[str, Any] | None = None,
    num_draws: int = 100,
    num_chains: int = 10,
    num_burnin_steps: int = 0,
    num_steps_bw_draws: int = 1,
    init_loss: float | None = None,
    grad_accum_steps: int = 1,
    cores: int | Sequence[Any] = 1,
    seed: int | Sequence[int] | None = None,
    device: torch.device | str = "cpu",
    verbose: bool = True,
    optimize_over_per_model_param: Mapping[str, Tensor] | None = None,
    *,
    eval_mode: bool = True,
) -> float:
    """The "llc/mean" of `estimate_learning_coeff_with_summary`."""
    arguments = dict(locals())
    return float(estimate_learning_coeff_with_summary(**arguments)["llc/mean"])


def _summary(
    result: LLCResult,
    watched: Watched,
    nbeta: float,
    start: float | None,
    online: bool,
    callbacks: Sequence[Callable[..., Any]],
) -> dict[str, Any]:
    """The dictionary of 1.3.2, and ours beside it."""
    live = [chain for chain in range(len(watched.losses)) if chain not in result.dead_chains]
    trace = nbeta * (watched.gains if start is None else watched.losses - start)
    error, dof, (low, high) = result.mcse, result.dof, result.interval()
    if start is not None:
        error, dof = diagnostics.mcse(trace[live])
        half = diagnostics.t_quantile(0.975, dof) * error
        low, high = trace[live].mean() - half, trace[live].mean() + half
    if online:
        found: dict[str, Any] = {
            "init_loss": result.init_loss if start is None else start,
            "llc/means": trace[live].mean(axis=0),
            "llc/stds": _std(trace[live]),
            "llc/trace": trace,
        }
    else:
        per_chain = np.full(len(trace), np.nan)
        per_chain[live] = trace[live].mean(axis=1)
        found = {
            "llc/mean": float(per_chain[live].mean()),
            "llc/std": float(_std(per_chain[live])),
            **{f"llc-chain/{i}": float(value) for i, value in enumerate(per_chain)},
        }
    found |= {
        "loss/trace": watched.losses,
        "llc/mcse": float(error),
        "llc/interval_95": (float(low), float(high)),
        "llc/verdict": result.verdict.to_dict(),
        "llc/notes": list(result.notes),
        "llc/dead_chains": dict(result.dead_chains),
    }
    for callback in callbacks:
        if hasattr(callback, "finalize"):
            callback.finalize()
        if hasattr(callback, "get_results"):
            found |= callback.get_results()
    return found


def _std(values: diagnostics.Array) -> Any:
    """Over chains, NaN for one."""
    return values.std(axis=0, ddof=1) if len(values) > 1 else np.full(values.shape[1:], np.nan)


def _default_nbeta(loader: Any, accumulated: int) -> float:
    if not isinstance(loader, DataLoader):
        raise ArgumentError(
            "optimizer_kwargs has no nbeta, and loader no batch size to make one of: give nbeta"
        )
    warnings.warn("optimizer_kwargs has no nbeta: it is n / log n of the batch size", stacklevel=3)
    return default_nbeta(loader, accumulated)


def _device(device: torch.device | str, gpu_idxs: Sequence[int] | None, cores: Any) -> torch.device:
    """Where chains run: one device, whatever was asked for to run them side by side."""
    if gpu_idxs is not None:
        if torch.device(device).type != "cuda" or not len(gpu_idxs):
            raise ArgumentError(
                f"gpu_idxs is {gpu_idxs!r} and device {device!s}: give device='cuda' and indices"
            )
        device = torch.device("cuda", gpu_idxs[0])
    several = cores if isinstance(cores, int) else len(cores or ())
    if several > 1 or (gpu_idxs is not None and len(gpu_idxs) > 1):
        warnings.warn(
            f"cores and gpu_idxs are not used: chains run one after another on {device}", stacklevel=3
        )
    return torch.device(device)


def _groups(loader: Any, accumulated: int, steps: int) -> list[list[Any]]:
    """The batches of each step, of the first pass over the loader and no more than a chain has steps for."""
    if not hasattr(loader, "__iter__") or isinstance(loader, Tensor | Mapping | str):
        raise ArgumentTypeError(
            f"loader is a {type(loader).__name__}: give a DataLoader or a list of batches"
        )
    batches = list(islice(loader, steps * accumulated))
    if len(batches) < accumulated:
        raise DataError(f"loader gives {len(batches)} batches, a step takes grad_accum_steps = {accumulated}")
    ends = range(accumulated, len(batches) + 1, accumulated)
    return [batches[end - accumulated : end] for end in ends]


def _component(model: nn.Module, masks: Mapping[str, Tensor]) -> Any:
    name = "optimize_over_per_model_param"
    missing = [p for p, _ in model.named_parameters() if p not in masks]
    if missing:
        raise ArgumentError(f"{name} has no {missing[0]!r}: give a boolean mask for each parameter")
    try:
        return selection_of(model, "full", masks)
    except (ArgumentError, ArgumentTypeError) as e:
        raise type(e)(str(e).replace("param_masks", name)) from e


def _seed(seed: Any, chains: int) -> int:
    """One seed for all chains, whose streams then differ by their number."""
    if seed is None:
        return int(torch.randint(2**63 - 1, ()))
    if isinstance(seed, Sequence | np.ndarray):
        if len(seed) != chains:
            raise ArgumentError(
                f"seed has {len(seed)} entries for {chains} chains: give one each, or an integer"
            )
        return int.from_bytes(hashlib.sha256(repr([int(s) for s in seed]).encode()).digest()[:8], "little")
    return check_integer("seed", seed, maximum=2**64 - 1)
