"""The local learning coefficient of a model, or of a component of it, on a pool of batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from torch import nn

from .backends import check_name
from .checks import check_noise, check_state
from .errors import ArgumentError, ArgumentTypeError
from .evidence import assess
from .gathered import arrays, deaths, evidence, facts, settings
from .results import LLCResult
from .samplers import own_settings
from .sampling import (
    RECORD,
    LossFn,
    Order,
    Progress,
    Schedule,
    Trace,
    half_pool,
    kept_rng,
    read_pool,
    walk,
)
from .scalars import Scalars, check_integer
from .selection import Component
from .session import Request, lent
from .types import Selection


def estimate_llc(
    model: nn.Module,
    loss_fn: LossFn,
    batches: Iterable[Any],
    *,
    component: Component | Selection = "full",
    lr: float,
    nbeta: float,
    localization: float,
    num_chains: int = 4,
    num_draws: int,
    num_burnin_steps: int = 0,
    num_steps_bw_draws: int = 1,
    seed: int = 0,
    weight_decay: float = 0.0,
    noise_level: float = 1.0,
    bounding_box_size: float | None = None,
    sampler: str = "sgld",
    alpha: float | None = None,
    eps: float | None = None,
    friction: float | None = None,
    state: str = "split",
    noise: str = "gaussian",
    backend: str = "auto",
    eval_mode: bool = True,
    stacked: bool | None = None,
    fresh_batches: bool = False,
    pool_check: bool = False,
    control_variates: bool = False,
    progress: Progress | None = None,
) -> LLCResult:
    """Estimate nbeta (E[L(w)] - L(w0)) over SGLD chains that start at the model's weights w0.

    loss_fn(model, batch): the loss of a batch as a tensor, either its mean (a scalar) or one loss for each
    sample (samples first, further dimensions allowed), of which the mean is taken. It moves the batch to the
    model's device. Losses for each sample let the result say when the pool is too small.
    batches: the pool, any finite iterable. It is read once and kept; a shuffling DataLoader gives one order.
    Every batch counts equally, whatever its size. Chain c passes over it in whole epochs, each in an order that
    follows from (seed, c).
    component: see `llc_fast.select`; weights outside it stay put, and so do frozen parameters
    (requires_grad=False) within it.
    lr, nbeta, localization, weight_decay, noise_level, bounding_box_size, backend: see
    `llc_fast.ops.sgld_step_`. lr = 0 and nbeta = 0 are allowed, as controls.
    sampler: "sgld"; "rmsprop_sgld" with alpha (.99) and eps (.1), see `llc_fast.rmsprop_sgld_step_`; "sghmc" with
    friction (.1) or "sgnht" with friction (.01), see `llc_fast.sghmc_step_`. state, noise: see `llc_fast.SGLD`;
    where "sr" was refused the notes say so.
    num_chains, num_draws (of each chain), num_burnin_steps, num_steps_bw_draws: a chain takes
    num_burnin_steps + num_draws * num_steps_bw_draws steps; draw i is the state after num_burnin_steps + i *
    num_steps_bw_draws updates. seed: unsigned 64-bit; chain c draws the noise of (seed, chain=c).
    eval_mode: False leaves dropout and the like as the model has them.
    stacked: whether chains of a small model walk at once (one forward and backward pass for all, by torch.func.vmap);
    None: where the model and loss_fn allow it. Their noise has the same bits, their gradients agree to rounding.
    fresh_batches: take draws on batches drawn apart from those of the gradients: a forward pass more, no order bias.
    pool_check: as many chains again on random halves of the pool, see `LLCResult.pool_bias`; 4 or more for its error.
    control_variates: whether the result has a value corrected by sums of the noise, see `LLCResult.controlled`.
    progress(chain, step, num_steps, loss) is called at every step of every chain.
    A sharded model (FSDP2, tensor parallelism): all ranks call it alike, each with its part of every batch or with
    the same; losses are means over ranks, and all get the same result. See `docs/sharding.md`.

    At a draw the loss is taken before the update, on the batch that gives the gradient, and compared with the loss
    of the same batch at w0. A chain dies where its loss or a weight is not finite, or where over its draws more
    than 5 % of its weights are at the box on average; dead chains are named and not counted.

    The model is not copied, the selected parameters are. Weights, requires_grad, .grad, training flags and
    PyTorch's random states are left as they were, also after an exception.

    Raises ArgumentError, ArgumentTypeError, BackendError, ComponentError, DataError or ModelError before
    sampling; ChainError where a loss at w0 is not finite or every chain died.
    Source: Lau et al. 2023, arXiv 2308.12108; restricted to components, Wang et al. 2024, arXiv 2410.02984.

    >>> import torch
    >>> linear = nn.Linear(2, 1, bias=False)
    >>> _ = nn.init.zeros_(linear.weight)
    >>> x = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    >>> result = estimate_llc(linear, lambda m, x: m(x).square() / 2, [x], lr=1e-3, nbeta=100.0,
    ...                       localization=1.0, num_chains=8, num_draws=500, num_burnin_steps=50)
    >>> abs(result.llc_mean - 1.0) < 0.3
    True
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(f"model is a {type(model).__name__}: give a torch.nn.Module")
    for name, value in (("loss_fn", loss_fn), ("progress", progress)):
        if not callable(value) and (name == "loss_fn" or value is not None):
            raise ArgumentTypeError(f"{name} is a {type(value).__name__}: give a function")
    scalars = Scalars.check(
        lr=lr,
        nbeta=nbeta,
        localization=localization,
        weight_decay=weight_decay,
        noise_level=noise_level,
        box=bounding_box_size,
        box_name="bounding_box_size",
        **own_settings(sampler, alpha=alpha, eps=eps, friction=friction),
    )
    state, noise = check_state(state), check_noise(noise)
    schedule = Schedule.check(
        num_draws=num_draws, num_burnin_steps=num_burnin_steps, num_steps_bw_draws=num_steps_bw_draws
    )
    num_chains = check_integer("num_chains", num_chains, minimum=1)
    seed = check_integer("seed", seed, maximum=2**64 - 1)
    check_name(backend)
    request = Request(component, scalars, sampler, state, noise, seed, backend, bool(eval_mode))
    with kept_rng():
        data = read_pool(batches)
        if pool_check and len(data) < 2:
            raise ArgumentError(
                "pool_check is True, but the pool has one batch, which has no halves: give more data"
            )
        options = (bool(fresh_batches), bool(pool_check), bool(control_variates))
        agreed = (component, sampler, scalars, schedule, num_chains, seed, state, noise, options)
        with lent(model, loss_fn, data, request, agreed=agreed) as session:
            session.look()
            bundles = session.bundles(range(num_chains), stacked)
            session.rebase(bundles[0])

            def run(chains: list[int], pool: Callable[[int], Sequence[int]]) -> list[Trace]:
                pools = [pool(chain) for chain in chains]
                walkers = session.walkers(chains)
                traces = walk(
                    walkers,
                    Order(seed, chains, pools),
                    scalars,
                    schedule,
                    record=Order(seed, chains, pools, RECORD) if fresh_batches else None,
                    controls=control_variates,
                    progress=progress,
                )
                if chains[0] < num_chains:
                    session.settle(walkers, traces)
                return traces

            whole = range(len(data))
            traces = [trace for bundle in bundles for trace in run(bundle, lambda _: whole)]
            halves: list[Trace] = []
            if pool_check:
                for bundle in bundles:
                    others = [chain + num_chains for chain in bundle]
                    halves += run(others, lambda chain: half_pool(seed, whole, chain - num_chains))
            used = settings(session, schedule, num_chains)
            known = facts(session, used, pool=len(data))
            known |= {"baseline": session.baseline.losses, "fresh_batches": bool(fresh_batches)}
            if halves:
                known["half_gains"] = np.stack(
                    [t.gains(known["baseline"]) * (math.nan if t.verdict else 1.0) for t in halves]
                )
    return assess(evidence(known, arrays(traces, known["baseline"]), dead=deaths(traces), settings=used))
