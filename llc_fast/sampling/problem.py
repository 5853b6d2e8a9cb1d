"""The loss that chains walk on, what they borrow from the caller for it, and the pool at w0."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from ..errors import ArgumentError, ArgumentTypeError, ChainError, DataError
from ..shard import Ranks, fsdp_modules, is_dtensor, reshard, settle
from .displacement import Displacement

LossFn = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Problem:
    """A loss on a pool of batches, as a function of some of a model's weights.

    params, names: the parameters that hold these weights, none frozen. ranks: those that hold the model together,
    each with its own part of every batch or the same; None for one. speaks: whether this rank's batches are its own.
    """

    model: nn.Module
    loss_fn: LossFn
    batches: Sequence[Any]
    params: Sequence[Tensor]
    names: Sequence[str]
    ranks: Ranks | None = None
    speaks: bool = True

    @cached_property
    def fsdp(self) -> bool:
        return bool(fsdp_modules(self.model))

    def loss(self, batch: int) -> Tensor:
        """What loss_fn returns for a batch of the pool, checked."""
        return self.loss_of(self.batches[batch], f"for batch {batch}")

    def loss_of(self, batch: Any, which: str) -> Tensor:
        """What loss_fn returns for a batch, checked; which: to say in errors."""
        if self.fsdp:
            reshard(self.model)  # a pass sees what was written since the last one only in sharded parameters
            for p in self.params:
                p.grad = None  # before the pass: after it these are not the gradients that zero_grad finds
        loss = self.loss_fn(self.model, batch)
        if is_dtensor(loss):
            loss = loss.full_tensor()
        if not isinstance(loss, Tensor):
            raise ArgumentTypeError(
                f"loss_fn returned a {type(loss).__name__} {which}: return the loss as a tensor (of a Hugging "
                "Face output its .loss; without .item())"
            )
        if not loss.dtype.is_floating_point:
            raise ArgumentTypeError(f"loss_fn returned {loss.dtype} {which}: return floating-point losses")
        if loss.numel() == 0:
            raise ArgumentError(f"loss_fn returned no losses (shape {tuple(loss.shape)}) {which}")
        return loss

    def value(self, loss: Tensor) -> float:
        """The mean loss as a number, over all ranks."""
        value = float(mean(loss.detach()))
        return value if self.ranks is None else self.ranks.mean(value)

    def samples(self, counts: Sequence[int | None]) -> list[int | None]:
        """The numbers of samples in batches of which each rank holds a part."""
        if self.ranks is None:
            return list(counts)
        own = torch.tensor([math.nan if n is None else n * self.speaks for n in counts], dtype=torch.float64)
        return [None if math.isnan(n) else int(n) for n in self.ranks.gather(own).sum(dim=0).tolist()]

    def kept_buffers(self) -> list[Tensor]:
        """Copies of the model's buffers, which it may change as it runs (in training mode)."""
        return [b.detach().cpu().clone() for b in self.model.buffers()] if self.model.training else []

    @torch.no_grad()
    def restore_buffers(self, saved: Sequence[Tensor]) -> None:
        for b, value in zip(self.model.buffers(), saved, strict=False):
            b.copy_(value)

    def gradients(self, loss: Tensor) -> list[Tensor | None]:
        """Gradients of the mean loss, None for a parameter that it does not depend on."""
        if not loss.requires_grad:
            return [None] * len(self.params)
        if self.fsdp:  # which leaves gradients in .grad alone
            mean(loss).backward()
            reshard(self.model)
            return [p.grad for p in self.params]
        grads = torch.autograd.grad(mean(loss), self.params, allow_unused=True)
        return [g if g is None or g.layout == torch.strided else g.to_dense() for g in grads]


def mean(loss: Tensor) -> Tensor:
    """The loss of a batch, in float64 where the device has it."""
    return loss.mean(dtype=torch.float32 if loss.device.type == "mps" else torch.float64)


def read_pool(batches: Iterable[Any]) -> list[Any]:
    """The batches, read once."""
    if isinstance(batches, Tensor | np.ndarray | str | bytes | Mapping):
        raise ArgumentTypeError(
            f"batches is a {type(batches).__name__}: give a list of batches, such as [batch]"
        )
    if isinstance(batches, Dataset) and not isinstance(batches, IterableDataset):
        raise ArgumentTypeError("batches is a Dataset, which has samples: give a DataLoader over it")
    try:
        iterator = iter(batches)
    except TypeError as e:
        raise ArgumentTypeError(f"batches is a {type(batches).__name__}: give a list of batches") from e
    pool = list(iterator)
    if not pool:
        raise DataError(
            "batches is empty: give at least one batch (a generator can be read only once; a DataLoader with "
            "drop_last drops what does not fill a batch)"
        )
    return pool


@dataclass(frozen=True)
class Baseline:
    """The pool at w0.

    losses: of each batch; samples: losses in each batch, None where they come as one mean; eps: their relative
    rounding; without_gradient: parameters that no batch looked at depends on.
    """

    losses: npt.NDArray[np.float64]
    samples: Sequence[int | None]
    eps: float
    without_gradient: Sequence[str]


def baseline(
    problem: Problem,
    displacement: Displacement,
    gradients: int,
    keep: Callable[[int, Tensor], None] | None = None,
) -> Baseline:
    """Losses of the pool at the anchor, and the gradients of `gradients` of its batches, evenly spread.

    Losses are computed as chains compute theirs, with a graph, so that the same kernels run. keep(batch, losses) gets
    them, too.
    """
    pool = len(problem.batches)
    looked = {i * pool // gradients for i in range(gradients)}
    losses, samples, eps = np.zeros(pool), [], 0.0
    connected, seen = False, [False] * len(problem.params)
    for i in range(pool):
        loss = problem.loss(i)
        losses[i] = problem.value(loss)
        if not math.isfinite(losses[i]):
            raise ChainError(
                f"the loss of batch {i} is {losses[i]} at w0, before any step: check this batch and the model"
            )
        samples.append(len(loss) if loss.numel() > 1 else None)
        if keep is not None:
            keep(i, loss.detach())
        eps = max(eps, torch.finfo(loss.dtype).eps)
        connected |= loss.requires_grad
        if i in looked:
            grads = problem.gradients(loss)
            displacement.add_gradient(grads)
            if not math.isfinite(displacement.squares):
                raise ChainError(
                    f"the gradient of batch {i} is not finite at w0, before any step: check this batch"
                )
            seen = [a or g is not None for a, g in zip(seen, grads, strict=True)]
    if not connected or (gradients == pool and not any(seen)):
        raise ArgumentError(
            "the losses that loss_fn returns do not depend on any selected weight: it must not use no_grad, "
            "detach() or item(), and the component must take part in the model's output"
        )
    unused = [name for name, used in zip(problem.names, seen, strict=True) if not used]
    return Baseline(losses, problem.samples(samples), eps, unused if gradients == pool else [])


@contextmanager
def kept_rng() -> Iterator[None]:
    """Gives PyTorch's global random states back as they were."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        yield


@contextmanager
def borrowed(model: nn.Module, params: Sequence[Tensor], *, eval_mode: bool) -> Iterator[list[Tensor]]:
    """Lends a model to chains that change `params` alone, and gives it back as it was, whatever happens.

    Yields copies of params. Within, gradients go to params only, and the model is in eval mode unless asked
    otherwise; then its buffers are kept too.
    """
    settle(model)
    reshard(model)
    grads = [p.grad for p in params]
    anchors = [p.detach().clone(memory_format=torch.contiguous_format) for p in params]
    buffers = [] if eval_mode else [(b, b.detach().clone()) for b in model.buffers()]
    flags = [(p, p.requires_grad) for p in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    chosen = {id(p) for p in params}
    try:
        for p, _ in flags:
            p.requires_grad_(id(p) in chosen)
        if eval_mode:
            model.eval()
        with torch.inference_mode(False), torch.enable_grad():
            yield anchors
    finally:
        reshard(model)
        for t, grad in zip(params, grads, strict=True):
            t.grad = grad
        with torch.no_grad():
            for t, kept in [*zip(params, anchors, strict=True), *buffers]:
                t.copy_(kept)
        for p, flag in flags:
            p.requires_grad_(flag)
        for module, training in modes:
            module.training = training
