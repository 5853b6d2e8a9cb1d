"""The order in which chains take the batches of their pools, the same on every machine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from ..noise import BATCH_ORDER, chain_key, words

Places = npt.NDArray[np.int64]

# Streams: batches that give gradients, batches whose losses alone are recorded, what cuts a pool in halves.
GRADIENT, RECORD, HALVES = 0, 1, 2


def batch_order(seed: int, chain: int, epoch: int, size: int, stream: int = GRADIENT) -> list[int]:
    """The order in which a chain takes the batches of its pool in an epoch.

    Batches are sorted by 63 random bits: words 0 and 1 of their own block of the chain's Philox stream.
    """
    order: list[int] = batch_orders(seed, [chain], epoch, size, stream)[0].tolist()
    return order


def batch_orders(seed: int, chains: Sequence[int], epoch: int, size: int, stream: int = GRADIENT) -> Places:
    """`batch_order` of several chains, (chains, size)."""
    if size == 1:
        return np.zeros((len(chains), 1), dtype=np.int64)
    keys = torch.tensor([chain_key(seed, chain) for chain in chains])
    index = torch.arange(size).repeat(len(chains), 1)
    x0, x1, _, _ = words(index, (keys[:, :1], keys[:, 1:]), epoch, stream, BATCH_ORDER)
    return torch.argsort((x0 << 31) | (x1 >> 1), dim=1, stable=True).numpy()


def half_pool(seed: int, pool: Sequence[int], chain: int) -> list[int]:
    """One of two random halves of a pool: chains 2k and 2k + 1 take the two of a cut of their own.

    chain: counted from 0 among those on halves. One cut for all would hide how much cuts differ.
    """
    size = len(pool) // 2
    order = batch_order(seed, 0, chain // 2, len(pool), HALVES)[chain % 2 * size :][:size]
    return [pool[i] for i in order]


class Order:
    """Places of the batches that chains take, one after another: whole epochs over each chain's own pool.

    pools: of each chain, all of one length, as places in the list of all batches.
    """

    def __init__(
        self, seed: int, chains: Sequence[int], pools: Sequence[Sequence[int]], stream: int = GRADIENT
    ) -> None:
        self.seed, self.chains, self.stream = seed, list(chains), stream
        self.pools = np.array([list(pool) for pool in pools], dtype=np.int64)
        self.size = self.pools.shape[1]
        self._epoch, self._order = -1, self.pools

    def at(self, index: int) -> Places:
        """The batch that each chain takes as its index-th, (chains,)."""
        epoch, position = divmod(index, self.size)
        if epoch != self._epoch:
            orders = batch_orders(self.seed, self.chains, epoch, self.size, self.stream)
            self._epoch, self._order = epoch, np.take_along_axis(self.pools, orders, axis=1)
        return self._order[:, position]

    def take(self, step: int, count: int) -> Places:
        """The `count` batches of a step, (chains, count)."""
        return np.stack([self.at(step * count + i) for i in range(count)], axis=1)
