"""What an estimate says: its numbers, what made them, and how to read them."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .diagnostics import Array, t_quantile
from .errors import ArgumentError
from .scalars import check_scalar
from .types import Box


@dataclass(frozen=True, eq=False)
class LLCResult:
    """A local learning coefficient, and what is known of its error.

    llc_mean: mean over the chains that lived of llc_per_chain; llc_std: their standard deviation (ddof 0).
    llc_per_chain: mean over draws of nbeta (L_b(w) - L_b(w0)), NaN for a dead chain; shape (chains,).
    mcse: standard error of llc_mean, with autocorrelation counted, and dof its degrees of freedom; see `interval`.
    r_hat: rank-normalised split R-hat of the loss differences, r_hat_distance of |w - w0|^2, ess: bulk effective
    sample size of the loss differences. All three are of means over `basis`, not of draws. NaN where they cannot
    be had; `notes` says why.
    order_bias: about what the estimate gains by taking the loss on the batches that also give the gradients,
    lr nbeta^2 tr(C) / 4 over whole epochs of SGLD, C the covariance of batch gradients at w0; curvature lowers it.
    NaN for RMSprop-SGLD.
    gradient_term: mean of nbeta g0.(w - w0), g0 the pool's gradient at w0: the part of llc_mean that is due to w0
    not being a stationary point of this loss.
    init_loss: mean over the pool's batches of the loss at w0. loss_trace: loss before each update, burn-in too,
    NaN after a chain's death; shape (chains, steps).
    dead_chains: chain -> why it is not counted. settings: what made the result. notes: what to know before
    using it.
    """

    llc_mean: float
    llc_std: float
    llc_per_chain: Array
    mcse: float
    dof: int
    r_hat: float
    r_hat_distance: float
    ess: float
    basis: str
    order_bias: float
    gradient_term: float
    init_loss: float
    loss_trace: Array
    dead_chains: Mapping[int, str]
    settings: Mapping[str, Any]
    notes: tuple[str, ...]

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Bounds of a confidence interval by Student's t, for the pool's loss at the lr that was used.

        It counts chance alone: not the way from w0 that burn-in leaves, nor what `notes` says of biases. NaN where
        mcse is. Raises ArgumentError for a level outside (0, 1).
        """
        level = check_scalar("level", level)
        if not 0 < level < 1:
            raise ArgumentError(f"level is {level}: give a number between 0 and 1, such as 0.95")
        if math.isnan(self.mcse):
            return math.nan, math.nan
        half = t_quantile((1 + level) / 2, self.dof) * self.mcse
        return self.llc_mean - half, self.llc_mean + half

    @property
    def settled(self) -> bool:
        """Whether no chain died, R-hat is as chance allows, and the value is one that a minimum can have."""
        return not self.dead_chains and not any(note.startswith(_UNSETTLED) for note in self.notes)

    @property
    def at_minimum(self) -> bool:
        """Whether w0 passes for a local minimum of this dataset's loss: only then is the value to be ranked."""
        return not any(note.startswith(_NO_MINIMUM) for note in self.notes)

    def to_dict(self, *, arrays: bool = False) -> dict[str, Any]:
        """The result as JSON takes it: NaN and infinities become None; loss_trace is there if arrays are wanted."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["interval_95"] = self.interval()
        if not arrays:
            del values["loss_trace"]
        out: dict[str, Any] = _plain(values)
        return out

    def __str__(self) -> str:
        low, high = self.interval()
        chains = " ".join("dead" if math.isnan(x) else f"{x:.4g}" for x in self.llc_per_chain[:16])
        more = f" and {len(self.llc_per_chain) - 16} more" if len(self.llc_per_chain) > 16 else ""
        live = int(np.isfinite(self.llc_per_chain).sum())
        std = f" (std {self.llc_std:.2g})" if live > 1 else ""
        s = self.settings
        rows = [
            ("component", f"{s['component']} ({s['weights']:,} weights)"),
            ("LLC", f"{self.llc_mean:.5g} ± {self.mcse:.2g}"),
            ("95 % interval", f"{low:.5g} to {high:.5g}"),
            ("chains", f"{chains}{more}{std}"),
            ("R-hat", f"{self.r_hat:.3f} of the loss, {self.r_hat_distance:.3f} of |w - w0|^2"),
            (
                "ESS",
                f"{self.ess:.0f}, of {live} chains x {self.basis}"
                if not math.isnan(self.ess)
                else "not known",
            ),
            ("loss at w0", f"{self.init_loss:.6g}"),
            ("settings", ", ".join(f"{name} {s[name]:g}" for name in ("lr", "nbeta", "localization"))),
        ]
        lines = [f"{name:<14}{value}" for name, value in rows]
        notes = [fill(n, 100, initial_indent="note: ", subsequent_indent="      ") for n in self.notes]
        return "\n".join(lines + notes)


def _plain(value: Any) -> Any:
    """Numbers, strings, lists and dicts alone, without NaN."""
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@dataclass(frozen=True)
class Facts:
    """What `remarks` needs beside the numbers; r_hat_chance: see diagnostics; the next and those marked * in the LLC.

    gradient_term_error: standard error of gradient_term*. unequal: least and greatest number of samples of a batch,
    where they differ. resolution: rounding of a loss*. irreproducible: most that a second evaluation of a batch's
    loss at w0 differs from the first*. without_gradient: parameters. unhashed: type without a digest, or "".
    """

    r_hat_chance: float
    gradient_term_error: float
    unequal: tuple[int, int] | None
    resolution: float
    irreproducible: float
    without_gradient: Sequence[str]
    unhashed: str


# How notes begin that say a value is not to be relied on.
_R_HAT, _TOO_LARGE, _NO_MINIMUM = "R-hat of ", "LLC exceeds ", "w0 is not a local minimum"
_UNSETTLED = (_R_HAT, _TOO_LARGE)


def remarks(r: LLCResult, facts: Facts) -> Iterator[str]:
    """What a reader of the result must know, in sentences."""
    s, size = r.settings, abs(r.llc_mean)
    for chain, reason in r.dead_chains.items():
        yield f"chain {chain} died and is not counted: {reason}."
    if s["lr"] == 0 or s["nbeta"] == 0:
        yield f"{'lr' if s['lr'] == 0 else 'nbeta'} is 0: a control, not an estimate."
    elif s["noise_level"] != 1:
        yield "noise_level is not 1: the chains do not sample the posterior that the LLC is defined by."
    if r.basis.startswith("none"):
        yield f"no R-hat and no ESS: {r.basis.removeprefix('none: ')}."
    elif math.isnan(r.r_hat):
        yield "no R-hat and no ESS: the loss does not vary."
    elif math.isnan(r.ess):
        yield f"no ESS: {r.basis} are too few to see an autocorrelation."
    if math.isnan(r.mcse):
        yield "no standard error: one chain of fewer than 8 draws."
    for name, value in (("the loss", r.r_hat), ("|w - w0|^2", r.r_hat_distance)):
        if value > max(1.05, facts.r_hat_chance):
            yield (
                f"{_R_HAT}{name} is {value:.3f} (1.05 is good; by chance alone up to {facts.r_hat_chance:.3f}): the "
                "chains have not settled, give more burn-in and draws."
            )
    if r.llc_mean - 2 * r.mcse > s["weights"] / 2:
        yield (
            f"{_TOO_LARGE}{s['weights'] / 2:g}, half the number of weights, the most that a smooth loss has at a "
            "minimum: the step is too large for its curvature, lower lr or nbeta."
        )
    if r.ess < 20:
        yield f"ESS is {r.ess:.0f}, on {r.basis} a chain: below 20 the standard error is uncertain, give more draws."
    if abs(r.order_bias) > 0.01 * size:
        yield (
            f"taking losses on the batches that give the gradients adds up to about {r.order_bias:.2g} "
            f"({_share(r.order_bias, size)}): lower lr, or make batches larger."
        )
    if math.isnan(r.order_bias):
        yield (
            "what taking losses on the batches that give the gradients adds is not known for this sampler: halve lr "
            "and compare."
        )
    if abs(r.gradient_term) - 2 * facts.gradient_term_error > 0.2 * size:
        yield (
            f"{_NO_MINIMUM} of this dataset's loss: its gradient there gives {r.gradient_term:.4g} of "
            f"{r.llc_mean:.4g} (without it {r.llc_mean - r.gradient_term:.4g}). Do not rank this value against minima."
        )
    if s["pool_samples"] is not None and s["pool_samples"] < 20 * s["nbeta"]:
        yield (
            f"the pool has {s['pool_samples']} samples, fewer than 20 nbeta = {20 * s['nbeta']:.0f}: unless w0 was "
            "trained on them, the value reads low for the data they come from, by a fraction of about nbeta / samples."
        )
    if s["gradient_batches"] < s["pool_batches"]:
        count = f"{s['gradient_batches']} of the pool's {s['pool_batches']} batches"
        yield f"order_bias and gradient_term are estimated from the gradients of {count}."
    if facts.unequal:
        least, most = facts.unequal
        yield f"batches hold {least} to {most} samples and count equally: samples of small batches weigh more."
    if facts.resolution > 0.01 * size:
        yield f"losses are rounded by up to {facts.resolution:.2g} in the LLC: return them in float32 or float64."
    if facts.irreproducible > 0.01 * size:
        yield (
            f"loss_fn gives other values at the same weights, by up to {facts.irreproducible:.2g} in the LLC: dropout, "
            "randomness, or a batch that it changes."
        )
    for names, what in (
        (s["frozen"], "frozen and left out"),
        (facts.without_gradient, "without a gradient and moved by noise and prior alone"),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            yield f"{what}: {', '.join(names[:3])}{more}."
    if facts.unhashed:
        yield f"no digest of the data: it holds a {facts.unhashed}."


def _share(part: float, whole: float) -> str:
    return f"{abs(part) / whole:.1%} of the estimate" if whole else "the estimate is 0"


class _Hash(Protocol):
    def update(self, data: Any, /) -> None: ...


def weights_digest(weights: Iterable[tuple[str, Sequence[Box], Tensor]]) -> str:
    """SHA-256 of selected weights: of each parameter its name, dtype, shape, boxes and their elements' bytes."""
    h = hashlib.sha256()
    for name, boxes, parameter in weights:
        _frame(h, "parameter", f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        flat = parameter.detach().cpu().contiguous().view(-1)
        for box in boxes:
            _frame(h, "box", f"{box.start} {box.rows} {box.cols} {box.stride}".encode())
            h.update(_bytes(flat.as_strided((box.rows, box.cols), (box.stride, 1), box.start)))
    return h.hexdigest()


def data_digest(batches: Sequence[Any]) -> tuple[str | None, str]:
    """SHA-256 of a pool's batches; None and the name of the type where one holds what has no bytes of its own."""
    h = hashlib.sha256()
    try:
        _feed(h, batches)
    except TypeError as e:
        return None, str(e)
    return h.hexdigest(), ""


def _feed(h: _Hash, value: Any) -> None:
    """Hash a value with its type and length, so that no two different values give the same bytes."""
    if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized:
        _frame(h, "tensor", f"{value.dtype} {tuple(value.shape)}".encode())
        h.update(_bytes(value))
    elif isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
        _frame(h, "array", f"{value.dtype.str} {value.shape}".encode())
        h.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, bytes | bytearray):
        _frame(h, "bytes", bytes(value))
    elif value is None or isinstance(value, bool | int | float | complex | str):
        _frame(h, type(value).__name__, repr(value).encode(errors="surrogatepass"))
    elif isinstance(value, Mapping):
        _frame(h, "mapping", str(len(value)).encode())
        for key, item in value.items():
            _feed(h, key)
            _feed(h, item)
    elif isinstance(value, list | tuple):
        _frame(h, "sequence", str(len(value)).encode())
        for item in value:
            _feed(h, item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        _frame(h, "dataclass", type(value).__qualname__.encode())
        _feed(h, {f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    else:
        raise TypeError(type(value).__name__)


def _frame(h: _Hash, kind: str, content: bytes) -> None:
    h.update(f"{kind} {len(content)}\n".encode())
    h.update(content)


def _bytes(t: Tensor) -> Any:
    """Elements in row-major order, as a buffer."""
    t = t.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return t.view(-1).view(torch.uint8).numpy()
