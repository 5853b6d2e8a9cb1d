"""The samplers of chains alone: one step of each on the same weights and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import llc_fast
from llc_fast.types import Tile

from ._chains import LOCALIZATION, LR, NBETA, Walk, chosen, devinterp_masks
from ._models import token_losses
from ._timing import Call, reason
from ._work import Work
from ._work import ours as prepared

SETTINGS = {"lr": LR, "nbeta": NBETA, "localization": LOCALIZATION}
SCALE = math.sqrt(LR)


@dataclass(frozen=True)
class Moving:
    """What moves: parameters with their masks, and copies of them to move, with gradients."""

    walk: Walk
    params: dict[str, tuple[Tensor, Tensor | None]]
    work: Work

    @classmethod
    def of(cls, walk: Walk) -> Moving:
        params = chosen(walk)
        tensors = [p for p, _ in params.values()]
        grads = list(torch.autograd.grad(token_losses(walk.model, walk.pool[0]).mean(), tensors))
        anchors = [p.detach() for p in tensors]
        return cls(walk, params, Work([w0.clone() for w0 in anchors], grads, anchors))


def samplers(walk: Walk, backend: str = "auto") -> tuple[dict[str, Call], dict[str, str]]:
    """A step each of "ours", "devinterp" and "eager"; and why one is not there."""
    builders: dict[str, Callable[[Moving], Call]] = {
        "ours": lambda moving: ours(moving, backend),
        "devinterp": devinterp,
        "eager": eager,
    }
    try:
        moving = Moving.of(walk)
    except Exception as e:
        return {}, dict.fromkeys(builders, reason(e))
    calls: dict[str, Call] = {}
    absent: dict[str, str] = {}
    for name, build in builders.items():
        try:
            calls[name] = build(moving)
        except Exception as e:
            absent[name] = reason(e)
    return calls, absent


def ours(moving: Moving, backend: str = "auto") -> Call:
    selection = llc_fast.select(moving.walk.model, moving.walk.component)
    tiles = [Tile.of(i, box) for i, name in enumerate(moving.params) for box in selection.boxes[name]]
    ids = [selection.tensor_ids[name] for name in moving.params]
    return prepared(moving.work, backend, settings=SETTINGS, tiles=tiles, tensor_ids=ids)


def devinterp(moving: Moving) -> Call:
    """Its optimizer as its chains set it up: a group a parameter, with the parameter's mask."""
    from devinterp.optim.sgmcmc import SGMCMC

    leaves = {}
    for (p, _), w, g in zip(moving.params.values(), moving.work.params, moving.work.grads, strict=True):
        leaves[id(p)] = nn.Parameter(w)
        leaves[id(p)].grad = g
    groups = [
        {
            "params": leaves[id(moving.walk.model.get_parameter(name))],
            "mask": None if mask is None else mask.to(moving.walk.device),
        }
        for name, mask in devinterp_masks(moving.walk).items()
    ]
    step: Call = SGMCMC.sgld(groups, **SETTINGS).step
    return step


def eager(moving: Moving) -> Call:
    """The step as one writes it down, times a mask where a part of a tensor moves."""
    work, masks = moving.work, [mask for _, mask in moving.params.values()]

    @torch.no_grad()
    def step() -> None:
        for w, g, w0, mask in zip(work.params, work.grads, work.anchors, masks, strict=True):
            drift = NBETA * g + LOCALIZATION * (w - w0)
            move = SCALE * torch.randn_like(w) - LR / 2 * drift
            w.add_(move if mask is None else move * mask)

    return step
