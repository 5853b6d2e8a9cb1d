"""What FSDP2 lets go wrong without a word: each done on purpose, under our samplers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from shard_model import WIDTH, batch, loss_fn
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy

from llc_fast import SGLD, estimate_llc, functional, shard
from llc_fast.errors import LlcFastError

Make = Callable[..., Any]
Mine = Callable[[Tensor], Tensor]
SETTINGS = {"lr": 1e-3, "nbeta": 30.0, "localization": 10.0}


def sampler(model: Any) -> SGLD:
    return SGLD(list(model.named_parameters()), seed=3, **SETTINGS)


def said(function: Callable[[], Any]) -> str:
    """The message of our error that it raises, or nothing."""
    try:
        function()
    except LlcFastError as e:
        return str(e)
    return ""


def one_step(model: Any, chain: SGLD, tokens: Tensor) -> None:
    chain.zero_grad()
    loss_fn(model, tokens).backward()
    chain.step()


def zeroed_late(make: Make, mine: Mine, **how: Any) -> dict[str, Any]:
    """zero_grad() of the model between the forward and the backward pass."""
    model, right = make(), make()
    chain = sampler(model)
    tokens = mine(batch(0))
    one_step(model, chain, tokens)
    one_step(right, sampler(right), tokens)
    loss = loss_fn(model, tokens)
    model.zero_grad(**how)
    loss.backward()
    right.zero_grad(**how)
    loss_fn(right, tokens).backward()
    pairs = zip(model.parameters(), right.parameters(), strict=True)
    wrong = [
        not torch.allclose(shard.full(a.grad), shard.full(b.grad)) for a, b in pairs if a.grad is not None
    ]
    before = [shard.local(p).clone() for p in model.parameters()]
    message = said(chain.step)
    still = all(torch.equal(shard.local(p), b) for p, b in zip(model.parameters(), before, strict=True))
    chain.zero_grad()  # the remedy
    loss_fn(model, tokens).backward()
    return {"wrong": any(wrong), "message": message, "still": still, "then": said(chain.step)}


def zeroed_late_flat(make: Make, mine: Mine) -> dict[str, Any]:
    """The same where all parameters are in the root's group, so that no gradient is new."""
    return zeroed_late(lambda: make(flat=True), mine)


def zeroed_late_in_place(make: Make, mine: Mine) -> dict[str, Any]:
    return zeroed_late(make, mine, set_to_none=False)


def zeroed_in_time(make: Make, mine: Mine) -> dict[str, Any]:
    """Every right order of passes, zero_grad() and steps, none of which may raise."""
    tokens = mine(batch(0))

    def run() -> None:
        for set_to_none in (True, False):
            model = make()
            chain = sampler(model)
            for order in ("sampler", "model", "late", "twice", "clipped", "unused"):
                if order == "model":
                    model.zero_grad(set_to_none=set_to_none)
                elif order not in ("late", "twice"):
                    chain.zero_grad(set_to_none=set_to_none)
                loss = loss_fn(model, tokens)
                if order == "late":  # the sampler's own reaches the sharded gradients at any time
                    chain.zero_grad(set_to_none=set_to_none)
                if order == "twice":  # a wrong backward pass that is thrown away
                    loss.backward()
                    chain.zero_grad(set_to_none=set_to_none)
                    loss = loss_fn(model, tokens)
                loss.backward()
                if order == "clipped":
                    torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
                chain.step()
                if order == "unused":
                    chain.step()  # with the same gradients

    return {"message": said(run)}


def evaluated(make: Make, mine: Mine) -> dict[str, Any]:
    """A step after a forward pass without gradients."""
    model = make()
    chain = sampler(model)
    tokens = mine(batch(0))
    loss_fn(model, tokens).backward()
    with torch.no_grad():
        first = float(loss_fn(model, tokens))
    message = said(chain.step)
    with torch.no_grad():  # what would have happened: an update that a pass does not see
        held = [p for p in chain.param_groups[0]["params"] if p.shape == (WIDTH,)][
            -2:
        ]  # of the root's own norm
        for p in held:
            shard.local(p).mul_(1.5)
        unseen = float(loss_fn(model, tokens)) == first
        for p in held:
            shard.local(p).div_(1.5)
    shard.reshard(model)
    then = said(chain.step)
    with torch.no_grad():
        seen = float(loss_fn(model, tokens)) != first
    return {"wrong": unseen, "message": message, "then": then, "seen": seen}


def unsharded(make: Make, mine: Mine) -> dict[str, Any]:
    """Samplers of a root's unsharded parameters."""
    model = make()
    right = dict(model.named_parameters())
    state = functional.init(right)
    with torch.no_grad():
        loss_fn(model, mine(batch(0)))
    named = dict(model.named_parameters())
    grads = dict.fromkeys(named)
    before = shard.full(right["norm.weight"]).clone()
    with torch.no_grad():
        named["norm.weight"].mul_(2.0)
    messages = [
        said(lambda: sampler(model)),
        said(lambda: functional.init(named)),
        said(lambda: functional.update(grads, state, named, **SETTINGS)),
        said(lambda: functional.update(grads, state, right, **SETTINGS)),
    ]
    shard.reshard(model)
    lost = torch.equal(shard.full(dict(model.named_parameters())["norm.weight"]), before)
    then = said(lambda: functional.update(grads, state, right, **SETTINGS))
    return {"wrong": lost, "messages": messages, "then": then}


def kept_unsharded(make: Make, mine: Mine) -> dict[str, Any]:
    """reshard_after_backward=False, by which a step finds all unsharded."""
    model = make()
    chain = sampler(model)
    model.set_reshard_after_backward(False)
    loss_fn(model, mine(batch(0))).backward()
    message = said(chain.step)
    shard.reshard(model)
    return {"message": message, "then": said(chain.step)}


def unsynchronised(make: Make, mine: Mine) -> dict[str, Any]:
    """A step before the gradients are reduced."""
    model = make()
    chain = sampler(model)
    model.set_requires_gradient_sync(False)
    loss_fn(model, mine(batch(0))).backward()
    message = said(chain.step)
    model.set_requires_gradient_sync(True)
    loss_fn(model, mine(batch(0))).backward()
    return {"message": message, "then": said(chain.step)}


def replaced(make: Make, mine: Mine) -> dict[str, Any]:
    """Other parameters in the model than its sampler holds; a model that is converted."""
    model = make()
    chain = sampler(model)
    one_step(model, chain, mine(batch(0)))
    saved = {name: t.clone() for name, t in model.state_dict().items()}
    model.load_state_dict(saved, assign=True)
    loss_fn(model, mine(batch(0))).backward()
    message = said(chain.step)
    model = make()
    chain = sampler(model)
    one_step(model, chain, mine(batch(0)))
    model.to(torch.float64)  # in place: what the sampler keeps no longer fits
    return {"message": message, "converted": said(chain.step)}


def misplaced(make: Make, mine: Mine) -> dict[str, Any]:
    """Gradients, anchors and seeds that do not fit."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    model = make()
    named = dict(model.named_parameters())
    state = functional.init(named)
    p = named["norm.weight"]
    full = torch.ones(p.shape)
    messages = [said(lambda: functional.update({"norm.weight": full}, state, named, **SETTINGS))]
    saved = sampler(model).state_dict()
    for kept in saved["state"].values():
        kept["anchor"] = shard.full(kept["anchor"])
    chain = sampler(model)
    chain.load_state_dict(saved)
    messages.append(said(chain.step))
    # Other placements of a gradient are the same gradient.
    moved = []
    for placements in ([Shard(0)], [Replicate()]):
        other = make()
        params = dict(other.named_parameters())
        g = distribute_tensor(full, params["norm.weight"].device_mesh, placements, src_data_rank=None)
        functional.update({"norm.weight": g}, functional.init(params), params, **SETTINGS)
        moved.append(shard.full(params["norm.weight"]))
    return {"messages": messages, "same": torch.equal(*moved)}


def interrupted(make: Make, mine: Mine) -> dict[str, Any]:
    """An estimate that an exception ends in the middle of a forward pass."""
    model = make()
    before = [shard.local(p).clone() for p in model.parameters()]
    calls = []

    def stop(*_: Any) -> None:
        calls.append(0)
        if len(calls) == 5:
            raise KeyboardInterrupt

    hook = model.layers[1].mlp.register_forward_hook(stop)
    try:
        estimate(model, mine)
    except KeyboardInterrupt:
        calls.append(1)
    hook.remove()
    named = dict(model.named_parameters())
    kept = all(torch.equal(shard.local(p), b) for p, b in zip(named.values(), before, strict=True))
    again, first = estimate(model, mine), estimate(make(), mine)
    return {"stopped": calls[-1] == 1, "kept": kept, "same": again.llc_mean == first.llc_mean}


def narrowed(make: Make, mine: Mine) -> dict[str, Any]:
    """FSDP that computes in bf16, whose first passes see all but a head frozen."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    model = make(mp_policy=policy)
    estimate(model, mine, "l1h0")
    loss_fn(model, mine(batch(0))).backward()
    dtypes = {p.grad.dtype for p in model.parameters() if p.grad is not None}
    return {"fp32": dtypes == {torch.float32}, "llc": estimate(model, mine).llc_mean}


def estimate(model: Any, mine: Mine, component: str = "full") -> Any:
    pool = [mine(batch(i)) for i in range(2)]
    return estimate_llc(model, loss_fn, pool, component=component, num_chains=1, num_draws=4, **SETTINGS)


def disagreeing(make: Make, mine: Mine) -> dict[str, Any]:
    """Ranks that are given other settings, or other numbers of batches."""
    model, rank = make(), torch.distributed.get_rank()
    pool = [mine(batch(i)) for i in range(2 + rank)]
    settings = {"num_chains": 1, "num_draws": 4, **SETTINGS}
    messages = [
        said(lambda: estimate_llc(model, loss_fn, pool, **settings)),
        said(lambda: estimate_llc(model, loss_fn, pool[:2], seed=rank, **settings)),
    ]
    spoilt = dict(model.named_parameters())["norm.weight"]
    if rank == 1:
        shard.local(spoilt).data[0] = float("nan")
    messages.append(said(lambda: estimate_llc(model, loss_fn, pool[:2], **settings)))
    return {"messages": messages}


TRAPS: dict[str, Callable[[Make, Mine], dict[str, Any]]] = {
    f.__name__: f
    for f in (
        zeroed_late,
        zeroed_late_flat,
        zeroed_late_in_place,
        zeroed_in_time,
        evaluated,
        unsharded,
        kept_unsharded,
        unsynchronised,
        replaced,
        misplaced,
        interrupted,
        narrowed,
        disagreeing,
    )
}
