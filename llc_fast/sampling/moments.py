"""Moments of observables, streamed: what is kept of the losses at draws where the draws are not."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import ArgumentError
from ..feed import to_obs_id

KINDS = ("variance", "sequence", "token")
SHARE_OF_MEMORY = 0.5  # of what is free; the chain needs the rest


class Spec(NamedTuple):
    """An array of the `/moments` group: one row for each chain."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str


class Moments:
    """Count, mean and second moments of the losses of observables over the draws of each chain, in float64.

    shapes: {observable, as the tree calls it: (sequences, tokens)}. chains: how many there will be.
    kinds: "variance" is always kept: of each token and each sequence its variance, and of each token its covariance
    with the scalar, in memory of O(tokens); "sequence" adds the covariance matrix of the sequences of all
    observables, "token" that of all their tokens. Sequences stand in the order of the sorted names of the
    observables; the loss of a sequence is the mean over its tokens.
    scalar: "loss", the sampling loss of the draw, or an observable, whose mean loss is taken. device: the model's,
    where the sums are.

    Chains are kept apart, so that dead ones can be left out afterwards. The update is Welford's, which loses no
    digits where losses are large and vary little. Raises ArgumentError where names or shapes do not fit, or where
    the sums would need more than half of the memory that is free.
    Source: Chan, Golub & LeVeque 1983, The American Statistician 37:242.

    >>> m = Moments({"probe": (1, 1)}, 1)
    >>> for i, x in enumerate([1.0, 3.0]):
    ...     m.draw([0], i, {"probe": torch.full((1, 1, 1), x)}, torch.tensor([2 * x]))
    >>> m.arrays()["m2_probe"][1].item(), m.arrays()["cross_probe"][1].item()
    (2.0, 4.0)
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, int]],
        chains: int,
        *,
        kinds: Sequence[str] = (),
        scalar: str = "loss",
        device: torch.device | str = "cpu",
    ) -> None:
        self.kinds = checked_kinds(kinds)
        self.scalar = scalar if scalar == "loss" else to_obs_id(scalar)
        self.names = sorted(shapes)
        self.shapes = {name: shapes[name] for name in self.names}
        self.device = torch.device(device)
        if self.device.type == "mps":  # which has no float64
            self.device = torch.device("cpu")
        _check_shapes(self.shapes, self.scalar)
        self._specs = _specs(self.shapes, chains, self.kinds)
        _check_memory(self._specs, self.device)
        self._held = {
            name: torch.zeros(spec.shape, dtype=torch.float64, device=self.device)
            for name, spec in self._specs.items()
            if spec.dtype == "float64"
        }
        place = -1 if self.scalar == "loss" else self.names.index(self.scalar)
        self._held["count"] = torch.zeros(chains, dtype=torch.int64)  # read at every draw, so on the CPU
        self._held["scalar_place"] = torch.full((chains,), place)

    def specs(self) -> dict[str, Spec]:
        """Name -> dimensions, shape and dtype of the arrays that `arrays` gives."""
        return dict(self._specs)

    def arrays(self, chains: Sequence[int] | None = None) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
        """Name -> dimensions and a copy of the values, of these chains or of all.

        `scalar_place` is the scalar's place among the sorted names of the observables, -1 for the sampling loss.
        """
        rows = list(range(self._held["count"].numel())) if chains is None else list(chains)
        return {name: (spec.dims, self._held[name][rows].cpu().numpy()) for name, spec in self._specs.items()}

    @torch.no_grad()
    def draw(self, chains: Sequence[int], draw: int, observed: Mapping[str, Tensor], scalar: Tensor) -> None:
        """Count a draw of these chains: losses (k, sequences, tokens) of each observable and scalars (k,)."""
        rows = list(chains)
        self._check_draw(rows, draw, observed, scalar)
        if not rows:
            return
        held, index = self._held, torch.tensor(rows, device=self.device)
        held["count"][rows] += 1
        n = held["count"][rows].to(self.device, torch.float64)
        weight = (n - 1) / n
        losses = {name: observed[name].to(n) for name in self.names}
        value = losses[self.scalar].mean(dim=(1, 2)) if self.scalar in losses else scalar.to(n)
        ds = value - held["scalar_mean"][index]
        held["scalar_mean"][index] += ds / n
        held["scalar_m2"][index] += weight * ds * ds
        n, weight, ds = (t.view(-1, 1, 1) for t in (n, weight, ds))
        shifts = []
        for name in self.names:
            d = losses[name] - held[f"mean_{name}"][index]
            held[f"mean_{name}"][index] += d / n
            held[f"m2_{name}"][index] += weight * d * d
            held[f"cross_{name}"][index] += weight * ds * d
            shifts.append(weight.sqrt() * d)
        d = torch.cat(shifts, dim=1)
        per_sequence = d.nanmean(dim=2)
        held["sequence_m2"][index] += per_sequence.square()
        for kind, vectors in (("sequence", per_sequence), ("token", d.flatten(1))):
            if kind in self.kinds:
                for chain, v in zip(
                    rows, vectors, strict=True
                ):  # one by one in place: a copy would be as large
                    held[f"{kind}_comoment"][chain].view(len(v), len(v)).addr_(v, v)

    def state(self) -> dict[str, Any]:
        """A copy of all sums, on the CPU, with what they are sums of."""
        sums = {name: t.to("cpu", copy=True) for name, t in self._held.items()}
        return {"scalar": self.scalar, "sums": sums}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave. Raises ArgumentError where it is of other moments."""
        sums = state["sums"]
        shapes = {name: tuple(t.shape) for name, t in sums.items()}
        if state["scalar"] != self.scalar or shapes != {n: spec.shape for n, spec in self._specs.items()}:
            raise ArgumentError(
                "the saved moments are of other observables, chains, kinds or of another scalar: resume with "
                "the settings of the run that saved them"
            )
        for name, t in self._held.items():
            t.copy_(sums[name])

    def _check_draw(self, rows: list[int], draw: int, observed: Mapping[str, Tensor], scalar: Tensor) -> None:
        for chain in rows:
            if (have := int(self._held["count"][chain])) != draw:
                raise ArgumentError(f"draw {draw} of chain {chain} came after {have} draws: each counts once")
        if set(observed) != set(self.names):
            raise ArgumentError(f"observed has {sorted(observed)}, expected {self.names}")
        for name, t in observed.items():
            if t.shape != (expected := (len(rows), *self.shapes[name])):
                raise ArgumentError(f"losses of {name!r} have shape {tuple(t.shape)}, expected {expected}")
        if scalar.shape != (len(rows),):
            raise ArgumentError(f"scalar has shape {tuple(scalar.shape)}, expected {(len(rows),)}")


def checked_kinds(kinds: Sequence[str]) -> tuple[str, ...]:
    """The kinds of moments in a fixed order, "variance" always among them."""
    given = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    for kind in given:
        if kind not in KINDS:
            raise ArgumentError(f"moments has {kind!r}: use some of {', '.join(map(repr, KINDS))}")
    return tuple(kind for kind in KINDS if kind == "variance" or kind in given)


def _check_shapes(shapes: Mapping[str, tuple[int, int]], scalar: str) -> None:
    if not shapes:
        raise ArgumentError("there are no observables to take moments of: give at least one")
    if len(lengths := {tokens for _, tokens in shapes.values()}) > 1:
        raise ArgumentError(f"observables have {sorted(lengths)} tokens: cut them to one length")
    if scalar == "loss" and "loss" in shapes:
        raise ArgumentError("scalar='loss' is the sampling loss, and an observable has that name: rename it")
    if scalar != "loss" and scalar not in shapes:
        raise ArgumentError(f"scalar is {scalar!r}: use 'loss' or one of the observables {list(shapes)}")


def _specs(shapes: Mapping[str, tuple[int, int]], chains: int, kinds: Sequence[str]) -> dict[str, Spec]:
    specs = {name: Spec(("chain",), (chains,), "int64") for name in ("count", "scalar_place")}
    specs |= {name: Spec(("chain",), (chains,), "float64") for name in ("scalar_mean", "scalar_m2")}
    for name, (sequences, tokens) in shapes.items():
        dims = ("chain", f"batch_{name}", "token_pos")
        for part in ("mean", "m2", "cross"):
            specs[f"{part}_{name}"] = Spec(dims, (chains, sequences, tokens), "float64")
    total, tokens = sum(n for n, _ in shapes.values()), next(iter(shapes.values()))[1]
    specs["sequence_m2"] = Spec(("chain", "sequence"), (chains, total), "float64")
    if "sequence" in kinds:
        specs["sequence_comoment"] = Spec(
            ("chain", "sequence", "sequence_T"), (chains, total, total), "float64"
        )
    if "token" in kinds:
        specs["token_comoment"] = Spec(
            ("chain", "sequence", "token_pos", "sequence_T", "token_pos_T"),
            (chains, total, tokens, total, tokens),
            "float64",
        )
    return specs


def _check_memory(specs: Mapping[str, Spec], device: torch.device) -> None:
    sizes = {name: 8 * int(np.prod(spec.shape, dtype=np.float64)) for name, spec in specs.items()}
    free = free_memory(device)
    if free is None or sum(sizes.values()) <= SHARE_OF_MEMORY * free:
        return
    largest = max(sizes, key=lambda name: sizes[name])
    raise ArgumentError(
        f"moments need {sum(sizes.values()) / 2**30:.3g} GiB ({largest} {specs[largest].shape} alone "
        f"{sizes[largest] / 2**30:.3g}), more than half of the {free / 2**30:.3g} GiB free on {device}: leave out "
        "'token', or take fewer sequences (batches_per_draw) or chains"
    )


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device; None where nobody says."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo") as lines:
            found = {line.split(":")[0]: line.split()[1] for line in lines}
        return int(found["MemAvailable"]) * 1024
    except (OSError, KeyError, IndexError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
