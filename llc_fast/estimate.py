"""The local learning coefficient of a model, or of a component of it, on a pool of batches."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from . import diagnostics
from .backends import check_name
from .diagnostics import Array
from .errors import ArgumentError, ArgumentTypeError, ChainError, ModelError
from .group import STORAGES
from .plan import Plan
from .results import Facts, LLCResult, data_digest, remarks, weights_digest
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
    read_pool,
    run_chain,
    seed_losses,
)
from .scalars import MAX_STEP, Scalars, check_integer
from .selection import Component, named_parameters, parameter_table, select
from .tiles import locate, view
from .types import Selection, Tile

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
    num_chains, num_draws (of each chain), num_burnin_steps, num_steps_bw_draws: a chain takes
    num_burnin_steps + num_draws * num_steps_bw_draws steps; draw i is the state after num_burnin_steps + i *
    num_steps_bw_draws updates. seed: unsigned 64-bit; chain c draws the noise of (seed, chain=c).
    eval_mode: False leaves dropout and the like as the model has them.
    progress(chain, step, num_steps, loss) is called at every step.

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
    )
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

    names, params, ids, tiles, settings = _choose(model, component)
    with kept_rng():
        problem = Problem(model, loss_fn, read_pool(batches), params, names)
        settings["data_sha256"], unhashed = data_digest(problem.batches)
        with borrowed(model, params, eval_mode=bool(eval_mode)) as anchors:
            remainders = [
                torch.zeros_like(p, dtype=torch.int16) if p.dtype == torch.bfloat16 else None for p in params
            ]

            def plan(chain: int) -> Plan:
                stream = partial(Plan, seed=seed, chain=chain, backend=backend)
                return stream(params, anchors, remainders=remainders, tensor_ids=ids, tiles=tiles)

            settings["backend"] = ", ".join(plan(0).backend_names)
            displacement = Displacement(params, anchors, remainders, tiles, box=scalars.box)
            seed_losses(seed, 0)
            start = baseline(problem, displacement, min(len(problem.batches), GRADIENT_BATCHES))
            traces = [
                run_chain(problem, plan(chain), displacement, scalars, schedule, progress=progress)
                for chain in range(num_chains)
            ]
    settings |= asdict(scalars)
    settings["bounding_box_size"] = settings.pop("box")
    settings |= asdict(schedule)
    settings |= {"num_chains": num_chains, "seed": seed, "eval_mode": bool(eval_mode)}
    return _result(start, displacement, traces, settings, unhashed)


def _choose(
    model: nn.Module, component: Component | Selection
) -> tuple[list[str], list[nn.Parameter], list[int], list[Tile], dict[str, Any]]:
    """Names, parameters, tensor_ids and tiles of what a chain moves, and what the settings say of them."""
    parameters = named_parameters(model)
    for name, p in parameters.items():
        if p.is_meta:
            raise ModelError(f"parameter {name!r} is a meta tensor without weights: load the model first")
    if isinstance(component, Selection):
        selection = component
        shapes = {name: tuple(p.shape) for name, p in parameters.items()}
        mine = selection.tensor_ids == parameter_table(model) and selection.boxes.keys() <= shapes.keys()
        if not mine or any(shapes[name] != selection.shapes.get(name) for name in selection.boxes):
            raise ArgumentError("component is a Selection of another model: select again from this one")
    else:
        selection = select(model, component)
    names = [name for name, boxes in selection.boxes.items() if boxes and parameters[name].requires_grad]
    frozen = [name for name, boxes in selection.boxes.items() if boxes and not parameters[name].requires_grad]
    if not names:
        raise ArgumentError(
            f"every parameter of component {selection.component!r} is frozen: set requires_grad of those that "
            "should move"
        )
    params = [parameters[name] for name in names]
    tiles = [Tile.of(i, box) for i, name in enumerate(names) for box in selection.boxes[name]]
    for i, (name, p) in enumerate(zip(names, params, strict=True)):
        _check_parameter(name, p, [tile for tile in tiles if tile.tensor == i])
    settings = {
        "component": selection.component,
        "weights": sum(tile.numel for tile in tiles),
        "frozen": frozen,
        "dtypes": sorted({str(p.dtype).removeprefix("torch.") for p in params}),
        "devices": sorted({str(p.device) for p in params}),
        "weights_sha256": weights_digest((name, selection.boxes[name], parameters[name]) for name in names),
    }
    return names, params, [selection.tensor_ids[name] for name in names], tiles, settings


def _check_parameter(name: str, p: nn.Parameter, tiles: Sequence[Tile]) -> None:
    if p.dtype not in STORAGES:
        raise ArgumentTypeError(f"parameter {name!r} is {p.dtype}: convert the model, as by model.float()")
    if p.layout != torch.strided:
        raise ArgumentTypeError(
            f"parameter {name!r} has layout {p.layout}: give a model with dense parameters"
        )
    if p.is_inference():
        raise ModelError(
            f"parameter {name!r} was made in inference mode and has no gradient: load the model outside"
        )
    if any(locate(p, tile) is None for tile in tiles):
        raise ArgumentError(
            f"parameter {name!r} has strides {p.stride()} for shape {tuple(p.shape)}, in which what is selected of "
            "it is no box of memory: make it contiguous"
        )
    if not all(bool(view(p, tile).isfinite().all()) for tile in tiles):
        raise ModelError(f"parameter {name!r} holds weights that are not finite: repair the model")


def _result(
    start: Baseline,
    displacement: Displacement,
    traces: Sequence[Trace],
    settings: dict[str, Any],
    unhashed: str,
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
    position = float((steps % size).mean()) / (size - 1) if size > 1 else 0.0
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
        order_bias=s["lr"] * nbeta**2 * displacement.gradient_noise(size) / 2 * position,
        gradient_term=nbeta * float(dot.mean()),
        init_loss=float(start.losses.mean()),
        loss_trace=loss,
        dead_chains=dead,
        settings=settings,
        notes=(),
    )
    return replace(result, notes=tuple(remarks(result, facts)))


def _blocks(values: Array, pool: int, s: Mapping[str, Any]) -> tuple[Array, str]:
    return diagnostics.block_means(
        values, pool=pool, burnin=s["num_burnin_steps"], thinning=s["num_steps_bw_draws"]
    )
