"""What four ranks do in every layout, and one process without: `python shard_worker.py FOLDER quick|slow`."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from shard_model import LAYOUTS, Tiny, batch, gradient, like, loss_fn, losses, meshes, part, plain, spread
from shard_traps import TRAPS
from torch import Tensor

from llc_fast import (
    SGHMC,
    SGLD,
    SGNHT,
    RMSpropSGLD,
    estimate_llc,
    functional,
    masks,
    select,
    sgld_step_,
    shard,
)
from llc_fast.samplers import find

Make = Callable[..., Tiny]
RANKS = 4
SGLD_ = {"lr": 1e-3, "nbeta": 30.0, "localization": 10.0, "seed": 3}
BF16 = torch.bfloat16

# Sampler, its arguments, dtype of the model, what moves.
FED: dict[str, tuple[Any, dict[str, Any], torch.dtype, str]] = {
    "sgld": (SGLD, SGLD_, torch.float32, "full"),
    "split bf16": (SGLD, SGLD_ | {"bounding_box_size": 0.02, "weight_decay": 0.1}, BF16, "full"),
    "sr": (SGLD, SGLD_ | {"lr": 0.1, "state": "sr"}, BF16, "full"),
    "fp16": (SGLD, SGLD_, torch.float16, "full"),
    "rmsprop": (RMSpropSGLD, SGLD_ | {"alpha": 0.9, "eps": 0.1}, BF16, "full"),
    "sghmc": (SGHMC, SGLD_ | {"friction": 0.1, "bounding_box_size": 0.02}, torch.float32, "full"),
    "sgnht": (SGNHT, {"lr": 1e-3, "nbeta": 30.0, "seed": 3}, torch.float32, "full"),
    "head": (RMSpropSGLD, SGLD_, BF16, "l1h3"),
    "some ranks": (SGNHT, {"lr": 1e-3, "nbeta": 30.0, "seed": 3}, torch.float32, "scale"),
    "masks": (SGLD, SGLD_, torch.float32, "masks"),
    "bits": (RMSpropSGLD, SGLD_, torch.float32, "bits"),
}


def feed(model: Tiny, step: int) -> None:
    """Give every parameter the gradient that it has on one rank."""
    for name, p in model.named_parameters():
        g = gradient(name, p, step)
        p.grad = None if g is None else like(g, p)


def whole(model: Tiny, sampler: Any = None) -> dict[str, Any]:
    """This rank's part of the parameters and of the state."""
    found: dict[str, Any] = {name: p.detach().clone() for name, p in model.named_parameters()}
    if sampler is not None:
        for name, p in model.named_parameters():
            kept = sampler.state.get(p, {})
            found |= {f"{name} {key}": t.clone() for key, t in kept.items() if key != "mask"}
    return found


def apart(here: Any, alone: Any, at: str = "") -> list[str]:
    """Where what a rank has differs in a bit from its part of what one rank alone has."""
    if isinstance(alone, dict):
        if not isinstance(here, dict) or here.keys() != alone.keys():
            return [f"{at}: other keys"]
        return [line for key in alone for line in apart(here[key], alone[key], f"{at} {key}")]
    if isinstance(alone, Tensor):
        own = shard.local(like(alone, here)) if shard.is_dtensor(here) else alone
        if torch.equal(shard.local(here), own):
            return []
        return [f"{at}: by up to {float((shard.local(here).double() - own.double()).abs().max()):.2g}"]
    return [] if here == alone else [f"{at}: {here!r}, expected {alone!r}"]


def construct(kind: str, model: Tiny, **more: Any) -> Any:
    sampler, settings, _, what = FED[kind]
    named = list(model.named_parameters())
    if what in ("masks", "bits"):
        generator = torch.Generator().manual_seed(5)
        more["mask"] = [torch.rand(p.shape, generator=generator) < 0.5 for _, p in named]
    elif what != "full":
        more["selection"] = select(model, what)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sampler(named, **settings, **more)


def fed(kind: str, make: Make) -> dict[str, Any]:
    """Three steps with gradients from nowhere; metrics and sketches of the last."""
    model = make(dtype=FED[kind][2])
    tiles = masks.tiles
    masks.tiles = partial(tiles, cap=2) if kind == "bits" else tiles  # so that no mask is a few boxes
    sampler = construct(
        kind, model, save_metrics=kind != "sr", sketch_dim=16 if kind in ("sgld", "rmsprop") else None
    )
    out: dict[str, Any] = {}
    for step in range(3):
        feed(model, step)
        sampler.step()
        if step != 1:
            out[f"bits {step}"] = whole(model, sampler)
    if find(sampler.param_groups[0]["sampler"]).thermostat:  # a sum over all ranks: to rounding
        out["near"] = {name: shard.full(t) for name, t in out.pop("bits 2").items()}
        key = next(key for key in out["bits 0"] if "thermostat" in key)
        out["near thermostat"] = out["bits 0"].pop(key)  # of equal states
    masks.tiles = tiles
    if sampler.save_metrics:
        out["near metrics"] = vars(sampler.get_metrics())
    if sampler.save_sketches:
        out["near sketches"] = vars(sampler.get_sketches())
    if kind == "sr":
        out["bits notes"] = sampler.notes
    return out


def noise(make: Make) -> dict[str, Any]:
    """The noise alone: weights at 0, no gradients."""
    model = make()
    with torch.no_grad():
        for p in model.parameters():
            shard.local(p).zero_()
    SGLD(list(model.named_parameters()), lr=1.0, nbeta=2.0, seed=9).step()
    return {"bits": whole(model)}


def explicit(make: Make) -> dict[str, Any]:
    """The functional form."""
    model = make(dtype=BF16)
    params = dict(model.named_parameters())
    state = functional.init(params, select(model, ["l0h1", "embed"]), sampler="sghmc", seed=4, sums=True)
    for step in range(2):
        feed(model, step)
        grads = {name: p.grad for name, p in params.items()}
        state = functional.update(grads, state, params, lr=1e-3, nbeta=30.0, localization=10.0, friction=0.2)
    return {"bits": whole(model), "near": state.totals()}


def resumed(make: Make) -> dict[str, Any]:
    """A chain of which the sampler is saved and loaded between steps."""
    model = make(dtype=BF16)
    sampler = construct("rmsprop", model)
    for step in range(3):
        feed(model, step)
        sampler.step()
        saved, sampler = sampler.state_dict(), construct("rmsprop", model)
        sampler.load_state_dict(saved)
    return {"bits": whole(model, sampler)}


def once(make: Make) -> dict[str, Any]:
    """A step of the op."""
    model = make()
    feed(model, 0)
    params = [p.detach() for p in model.parameters()]
    grads = [p.grad for p in model.parameters()]
    anchors = [p.clone() for p in params]
    sums = torch.zeros(len(params), 24, dtype=torch.float64)
    sgld_step_(params, grads, anchors, lr=1e-3, nbeta=30.0, localization=9.0, seed=1, step=5, sums=sums)
    return {"bits": whole(model), "near": sums}


def loop(steps: int, accumulate: bool, make: Make, mine: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """A chain with the model's own gradients: its losses."""
    model = make()
    sampler = SGLD(list(model.named_parameters()), lr=1e-4, nbeta=30.0, localization=10.0, seed=3)
    found = []
    for step in range(steps):
        model.zero_grad()
        for half in range(2 if accumulate else 1):
            if accumulate and hasattr(model, "set_requires_gradient_sync"):
                model.set_requires_gradient_sync(half == 1)
            loss = loss_fn(model, mine(batch(2 * step + half))) / (2 if accumulate else 1)
            loss.backward()
            found.append(float(loss.detach()))
        sampler.step()
    return {"losses": torch.tensor(found, dtype=torch.float64)}


def estimate(component: str, make: Make, mine: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    model = make()
    loss_fn(model, mine(batch(0))).backward()  # the caller's own gradients, and an unsharded root
    with torch.no_grad():
        loss_fn(model, mine(batch(0)))
    before = {name: p.grad for name, p in _sharded(model).items()}
    sampler = {"l1h2": "rmsprop_sgld", "norm.*": "sgnht"}.get(component, "sgld")
    result = estimate_llc(
        model,
        losses,
        [mine(batch(i)) for i in range(3)], component=component, lr=1e-4, nbeta=30.0,
        localization=10.0, num_chains=2, num_draws=2, num_burnin_steps=1, sampler=sampler,
        bounding_box_size=1.0, seed=2, stacked=False,
    )  # fmt: skip
    after = _sharded(model)
    return {
        "losses": torch.as_tensor(result.loss_trace),
        "numbers": torch.tensor([result.llc_mean, result.gradient_term, result.init_loss, result.order_bias]),
        "settings": result.settings,
        "bits": whole(model),
        "grads kept": all(after[name].grad is g for name, g in before.items()),
        "trainable": all(p.requires_grad for p in after.values()),
    }


def _sharded(model: Tiny) -> dict[str, Any]:
    shard.reshard(model)
    return dict(model.named_parameters())


def placed(mesh: Any) -> list[str]:
    """Tiles of tensors in many placements against what PyTorch puts there; what is wrong, or nothing."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    from llc_fast.types import Box

    generator = torch.Generator().manual_seed(0)

    def draw(n: int) -> int:
        return int(torch.randint(n, (), generator=generator))

    for _ in range(40):
        shape = [1 + draw(7) for _ in range(1 + draw(3))]
        placements = [Replicate() if draw(3) == 0 else Shard(draw(len(shape))) for _ in range(mesh.ndim)]
        full = torch.arange(torch.Size(shape).numel()).view(shape)
        p = distribute_tensor(full, mesh, placements, src_data_rank=None)
        here = shard.local(p)
        size = 1 + draw(full.numel())
        start = draw(full.numel() - size + 1)
        for boxes in (None, [Box(start, 1, size, size)]):
            seen = []
            for tile in shard.tiles(0, p, boxes):
                rows, cols = torch.arange(tile.rows)[:, None], torch.arange(tile.cols)
                at = here.reshape(-1)[tile.offset + rows * tile.stride + cols]
                if not torch.equal(at, tile.start + rows * tile.global_stride + cols):
                    return [f"{shape} {placements}: {tile} holds {at}"]
                seen += at.reshape(-1).tolist()
            wanted = [i for i in here.reshape(-1).tolist() if boxes is None or start <= i < start + size]
            if sorted(seen) != sorted(wanted) or not torch.equal(shard.positions(p), here):
                return [f"{shape} {placements} {boxes}: {seen}, expected {wanted}"]
        mask = full % 3 == 0
        if not torch.equal(shard.local_mask(p, mask), here % 3 == 0):
            return [f"{shape} {placements}: mask"]
    return []


ESTIMATES = ("full", "l1h2", "norm.*")


def names(mode: str, layout: str) -> list[str]:
    """What is looked at in a layout."""
    if mode == "slow":
        every = [*FED, "noise", "functional", "op", "resumed", "long", "accumulated long"]
        return [*every, *map("estimate {}".format, ESTIMATES)]
    few = [
        "noise",
        "sgld",
        "split bf16",
        "rmsprop",
        "head",
        "some ranks",
        "loop",
        "accumulated",
        "estimate l1h2",
    ]
    if layout in ("fsdp1", "fsdp2", "hsdp", "tp2"):
        return few
    return [
        *FED,
        "noise",
        "functional",
        "op",
        "resumed",
        "loop",
        "accumulated",
        "estimate full",
        "estimate l1h2",
    ]


def look(name: str, make: Make, mine: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    if name in FED:
        return fed(name, make)
    if name.startswith("estimate"):
        return estimate(name.removeprefix("estimate "), make, mine)
    loops = {
        "loop": (4, False),
        "long": (30, False),
        "accumulated": (2, True),
        "accumulated long": (15, True),
    }
    if name in loops:
        return loop(*loops[name], make, mine)
    return {"noise": noise, "functional": explicit, "op": once, "resumed": resumed}[name](make)


def alone(mode: str) -> dict[str, Any]:
    """The same on one rank, without any layout."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        every = dict.fromkeys(name for layout in LAYOUTS for name in names(mode, layout))
        return {name: look(name, plain, lambda tokens: tokens) for name in every}


def work(rank: int, folder: str, mode: str) -> None:
    """One rank: writes what it found, and where its bits are other than those in the folder's `alone.pt`."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("torch.distributed.tensor").setLevel(logging.ERROR)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    expected = torch.load(f"{folder}/alone.pt", weights_only=False)
    found: dict[Any, Any] = {}
    every = meshes()
    for layout, mesh in every.items():
        if "copy" in LAYOUTS[layout][1] and mesh["copy"].get_local_rank() > 0:
            continue
        make, mine = partial(spread, layout, mesh), partial(part, layout, mesh)
        for name in names(mode, layout):
            result = look(name, make, mine)
            if "losses" in result and not name.startswith("estimate"):  # of parts of a batch
                ranks = shard.Ranks(list(make().parameters()))
                result["losses"] = ranks.sum(result["losses"]) / ranks.count
            bits = [key for key in result if key.startswith("bits")]
            result["apart"] = [x for key in bits for x in apart(result.pop(key), expected[name][key], key)]
            found[layout, name] = result
        if mode == "quick":
            found[layout, "placed"] = {"apart": placed(mesh)}
    if mode == "quick" and every["fsdp2"]["copy"].get_local_rank() == 0:
        for name, trap in TRAPS.items():
            found["trap", name] = trap(
                partial(spread, "fsdp2", every["fsdp2"]), partial(part, "fsdp2", every["fsdp2"])
            )
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.spawn(work, args=(sys.argv[1], sys.argv[2]), nprocs=RANKS)
