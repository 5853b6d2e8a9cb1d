"""The local learning coefficient of a model, or of a component of it, on a pool of batches."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from . import diagnostics
from .backends import check_name
from .checks import check_noise, check_state
from .choice import choose
from .diagnostics import Array
from .errors import ArgumentError, ArgumentTypeError, ChainError
from .kept import start
from .plan import Plan
from .results import Facts, LLCResult, data_digest, remarks
from .samplers import find, own_settings
from .sampling import (
    Baseline,
    Displacement,
    LossFn,
    Problem,
    Progress,
    Schedule,
    Trace,
    baseline,
    borrowed,
    kept_rng,
    pooled,
    ranks_of,
    read_pool,
    run_chain,
    seed_losses,
)
from .scalars import MAX_STEP, Scalars, check_integer
from .selection import Component
from .shard import prepare, reshard, spoken
from .types import Selection

GRADIENT_BATCHES = 64  # of a larger pool, the gradients at w0 of this many are taken


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
    progress(chain, step, num_steps, loss) is called at every step.
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
    method, state, noise = find(sampler), check_state(state), check_noise(noise)
    schedule = Schedule(
        check_integer("num_draws", num_draws, minimum=1),
        check_integer("num_burnin_steps", num_burnin_steps),
        check_integer("num_steps_bw_draws", num_steps_bw_draws, minimum=1),
    )
    num_chains = check_integer("num_chains", num_chains, minimum=1)
    seed = check_integer("seed", seed, maximum=2**64 - 1)
    if schedule.steps > MAX_STEP + 1:
        raise ArgumentError(f"{schedule.steps} steps a chain are too many: a chain's noise ends after 2^32")
    check_name(backend)

    reshard(model)
    ranks = ranks_of(model)
    if ranks is not None:  # before they need each other
        chosen = (component, sampler, scalars, schedule, num_chains, seed, state, noise)
        ranks.agree("settings", chosen)
    names, params, ids, tiles, settings = choose(model, component, ranks)
    with kept_rng():
        data = read_pool(batches)
        if ranks is not None:
            settings["ranks"] = ranks.count
            ranks.agree("numbers of batches", len(data))
        digest, unhashed = data_digest(data)
        settings["data_sha256"], speaks = pooled(ranks, digest)
        problem = Problem(model, loss_fn, data, params, names, ranks, speaks)
        with borrowed(model, params, eval_mode=bool(eval_mode)) as anchors:
            started = [
                start(name, p, method, state, scalars.lr, scalars.noise_level)
                for name, p in zip(names, params, strict=True)
            ]
            refused = [note for _, note in started if note is not None]
            remainders = [kept.get("remainder") for kept, _ in started]
            buffers = [kept.get(method.buffer or "") for kept, _ in started]
            xi = None
            if method.thermostat:
                xi = torch.full((1,), scalars.friction or 0.0, dtype=torch.float64, device=params[0].device)

            def plan(chain: int) -> Plan:
                return prepare(
                    params,
                    anchors,
                    sampler=sampler,
                    remainders=remainders,
                    buffers=buffers,
                    tensor_ids=ids,
                    tiles=tiles,
                    seed=seed,
                    chain=chain,
                    state=state,
                    noise=noise,
                    thermostat=xi,
                    backend=backend,
                )

            first = plan(0)
            settings["backend"] = ", ".join(first.backend_names)
            mine, others = spoken(first, tiles)
            displacement = Displacement(params, anchors, remainders, mine, box=scalars.box, ranks=others)
            seed_losses(seed, 0)
            pool = baseline(problem, displacement, min(len(problem.batches), GRADIENT_BATCHES))
            traces = [
                run_chain(problem, plan(chain), displacement, scalars, schedule, progress=progress)
                for chain in range(num_chains)
            ]
    settings |= asdict(scalars)
    settings["bounding_box_size"] = settings.pop("box")
    settings |= {"sampler": sampler, "state": state, "noise": noise}
    settings |= asdict(schedule)
    settings |= {"num_chains": num_chains, "seed": seed, "eval_mode": bool(eval_mode)}
    settled = scalars.friction if xi is None else float(xi)  # a thermostat's is where the last chain left it
    return _result(pool, displacement, traces, settings, unhashed, refused, settled)


def _result(
    start: Baseline,
    displacement: Displacement,
    traces: Sequence[Trace],
    settings: dict[str, Any],
    unhashed: str,
    refused: Sequence[str],
    friction: float | None,
) -> LLCResult:
    from . import __version__

    s = settings
    nbeta, steps = s["nbeta"], s["num_burnin_steps"] + s["num_steps_bw_draws"] * np.arange(s["num_draws"])
    dead = {chain: trace.verdict for chain, trace in enumerate(traces) if trace.verdict}
    live = [trace for chain, trace in enumerate(traces) if chain not in dead]
    if not live:
        reasons = "; ".join(f"chain {chain}: {reason}" for chain, reason in list(dead.items())[:8])
        raise ChainError(f"every chain died ({reasons}): lower lr, or raise localization")
    loss = np.stack([trace.loss for trace in traces])
    gains = np.stack([trace.loss[steps] - start.losses[trace.batch[steps]] for trace in live])
    distance, dot = np.stack([t.distance for t in live]), np.stack([t.dot for t in live])
    per_chain = np.full(len(traces), math.nan)
    per_chain[[chain for chain in range(len(traces)) if chain not in dead]] = nbeta * gains.mean(axis=1)
    size = len(start.losses)
    blocks, basis = _blocks(gains, size, s)
    error, dof = diagnostics.mcse(gains)
    known = [n for n in start.samples if n is not None]
    settings |= {
        "pool_batches": size,
        "pool_samples": sum(known) if len(known) == size else None,
        "gradient_batches": displacement.count,
        "versions": {
            "llc_fast": __version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
    }
    facts = Facts(
        r_hat_chance=diagnostics.r_hat_chance(*blocks.shape) if blocks.size else math.nan,
        gradient_term_error=nbeta * diagnostics.mcse(dot)[0],
        unequal=(min(known), max(known)) if known and min(known) < max(known) else None,
        resolution=nbeta * start.eps / 2 * float(np.abs(start.losses).mean()),
        irreproducible=nbeta * float(max(abs(t.loss[0] - start.losses[t.batch[0]]) for t in traces)),
        without_gradient=start.without_gradient,
        unhashed=unhashed,
    )
    result = LLCResult(
        llc_mean=float(np.nanmean(per_chain)),
        llc_std=float(np.nanstd(per_chain)),
        llc_per_chain=per_chain,
        mcse=nbeta * error,
        dof=dof,
        r_hat=diagnostics.r_hat(blocks),
        r_hat_distance=diagnostics.r_hat(_blocks(distance, size, s)[0]),
        ess=diagnostics.ess(blocks),
        basis=basis,
        order_bias=nbeta**2 * displacement.gradient_noise(size) * _echo(steps % size, size, s, friction),
        gradient_term=nbeta * float(dot.mean()),
        init_loss=float(start.losses.mean()),
        loss_trace=loss,
        dead_chains=dead,
        settings=settings,
        notes=(),
    )
    return replace(result, notes=(*remarks(result, facts), *refused))


def _echo(positions: npt.NDArray[np.int64], size: int, s: Mapping[str, Any], friction: float | None) -> float:
    """How far the gradient of a batch has moved the weights by the time its loss is taken again, per unit of it.

    A batch seen k steps ago in the epoch has moved them by lr/2, with friction A by lr (1 - (1 - A)^k)/A; each has
    -1/(size - 1) of the covariance with those after it. NaN for RMSprop, whose preconditioner is not known here.
    """
    if size == 1 or not s["lr"]:
        return 0.0
    if s["sampler"] == "rmsprop_sgld":
        return math.nan
    if friction is None:
        return float(s["lr"] / 2 * positions.mean() / (size - 1))
    k = np.arange(1, size)
    moved = s["lr"] * (k if friction < 1e-9 else (1 - (1 - friction) ** k) / friction)
    return float(np.concatenate(([0.0], np.cumsum(moved)))[positions].mean() / (size - 1))


def _blocks(values: Array, pool: int, s: Mapping[str, Any]) -> tuple[Array, str]:
    return diagnostics.block_means(
        values, pool=pool, burnin=s["num_burnin_steps"], thinning=s["num_steps_bw_draws"]
    )
