"""How a step grows with the part of a model that it moves: a head, a layer, half of it, all, or elements at random."""

from __future__ import annotations

import itertools
from functools import partial

import torch
from torch import Tensor

from llc_fast import masks
from llc_fast.selection import boxes
from llc_fast.types import Box, Tile

from . import _peers
from ._pairs import CACHES, timed
from ._rotate import MOST, caches, copies, lacking, rotated, short
from ._table import Column, Plot, Table
from ._timing import Call
from ._work import Setting, Shapes, Subject, Work, gpt2_shapes, make, ours

HEAD = 64  # width of a head of GPT-2
FP32 = torch.float32


def head_boxes(shapes: Shapes, layer: int, head: int, wide: int = HEAD) -> dict[int, list[Box]]:
    """The boxes of a head of GPT-2 by the position of their tensor in `gpt2_shapes`: queries, keys, values, output."""
    first, width = 2 + 12 * layer, shapes[0][1]
    parts = [(i * width + head * wide, i * width + (head + 1) * wide) for i in range(3)]
    attn, bias, proj = first + 2, first + 3, first + 4
    return {
        attn: [boxes.span(shapes[attn], 1, *part) for part in parts],
        bias: [boxes.span(shapes[bias], 0, *part) for part in parts],
        proj: [boxes.span(shapes[proj], 0, *parts[0])],
    }


def layer_boxes(shapes: Shapes, layers: range) -> dict[int, list[Box]]:
    """All of some layers."""
    return {i: list(boxes.whole(shapes[i])) for i in range(2 + 12 * layers.start, 2 + 12 * layers.stop)}


def selection(setting: Setting) -> Table:
    layers, width = setting.pick(12, 6, 1), setting.pick(768, 384, 16)
    shapes = gpt2_shapes(*setting.pick((), (6, 384, 16000), (1, 16, 16, 4)))
    numel, held = sum(torch.Size(s).numel() for s in shapes), 12 * sum(torch.Size(s).numel() for s in shapes)
    wide = setting.pick(HEAD, HEAD, 8)
    everything = {i: list(boxes.whole(s)) for i, s in enumerate(shapes)}
    parts = {
        "one head": [
            head_boxes(shapes, i, j, wide) for i, j in itertools.product(range(layers), range(width // wide))
        ],
        "one layer": [layer_boxes(shapes, range(i, i + 1)) for i in range(layers)],
        "half of the layers": [layer_boxes(shapes, range(max(1, layers // 2)))],
        "everything": [everything],
    }
    table = Table(
        "curve-selection",
        f"A step of a part of a model of {short(numel)} parameters (GPT-2's shapes)",
        [
            Column("chosen", "selected", ",.0f"),
            Column("us", "us/step", ",.1f"),
            Column("ns", "ns a selected one", ".3f"),
            Column("low", "from", ".3f"),
            Column("high", "to", ".3f"),
            Column("gain", "ours is faster by", ".1f", "x"),
            CACHES,
        ],
        "A step that moves only a part, as for the learning coefficient of a head or a layer. Ours visits the "
        "selected boxes and nothing else; devinterp is given the tensors that hold the part, and their masks where "
        "they hold more. random mask: elements chosen one by one at random, which our step reads as a bit each: it "
        "then visits all elements, and writes those chosen. Rows of heads and layers take them in turn, over copies "
        "of the model too, so that they do not stay in the cache where data/cache is above 1.",
        plot=Plot("curves", "us", "microseconds a step", x="chosen", xlabel="selected parameters", log="xy"),
    )
    count = copies(held, setting.device, setting.pick(MOST, MOST, 2))
    if lacking(table, (count + 4) * held, setting.device):  # a step of devinterp's takes some more
        return table
    works = [make(shapes, FP32, setting.device, seed) for seed in range(count)]
    subjects, extra = [], {}
    most = setting.pick(64, 32, 2)
    for what, found in parts.items():
        chosen = sum(box.numel for each in found[0].values() for box in each)
        needed = copies(12 * chosen, setting.device, most)
        targets = list(itertools.islice(itertools.product(works, found), needed))
        value = {"chosen": chosen, "caches": caches(len(targets) * 12 * chosen, setting.device)}
        for backend in setting.backends:
            name = setting.named("llc_fast", backend)
            build = rotated(partial(_boxed, backend=backend), targets)
            subjects.append(Subject(f"{name}, {what}", build, chosen))
            extra[f"{name}, {what}"] = {"series": name, **value}
        build, name = rotated(_masked_peer, targets[: setting.pick(8, 4, 1)]), f"devinterp, {what}"
        mine = f"{setting.named('llc_fast', setting.backend)}, {what}"
        subjects.append(Subject(name, build, chosen, role="peer", mine=mine))
        used = {i for each in found[:1] for i in each}
        touched = (
            12 * sum(torch.Size(shapes[i]).numel() for i in used) * len(targets[: setting.pick(8, 4, 1)])
        )
        extra[name] = {"series": "devinterp", "chosen": chosen, "caches": caches(touched, setting.device)}
    cap = setting.pick(
        masks.CAP, masks.CAP, 0
    )  # boxes of a tensor before it has bits: tiny ones would have no bits
    for share in setting.pick((0.01, 0.1, 0.5), (0.01, 0.5), (0.5,)):
        generator = torch.Generator().manual_seed(0)
        given = [torch.rand(s, generator=generator) < share for s in shapes]
        chosen = int(sum(m.sum() for m in given))
        for backend in setting.backends:
            name = setting.named("llc_fast, random mask", backend)
            title = f"{name} of {share:.0%}"
            build = rotated(partial(_random, given=given, cap=cap, backend=backend), works)
            subjects.append(Subject(title, build, chosen))
            extra[title] = {
                "series": name,
                "chosen": chosen,
                "caches": caches(len(works) * held, setting.device),
            }
    timed(table, subjects, setting, extra)
    return table


Target = tuple[Work, dict[int, list[Box]]]


def _part(target: Target) -> tuple[Work, list[list[Box]]]:
    """The tensors that hold a part, and its boxes in each."""
    work, found = target
    params, grads, anchors = ([ts[i] for i in found] for ts in (work.params, work.grads, work.anchors))
    return Work(params, grads, anchors), list(found.values())


def _boxed(target: Target, backend: str) -> Call:
    work, found = _part(target)
    return ours(work, backend, tiles=[Tile.of(i, box) for i, each in enumerate(found) for box in each])


def _masked_peer(target: Target) -> Call:
    work, found = _part(target)
    given: list[Tensor] = []
    for p, each in zip(work.params, found, strict=True):
        mask = torch.zeros(p.shape, dtype=torch.bool, device=p.device)
        for box in each:
            mask.view(-1).as_strided((box.rows, box.cols), (box.stride, 1), box.start).fill_(True)
        given.append(mask)
    whole = all(bool(mask.all()) for mask in given)
    return _peers.devinterp(work) if whole else _peers.devinterp(work, mask=given)


def _random(work: Work, given: list[Tensor], cap: int, backend: str) -> Call:
    tiles, bits = masks.tiles(work.params, given, cap)
    return ours(work, backend, tiles=tiles, masks=bits)
