"""A run of `sample`: its phases one after another, what a checkpoint of them holds, and the finished tree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .errors import ArgumentError, ChainError, DataError
from .feed import Feed, Observable, check_loss, moved
from .gathered import facts, settings
from .recording import Clock, Recording, grid, specs, write_traces
from .sampling import RECORD, Order, Progress, Schedule, Trace, half_pool, seed_losses, walk
from .sampling.moments import Moments
from .session import Session
from .store import Writer, open_tree

if TYPE_CHECKING:
    import xarray as xr


class Phase(NamedTuple):
    """Chains that walk at once, and whether on halves of the pool."""

    chains: list[int]
    half: bool


@dataclass(frozen=True)
class Run:
    """Everything about a run but the model. config: the sampler's, in devinterp's words; options: our own."""

    feed: Feed
    observables: Sequence[Observable]
    schedule: Schedule
    config: Mapping[str, Any]
    options: Mapping[str, Any]
    stacked: bool | None
    resume: bool
    path: str | Path | None
    checkpoint_every: float
    progress: Progress | None

    @property
    def num_chains(self) -> int:
        return len(self.feed.pools)

    def __call__(self, session: Session, identity: Mapping[str, Any]) -> xr.DataTree:
        """Sample, write, and open what was written. identity: what makes two runs the same, beside the settings."""
        shape, observed = self._shapes(session)
        moments = None
        if not self.options["traces"] and self.observables:
            device = session.problem.params[0].device
            moments = Moments(
                observed,
                self.num_chains,
                kinds=self.options["moments"],
                scalar=self.options["scalar"],
                device=device,
            )
        made = settings(session, self.schedule, self.num_chains) | dict(self.options)
        arrays = specs(
            self.schedule,
            self.num_chains,
            shape,
            self.feed,
            self.observables,
            observed,
            traces=self.options["traces"],
            metrics=self.config["save_metrics"],
            params=len(session.problem.params) if self.options["control_variates"] else 0,
            moments=moments,
            half=self.options["pool_check"],
        )
        with Writer.create(
            self.path,
            arrays,
            attrs=self._attrs(session),
            identity={"sampler": dict(self.config), "settings": made, **identity},
            resume=self.resume,
            checkpoint_bytes=session.bytes,
        ) as writer:
            if not writer.finished:
                self._fill(session, writer, shape, moments, made)
        tree = open_tree(writer.store)
        if dead := tree.attrs["llc_fast"]["dead"]:
            self._refuse_dead(dead)
        return tree

    def _refuse_dead(self, dead: Mapping[str, str]) -> None:
        """Raise where no chain lived."""
        if len(dead) < self.num_chains:
            return
        reasons = "; ".join(f"chain {chain}: {reason}" for chain, reason in list(dead.items())[:8])
        boxed = ", or widen bounding_box_size" if self.config["bounding_box_size"] is not None else ""
        kept = "" if self.path is None else f"; what they did is under /dead of {self.path}"
        raise ChainError(f"every chain died ({reasons}): lower lr, or raise localization{boxed}{kept}")

    def _fill(
        self,
        session: Session,
        writer: Writer,
        shape: tuple[int, int],
        moments: Moments | None,
        made: dict[str, Any],
    ) -> None:
        tokens = torch.full((len(self.feed.batches), shape[1]), float("nan"), dtype=torch.float64)

        def keep(batch: int, losses: Tensor) -> None:
            check_loss(losses, batch, self.feed.expected(batch))
            mean = grid(losses.unsqueeze(0))[0].double().mean(dim=0).cpu()
            if len(mean) != shape[1]:
                raise DataError(
                    f"loss_fn returns {len(mean)} losses a sample for batch {batch}, {shape[1]} for batch 0: return as "
                    "many for each, or their mean"
                )
            tokens[batch] = mean

        session.look(keep)
        bundles = session.bundles(range(self.num_chains), self.stacked)
        session.rebase(bundles[0], keep)
        base = session.baseline.losses
        phases = [Phase(chains, False) for chains in bundles]
        made["stacked"] = session.settings["stacked"]
        if self.options["pool_check"]:
            phases += [Phase([c + self.num_chains for c in p.chains], True) for p in phases]
        saved: dict[str, Any] = writer.state or {}
        first, deaths, half = saved.get("phase", 0), saved.get("deaths", {}), saved.get("half", [])
        if saved:
            if moments is not None:
                moments.load(saved["moments"])
            session.settled = list(saved["settled"])
        else:
            self._prepare(writer, base, tokens)
        clock = Clock(self.checkpoint_every)
        for i, phase in enumerate(phases[first:], first):
            if phase.half and len(deaths) == self.num_chains:
                break

            def state(walked: dict[str, Any], i: int = i, half: list[Any] = half) -> dict[str, Any]:
                return {
                    "phase": i,
                    "walk": walked,
                    "deaths": deaths,
                    "half": half,
                    "moments": None if moments is None else moments.state(),
                    "settled": session.settled,
                }

            traces = self._walk(
                session,
                writer,
                phase,
                shape,
                moments,
                clock,
                state,
                saved["walk"] if saved and i == first else None,
            )
            if phase.half:
                half += [
                    [
                        trace.gains(base) if not trace.verdict else np.full(self.schedule.num_draws, np.nan),
                        trace.distance,
                    ]
                    for trace in traces
                ]
                continue
            scalars, sampler = session.request.scalars, session.request.sampler
            write_traces(writer, phase.chains, traces, base, tokens, scalars, sampler)
            for chain, trace in zip(phase.chains, traces, strict=True):
                if reason := trace.verdict:
                    deaths[chain] = reason
        if moments is not None:
            for name, (_, values) in moments.arrays().items():
                for chain in range(self.num_chains):
                    writer.write(f"moments/{name}", values[chain], chain=chain)
        for chain, reason in deaths.items():
            writer.bury(chain, chain, reason)
        if half:
            writer.write("half_pool/gain", np.stack([gains for gains, _ in half]))
            writer.write("half_pool/distance", np.stack([distance for _, distance in half]))
        known = facts(session, made, pool=len(self.feed.pools[0]))
        known["fresh_batches"] = self.options["fresh_batches"]
        known["disjoint_pools"] = not self.config["match_sampling_input_ids_across_chains"]
        living = [chain for chain in range(self.num_chains) if chain not in deaths]
        ours = {
            "settings": made,
            "facts": known,
            "chains": living,
            "dead": {str(chain): reason for chain, reason in deaths.items()},
        }
        writer.finish({"llc_fast": ours}, living)

    def _prepare(self, writer: Writer, base: np.ndarray[Any, Any], tokens: Tensor) -> None:
        """What is known before the first step."""
        writer.write("llc_fast/baseline", base)
        for o in self.observables:
            if o.ids is not None:
                writer.write(f"input_ids_{o.obs_id}", o.ids.numpy())
        mean = tokens.nanmean(dim=0).float().numpy()
        for chain in range(self.num_chains):
            writer.write("init_loss", mean, chain=chain)

    def _walk(
        self,
        session: Session,
        writer: Writer,
        phase: Phase,
        shape: tuple[int, int],
        moments: Moments | None,
        clock: Clock,
        state: Callable[[dict[str, Any]], dict[str, Any]],
        left: dict[str, Any] | None,
    ) -> list[Trace]:
        seed, chains = session.request.seed, phase.chains
        pools = [self.feed.pools[c % self.num_chains] for c in chains]
        if phase.half:
            pools = [
                half_pool(seed, pool, c - self.num_chains) for pool, c in zip(pools, chains, strict=True)
            ]
        order = Order(seed, chains, pools)
        walkers = session.walkers(chains)
        watch = Recording(
            writer,
            walkers,
            order,
            chains,
            self.schedule,
            self.feed,
            () if phase.half else self.observables,
            shape,
            traces=self.options["traces"] and not phase.half,
            moments=None if phase.half else moments,
            clock=clock,
            state=state,
        )
        with clock:
            traces = walk(
                walkers,
                order,
                session.request.scalars,
                self.schedule,
                record=Order(seed, chains, pools, RECORD) if self.options["fresh_batches"] else None,
                controls=self.options["control_variates"] and not phase.half,
                sums=self.config["save_metrics"] and not phase.half,
                watch=watch,
                progress=self.progress,
                state=left,
            )
        if not phase.half:
            session.settle(walkers, traces)
        return traces

    def _shapes(self, session: Session) -> tuple[tuple[int, int], dict[str, tuple[int, int]]]:
        """Samples and tokens of the losses of a batch and of each observable, which are tried at w0."""
        seed_losses(session.request.seed, 0)
        loss = self._tried(session, self.feed.batches[0], "for batch 0")
        check_loss(loss, 0, self.feed.expected(0))
        one = grid(loss.unsqueeze(0)).shape[1:]
        sizes = [size for size in self.feed.sizes if size is not None]
        samples = max(sizes) if sizes and one[0] == self.feed.sizes[0] else one[0]
        observed = {}
        for o in self.observables:
            rows, tokens = 0, 0
            for batch in o.batches:
                loss = self._tried(session, batch, f"for observable {o.name!r}")
                if not bool(loss.isfinite().all()):
                    raise ChainError(f"losses of observable {o.name!r} are not finite at w0: check its data")
                if o.ids is not None and tuple(loss.shape) != (len(batch), o.ids.shape[1] - 1):
                    raise ArgumentError(
                        f"loss_fn returned shape {tuple(loss.shape)} for observable {o.name!r}: return one loss for "
                        f"each token that is predicted, {(len(batch), o.ids.shape[1] - 1)}"
                    )
                count, tokens = grid(loss.unsqueeze(0)).shape[1:]
                rows += count
            observed[o.obs_id] = (rows, tokens)
        return (samples, one[1]), observed

    @staticmethod
    def _tried(session: Session, batch: Any, which: str) -> Tensor:
        device = session.problem.params[0].device
        try:
            with torch.no_grad():
                return session.problem.loss_of(moved(batch, device), which)
        except IndexError as e:
            raise DataError(
                f"the model or loss_fn cannot take the data {which} ({e}): are there ids beyond its vocabulary?"
            ) from e

    def _attrs(self, session: Session) -> dict[str, Any]:
        """What devinterp's readers want of the root."""
        attrs: dict[str, Any] = {
            "metadata": {
                "config": {
                    "sampler": {
                        **self.config,
                        "scheduler_type": "constant",
                        "scheduler_kwargs": None,
                        "cores": 1,
                        "online": False,
                    },
                    "observables": [
                        {
                            "type": "ObserveDifferentDataset",
                            "obs_id": o.obs_id,
                            "batches_per_draw": o.batches_per_draw,
                        }
                        for o in self.observables
                    ],
                    "chain_buffer_size": min(50, self.schedule.num_draws),
                    "shared_observable_dims": ["token", "token_pos"],
                    "tokenizer_context_length": self.feed.length,
                }
            }
        }
        if self.config["save_metrics"]:
            attrs["metrics_numel"] = session.settings["weights"]
        return attrs
