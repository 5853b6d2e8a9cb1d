"""The ranks that hold a model together: which one speaks for a shard, and sums that count each element once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import ArgumentError
from .layout import is_dtensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class Ranks:
    """The ranks of the smallest mesh that holds all of the parameters, at least one of which is a DTensor.

    speaks: for each parameter whether this rank is the first of those that hold the same shard, so that sums over
    the speaking ranks count every element once, whatever mix of meshes and placements the parameters have.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        self.mesh = _common([p.device_mesh for p in params if is_dtensor(p)])
        self.speaks = [self._first(p) for p in params]

    @property
    def count(self) -> int:
        return int(self.mesh.size())

    @property
    def position(self) -> int:
        """Of this rank in what is gathered."""
        at = 0
        for d, c in reversed(list(enumerate(self.mesh.get_coordinate() or ()))):
            at = at * self.mesh.size(d) + c
        return at

    def gather(self, t: Tensor) -> Tensor:
        """The tensors of all ranks, in the same order on each, along a new first dimension; called by all."""
        t, shape = t.to(self.mesh.device_type).contiguous(), t.shape
        for d in range(self.mesh.ndim):
            parts = [torch.empty_like(t) for _ in range(self.mesh.size(d))]
            torch.distributed.all_gather(parts, t, group=self.mesh.get_group(d))
            t = torch.stack(parts)
        return t.view(-1, *shape)

    def sum(self, t: Tensor) -> Tensor:
        """The sum over all ranks, in one order and so with the same bits on each; called by all.

        Gathered and then added: what an all-reduce adds first is up to the library.
        """
        return self.gather(t).sum(dim=0).to(t.device)

    def mean(self, value: float) -> float:
        """The mean of a number over all ranks, the same bits on each; called by all."""
        return float(self.gather(torch.tensor(value, dtype=torch.float64)).cpu().sum()) / self.count

    def all(self, flag: bool) -> bool:
        """Whether it holds on all ranks; called by all."""
        return bool(self.gather(torch.tensor(float(flag))).all())

    def digests(self, digest: bytes) -> list[bytes]:
        """32 bytes of each rank; called by all."""
        rows = self.gather(torch.frombuffer(bytearray(digest), dtype=torch.int64)).cpu()
        return [row.numpy().tobytes() for row in rows]

    def agree(self, name: str, value: object) -> None:
        """Raise on all ranks unless a value is the same on all, as it prints; called by all."""
        if len(set(self.digests(hashlib.sha256(repr(value).encode()).digest()))) > 1:
            raise ArgumentError(f"{name} differ between ranks (here {value!r}): give all ranks the same")

    def _first(self, p: Tensor) -> bool:
        """Whether this rank is the first of those that hold the same elements of a parameter."""
        mine = torch.distributed.get_rank()
        ranks = torch.tensor([mine])
        if is_dtensor(p):
            coordinate = p.device_mesh.get_coordinate()
            if coordinate is None:
                return False
            if any(
                c and placement.is_replicate() for c, placement in zip(coordinate, p.placements, strict=True)
            ):
                return False
            ranks = p.device_mesh.mesh.reshape(-1)
        # Dimensions of the mesh along which the parameter's own ranks lie in one place count copies of it.
        everyone = self.mesh.mesh
        at = torch.stack([(everyone == rank).nonzero()[0] for rank in ranks])
        fixed = (at == at[0]).all(dim=0)
        copies = torch.tensor(everyone.shape)[fixed].prod()
        if int(copies) * len(ranks) != everyone.numel():
            raise ArgumentError(
                f"a parameter's mesh of ranks {ranks.tolist()} is no slice of {everyone.tolist()}: make all meshes "
                "slices of one init_device_mesh"
            )
        return not bool(at[0][fixed].any())


def _common(meshes: Sequence[DeviceMesh]) -> DeviceMesh:
    """The smallest mesh at hand that holds the ranks of all."""
    largest = max(meshes, key=lambda mesh: mesh.size())
    root = getattr(largest, "_get_root_mesh", lambda: largest)()
    everyone = {int(rank) for mesh in meshes for rank in mesh.mesh.reshape(-1)}
    for mesh in (largest, root):
        if everyone <= set(mesh.mesh.reshape(-1).tolist()):
            return mesh
    raise ArgumentError(
        f"parameters are on meshes of ranks {sorted(everyone)} that have no mesh in common: make them slices of one "
        "init_device_mesh"
    )
