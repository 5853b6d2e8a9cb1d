"""devinterp's three functions: sample, llc, compute_llc."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import feed as feeding
from . import lm
from .backends import check_name
from .checks import check_noise, check_state
from .code_digest import loss_digest
from .digests import data_digest, model_digest
from .errors import ArgumentError, ArgumentTypeError, ModelError
from .feed import moved
from .masked import selection_of
from .placement import place, placed
from .running import Run
from .samplers import own_settings
from .sampling import Progress, Schedule, kept_rng
from .sampling.moments import checked_kinds
from .scalars import Scalars, check_integer, check_scalar
from .selection import Component
from .session import Request, lent
from .store import require
from .tree_llc import compute_llc
from .types import Selection

if TYPE_CHECKING:
    import xarray as xr

METHODS = {
    "sgmcmc_sgld": "sgld",
    "sgld": "sgld",
    "rmsprop_sgld": "rmsprop_sgld",
    "sghmc": "sghmc",
    "sgnht": "sgnht",
}


def sample(
    model: nn.Module,
    dataset: Any,
    observables: Mapping[str, Any] | None = None,
    *,
    lr: float,
    n_beta: float,
    param_masks: Mapping[str, Tensor | None] | None = None,
    num_chains: int = 4,
    num_draws: int = 200,
    batch_size: int = 32,
    num_burnin_steps: int = 0,
    num_steps_bw_draws: int = 1,
    num_init_loss_batches: int = 32,
    init_seed: int = 100,
    batches_per_draw: int = 3,
    obs_seed: int = 1337,
    gradient_accumulation_steps: int = 1,
    localization: float = 0.0,
    noise_level: float = 1.0,
    llc_weight_decay: float = 0.0,
    bounding_box_size: float | None = None,
    sampling_method: str = "sgmcmc_sgld",
    sampling_method_kwargs: Mapping[str, Any] | None = None,
    rmsprop_eps: float | None = None,
    rmsprop_alpha: float | None = None,
    shuffle: bool = True,
    match_sampling_input_ids_across_chains: bool = True,
    init_noise: float | None = None,
    device: str | torch.device | None = None,
    save_metrics: bool = False,
    output_path: str | Path | None = None,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    component: Component | Selection = "full",
    seed: int | None = None,
    backend: str = "auto",
    resume: bool = False,
    traces: bool = True,
    moments: Sequence[str] = (),
    scalar: str = "loss",
    eval_mode: bool = True,
    stacked: bool | None = None,
    fresh_batches: bool = False,
    pool_check: bool = False,
    control_variates: bool = False,
    state: str = "split",
    noise: str = "gaussian",
    checkpoint_every: float = 60.0,
    progress: Progress | None = None,
) -> xr.DataTree:
    """Sample weights around w0 by Langevin dynamics, and record losses of batches and of observables on the way.

    Arguments up to loss_fn are those of devinterp 2.0.1's function of this name, with its defaults and meaning.

    model: any torch module; it is not copied, and comes back as it was.
    dataset: token sequences of one length (a Hugging Face dataset with 'input_ids', an integer tensor); or, with
        loss_fn, tensors with samples first, a map-style dataset, or batches as they are (a DataLoader, a list).
    observables: name -> dataset, or (dataset, batches_per_draw), whose losses are taken at every draw.
    lr, n_beta, localization, noise_level, llc_weight_decay: of the step, see `llc_fast.ops.sgld_step_`.
    bounding_box_size: how far weights may go from w0; a chain with more than 5 % of them there on average is dead.
    param_masks: name -> boolean mask, or None for all of it; or `component`.
    num_chains, num_draws, num_burnin_steps, num_steps_bw_draws: a chain takes num_burnin_steps + num_draws *
        num_steps_bw_draws steps. A draw is taken before the update of its step.
    batch_size, gradient_accumulation_steps: samples of a batch, and batches of a step.
    num_init_loss_batches: recorded; the baseline is of every batch of the pool.
    init_seed, shuffle: which batches make the pool: the first of a DataLoader's pass over the dataset.
    match_sampling_input_ids_across_chains: all chains share one pool and take it in whole epochs, each in orders of its
        own; False: every chain has its own, disjoint part.
    batches_per_draw, obs_seed: how many batches of an observable are looked at, and which.
    sampling_method: "sgmcmc_sgld"; "rmsprop_sgld" with rmsprop_alpha and rmsprop_eps; "sghmc" or "sgnht" with
        friction in sampling_method_kwargs.
    init_noise: standard deviation of a perturbation that chains start with; anchor and baseline stay at w0.
    device: where to sample; None: a GPU if there is one.
    save_metrics: keep norms and dot products of each step's parts.
    output_path: of the Zarr store; None: in memory. A finished store of the same run is returned, any other refused.
    loss_fn(model, batch): losses; of tokens (batch, length - 1), of other data one a sample or one a batch.

    component: see `llc_fast.select`.
    seed: of the noise, unsigned 64-bit; None: init_seed. Chain c draws the noise of (seed, chain=c) alone.
    backend, state, noise: see `llc_fast.SGLD`.
    resume: continue the run that was stopped or killed, bit for bit.
    traces: False keeps moments of losses instead of losses.
    moments: with traces=False, "sequence" and "token" keep covariances of sequences or tokens beside the variances.
    scalar: with traces=False, what each token's covariance is kept with: "loss", that of the draw, or an observable.
    eval_mode: False leaves dropout and the like as the model has them.
    stacked: whether chains of a small model walk at once, see `llc_fast.estimate_llc`.
    fresh_batches: take draws on batches drawn apart from those of the gradients: a forward pass more, no order bias.
    pool_check: as many chains again on halves of the pool, for the pool's bias; 4 chains or more for its error.
    control_variates: keep what `llc` corrects its value by.
    checkpoint_every: seconds, or 20 times what a checkpoint takes if that is more.
    progress(chain, step, num_steps, loss): called at every step of every chain.

    Returns the tree that devinterp's own functions read, lazily from output_path. Dead chains are not along `chain`
    but under `/dead`; `/llc_fast` and attrs["llc_fast"] hold what `compute_llc` reads.
    Ctrl-C stops after the current step, saves, gives the model back and raises KeyboardInterrupt.
    Raises ArgumentError, ArgumentTypeError, BackendError, ComponentError, DataError, ModelError or OutputError before
    sampling; ChainError where a loss at w0 is not finite or every chain died; OutputError where a disk is full.
    """
    require()
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(f"model is a {type(model).__name__}: give a torch.nn.Module")
    for name, value in (("loss_fn", loss_fn), ("progress", progress)):
        if value is not None and not callable(value):
            raise ArgumentTypeError(f"{name} is a {type(value).__name__}: give a function")
    method = METHODS.get(sampling_method)
    if method is None:
        raise ArgumentError(f"sampling_method is {sampling_method!r}: use one of {', '.join(METHODS)}")
    own = _own(sampling_method, sampling_method_kwargs, rmsprop_alpha=rmsprop_alpha, rmsprop_eps=rmsprop_eps)
    scalars = _scalars(
        lr=lr,
        n_beta=n_beta,
        localization=localization,
        llc_weight_decay=llc_weight_decay,
        noise_level=noise_level,
        bounding_box_size=bounding_box_size,
        **own_settings(method, **own),
    )
    schedule = Schedule.check(
        num_draws=num_draws,
        num_burnin_steps=num_burnin_steps,
        num_steps_bw_draws=num_steps_bw_draws,
        gradient_accumulation_steps=gradient_accumulation_steps,
    )
    num_chains = check_integer("num_chains", num_chains, minimum=1)
    batch_size = check_integer("batch_size", batch_size, minimum=1)
    batches_per_draw = check_integer("batches_per_draw", batches_per_draw, minimum=1)
    num_init_loss_batches = check_integer("num_init_loss_batches", num_init_loss_batches, minimum=1)
    init_seed = check_integer("init_seed", init_seed, maximum=2**63 - 1)
    obs_seed = check_integer("obs_seed", obs_seed)
    seed = init_seed if seed is None else check_integer("seed", seed, maximum=2**64 - 1)
    perturbation = 0.0 if init_noise is None else check_scalar("init_noise", init_noise)
    every = check_scalar("checkpoint_every", checkpoint_every)
    state, noise = check_state(state), check_noise(noise)
    check_name(backend)
    chosen = selection_of(model, component, param_masks)
    where = place(device, model)
    request = Request(
        chosen, scalars, method, state, noise, seed, backend, bool(eval_mode), init_noise=perturbation
    )
    vocabulary = lm.vocabulary(model)
    with kept_rng():  # a loader that shuffles draws from PyTorch's generator
        data = feeding.read(
            dataset,
            batch_size=batch_size,
            shuffle=bool(shuffle),
            init_seed=init_seed,
            num_chains=num_chains,
            matched=bool(match_sampling_input_ids_across_chains),
            needed=schedule.steps * schedule.gradient_accumulation_steps,
            vocabulary=vocabulary,
            loss_fn=loss_fn,
        )
        seen = feeding.observables(
            observables,
            batch_size=batch_size,
            batches_per_draw=batches_per_draw,
            seed=obs_seed,
            length=data.length,
            vocabulary=vocabulary,
            loss_fn=loss_fn,
        )
    moments = (moments,) if isinstance(moments, str) else tuple(moments)
    checked_kinds(moments)
    if scalar != "loss" and scalar not in {o.name for o in seen} | {o.obs_id for o in seen}:
        raise ArgumentError(
            f"scalar is {scalar!r}: use 'loss' or one of the observables {[o.name for o in seen]}"
        )
    if pool_check and len(data.pools[0]) < 2:
        raise ArgumentError(
            "pool_check is True, but the pool has one batch, which has no halves: give more data"
        )
    config = {
        "lr": float(scalars.lr),
        "n_beta": float(scalars.nbeta),
        "batch_size": batch_size,
        "num_chains": num_chains,
        "num_draws": schedule.num_draws,
        "num_burnin_steps": schedule.num_burnin_steps,
        "num_steps_bw_draws": schedule.num_steps_bw_draws,
        "gradient_accumulation_steps": schedule.gradient_accumulation_steps,
        "num_init_loss_batches": num_init_loss_batches,
        "init_seed": init_seed,
        "localization": float(scalars.localization),
        "noise_level": float(scalars.noise_level),
        "llc_weight_decay": float(scalars.weight_decay),
        "bounding_box_size": scalars.box,
        "sampling_method": sampling_method,
        "sampling_method_kwargs": {name: value for name, value in own.items() if value is not None},
        "init_noise": None if init_noise is None else perturbation,
        "save_metrics": bool(save_metrics),
        "shuffle": bool(shuffle),
        "epoch_mode": "cycle",
        "match_sampling_input_ids_across_chains": bool(match_sampling_input_ids_across_chains),
    }
    options = {
        "observables": {o.name: o.batches_per_draw for o in seen},
        "obs_seed": obs_seed,
        "stacked_asked": stacked,
        "fresh_batches": bool(fresh_batches),
        "pool_check": bool(pool_check),
        "control_variates": bool(control_variates),
        "traces": bool(traces),
        "moments": list(moments),
        "scalar": scalar,
    }
    run = Run(
        data,
        seen,
        schedule,
        config,
        options,
        stacked,
        bool(resume),
        output_path,
        every,
        progress,
    )
    fn = loss_fn if loss_fn is not None else lm.token_losses
    batches = [moved(batch, where) for batch in data.batches]
    with placed(model, where), lent(model, fn, batches, request) as session:
        if session.problem.ranks is not None:
            raise ModelError("the model is sharded over several processes: use estimate_llc, which takes it")
        observed = data_digest([o.batches for o in seen])[0]
        made_of = {
            "loss": loss_digest(loss_fn),
            "observables_sha256": observed,
            "model_sha256": model_digest(model),
        }
        return run(session, made_of)


def llc(
    model: nn.Module,
    dataset: Any,
    observables: Mapping[str, Any] | None = None,
    *,
    lr: float,
    n_beta: float,
    param_masks: Mapping[str, Tensor | None] | None = None,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    **kwargs: Any,
) -> xr.Dataset:
    """Sample and estimate the LLC.

    Arguments: those of `sample`, with `component`, `num_chains`, `output_path` and the others as keywords. Returns what
    `compute_llc` does: devinterp's llc_mean, llc_std, llc_per_chain, ..., with mcse, an interval and a verdict.
    Raises what `sample` does.
    """
    return compute_llc(
        sample(
            model,
            dataset,
            observables,
            lr=lr,
            n_beta=n_beta,
            param_masks=param_masks,
            loss_fn=loss_fn,
            **kwargs,
        )
    )


def _own(
    sampling_method: str,
    kwargs: Mapping[str, Any] | None,
    *,
    rmsprop_alpha: float | None,
    rmsprop_eps: float | None,
) -> dict[str, Any]:
    """The settings of the sampler alone."""
    own = dict(kwargs or {})
    for name, value in (("eps", rmsprop_eps), ("alpha", rmsprop_alpha)):
        if value is None:
            continue
        if sampling_method != "rmsprop_sgld":
            raise ArgumentError(
                f"rmsprop_{name} is given, but sampling_method is {sampling_method!r}: leave it out, or use "
                "'rmsprop_sgld'"
            )
        if name in own:
            raise ArgumentError(
                f"rmsprop_{name} and sampling_method_kwargs[{name!r}] are both given: give one"
            )
        own[name] = value
    if own.pop("add_grad_correction", False):
        raise ArgumentError("add_grad_correction is True: no sampler here has it, leave it out")
    if "diffusion_factor" in own:
        own["friction"] = own.pop("diffusion_factor")
    unknown = sorted(own.keys() - {"alpha", "eps", "friction"})
    if unknown:
        raise ArgumentError(
            f"sampling_method_kwargs has {unknown[0]!r}: known are alpha, eps and friction; others are arguments of "
            "sample()"
        )
    return own


def _scalars(
    *, n_beta: object, llc_weight_decay: object, bounding_box_size: object, **others: Any
) -> Scalars:
    """Checked scalars, with errors that name them as `sample` does."""
    for name, value in (("n_beta", n_beta), ("llc_weight_decay", llc_weight_decay)):
        check_scalar(name, value)
    if bounding_box_size == 0:
        raise ArgumentError(
            "bounding_box_size is 0, so that no weight could move: give more, or None for no box"
        )
    return Scalars.check(
        nbeta=n_beta,
        weight_decay=llc_weight_decay,
        box=bounding_box_size,
        box_name="bounding_box_size",
        **others,
    )
