"""The exact mean of paired draws of a linear regression whose batches are taken in whole, freshly shuffled epochs.

A step on batch b maps (1, E u, E u u') linearly, u = w - w0. The state before a step, averaged over all orders in
which a set of batches can have been taken, follows from the sets that lack one of them, so that 2^batches matrices
hold every epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
import numpy.typing as npt
from torch import Tensor

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Regression:
    """Losses (x.w - y)^2/2 of a pool around w0, batch by batch: gradients (batches, d), Hessians (batches, d, d)."""

    gradients: Array
    hessians: Array

    @classmethod
    def of(cls, x: Tensor, y: Tensor, w0: Tensor) -> Regression:
        """x: (batches, samples, d), y: (batches, samples)."""
        design, residual = x.double().numpy(), (x @ w0 - y).double().numpy()
        samples = x.shape[1]
        return cls(
            np.einsum("bnd,bn->bd", design, residual) / samples,
            np.einsum("bnd,bne->bde", design, design) / samples,
        )

    def steps(self, *, lr: float, nbeta: float, localization: float) -> list[Array]:
        """What a step of SGLD on each batch does to (1, E u, E u u')."""
        d = self.gradients.shape[1]
        found = []
        for g, h in zip(self.gradients, self.hessians, strict=True):
            m = np.eye(d) - lr / 2 * (nbeta * h + localization * np.eye(d))
            c = (-lr / 2 * nbeta * g)[:, None]
            step = np.zeros((1 + d + d * d, 1 + d + d * d))
            step[0, 0] = 1
            step[1 : d + 1, :1], step[1 : d + 1, 1 : d + 1] = c, m
            step[d + 1 :, :1] = (c @ c.T + lr * np.eye(d)).reshape(-1, 1)
            step[d + 1 :, 1 : d + 1] = np.kron(m, c) + np.kron(c, m)
            step[d + 1 :, d + 1 :] = np.kron(m, m)
            found.append(step)
        return found

    def readings(self) -> list[Array]:
        """What gives E[L_b(w) - L_b(w0)] of each batch."""
        pairs = zip(self.gradients, self.hessians, strict=True)
        return [np.concatenate(([0.0], g, h.reshape(-1) / 2)) for g, h in pairs]


class Epochs:
    """A chain that passes over the pool in epochs, each in a random order; `states` are rows (1, E u, E u u')."""

    def __init__(self, problem: Regression, *, lr: float, nbeta: float, localization: float) -> None:
        self.nbeta = nbeta
        steps = problem.steps(lr=lr, nbeta=nbeta, localization=localization)
        readings, count = problem.readings(), len(steps)
        size = len(steps[0])
        after: dict[tuple[int, ...], Array] = {(): np.eye(size)}
        for taken in range(1, count + 1):
            for chosen in combinations(range(count), taken):
                after[chosen] = sum(
                    steps[b] @ after[tuple(c for c in chosen if c != b)] for b in chosen
                ) / len(chosen)
        self.epoch = after[tuple(range(count))]
        draws = [
            readings[b] @ state for chosen, state in after.items() for b in range(count) if b not in chosen
        ]
        weights = [
            1 / (comb(count, len(chosen)) * (count - len(chosen)))
            for chosen in after
            for b in range(count)
            if b not in chosen
        ]
        # mean over positions in the epoch, over sets of batches already taken, over the one that is next
        self.mean = np.average(draws, axis=0, weights=np.array(weights)) if count else np.zeros(size)

    @property
    def stationary(self) -> Array:
        """The state before an epoch, after many."""
        p = self.epoch
        rest = np.linalg.solve(np.eye(len(p) - 1) - p[1:, 1:], p[1:, 0])
        return np.concatenate(([1.0], rest))

    def llc(self) -> float:
        """nbeta times the mean of draws over an epoch, after many."""
        return self.nbeta * float(self.mean @ self.stationary)

    def llc_from_start(self, burnin: int, draws: int) -> float:
        """The same over `draws` epochs that follow `burnin` epochs from w0."""
        state = np.zeros(len(self.epoch))
        state[0] = 1
        values = list(self._means(state, burnin + draws))
        return self.nbeta * float(np.mean(values[burnin:]))

    def _means(self, state: Array, epochs: int) -> Iterator[float]:
        for _ in range(epochs):
            yield float(self.mean @ state)
            state = self.epoch @ state
