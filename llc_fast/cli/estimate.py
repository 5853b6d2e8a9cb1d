"""The main job: every component on every dataset, a table, and a directory of results."""

from __future__ import annotations

import datetime
import shlex
import sys
import time
from typing import Any

import torch

from .. import data, models, report, selection
from ..errors import ArgumentError, ChainError
from ..estimate import estimate_llc
from . import info, table
from .progress import Reporter
from .settings import Settings

FILES = ("result.json", "arrays.npz", "heatmap.png")
CONTEXT = 256  # tokens of a sequence, unless asked otherwise or the model takes fewer


def run(settings: Settings) -> int:
    """Check, load, estimate, print, write; the exit code. Raises LlcFastError, with nothing written."""
    sources = data.parse(settings.data)
    out = report.check(settings.out, names=FILES, size=1 << 20, force=settings.force)
    models.check(settings.model.expanduser())
    device = settings.torch_device()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    loaded = models.load(settings.model, dtype=settings.dtype, device=device)
    chosen = _components(loaded.model, settings.components)
    pools = _pools(settings, sources, loaded)
    batches = {name: [b.to(device) for b in p.batches(settings.batch_size)] for name, p in pools.items()}
    steps = settings.burnin + settings.draws * settings.steps_between_draws
    size = (1 << 20) + len(chosen) * len(pools) * (4 * settings.chains * steps + (1 << 14))
    report.check(settings.out, names=FILES, size=size, force=settings.force)

    cells = []
    with Reporter(len(chosen) * len(pools), settings.chains) as progress:
        for component, weights in chosen.items():
            for dataset in pools:
                progress.begin(component, dataset)
                cells.append(
                    _cell(settings, loaded.model, component, weights, dataset, batches[dataset], progress)
                )
                progress.end(cells[-1])
    failed = [cell for cell in cells if cell.result is None]
    if len(failed) == len(cells):
        raise ChainError(
            f"no cell has an estimate; {cells[0].component} on {cells[0].dataset}: {cells[0].error}"
        )
    results = report.Table(list(chosen), list(pools), cells)
    try:
        report.write(out, _files(settings, device, loaded, pools, results))
    finally:
        table.show(results)
    print(f"written to {out}: {', '.join(FILES)}")
    if failed:
        print(f"{len(failed)} of {len(cells)} cells have no estimate", file=sys.stderr)
    return 1 if failed else 0


def _components(model: torch.nn.Module, patterns: tuple[str, ...]) -> dict[str, int]:
    """Canonical names of the components asked for, and how many weights each has."""
    found: dict[str, int] = {}
    for pattern in (p.strip() for text in patterns for p in text.split(",")):
        if not pattern:
            raise ArgumentError(f"components is {','.join(patterns)!r}: a name is empty")
        for name in [pattern] if " + " in pattern else selection.expand(model, pattern):
            chosen = selection.select(model, name)
            found[chosen.component] = chosen.numel
    return found


def _pools(
    settings: Settings, sources: list[data.Source], loaded: models.LoadedModel
) -> dict[str, data.Pool]:
    limit = loaded.max_length
    length = settings.context or min(CONTEXT, limit or CONTEXT)
    if limit is not None and length > limit:
        raise ArgumentError(f"context is {length}: this model takes at most {limit} tokens")
    pools = {}
    for source in sources:
        pool = data.make_pool(
            source,
            loaded.tokenizer,
            length=length,
            max_sequences=settings.max_sequences,
            seed=settings.seed,
            field=settings.text_field,
        )
        data.check_vocabulary(pool, loaded.vocabulary)
        pool.batches(settings.batch_size)
        pools[source.name] = pool
    return pools


def _cell(
    settings: Settings,
    model: torch.nn.Module,
    component: str,
    weights: int,
    dataset: str,
    batches: list[torch.Tensor],
    progress: Reporter,
) -> report.Cell:
    start = time.perf_counter()
    result, error = None, ""
    try:
        result = estimate_llc(
            model,
            models.sequence_losses,
            batches,
            component=component,
            lr=settings.lr,
            nbeta=settings.nbeta,
            localization=settings.localization,
            num_chains=settings.chains,
            num_draws=settings.draws,
            num_burnin_steps=settings.burnin,
            num_steps_bw_draws=settings.steps_between_draws,
            seed=settings.seed,
            weight_decay=settings.weight_decay,
            noise_level=settings.noise_level,
            bounding_box_size=settings.bounding_box_size,
            sampler=settings.sampler,
            alpha=settings.alpha,
            eps=settings.eps,
            friction=settings.friction,
            state=settings.state,
            backend=settings.backend,
            progress=progress,
        )
    except ChainError as e:
        error = str(e)
    return report.Cell(component, dataset, weights, time.perf_counter() - start, result, error)


def _files(
    settings: Settings,
    device: torch.device,
    loaded: models.LoadedModel,
    pools: dict[str, data.Pool],
    results: report.Table,
) -> dict[str, bytes]:
    lengths = {pool.sequences.shape[1] for pool in pools.values()}
    header: dict[str, Any] = {
        "format": "llc_fast estimate 1",
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["llc-fast", *sys.argv[1:]]),
        "settings": settings.to_dict() | {"context": lengths.pop(), "threads": torch.get_num_threads()},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        **{key: info.collect()[key] for key in ("versions", "platform", "isa")},
        "noise_shared": "a component's chains have the same noise on every dataset",
        "model": {
            "path": str(loaded.path),
            "family": loaded.family,
            "parameters": loaded.numel,
            "sha256": loaded.digest,
        },
        "datasets": {name: _dataset(pool, settings.batch_size) for name, pool in pools.items()},
    }
    s = settings
    footer = f"nbeta {s.nbeta:g}, lr {s.lr:g}, localization {s.localization:g}; {s.chains} chains x {s.draws} draws"
    footer += f" after {s.burnin}; ± standard error"
    marks = results.grid("marks")
    for mark, meaning in report.MARKS.items():
        if any(mark in text for text in marks.flat):
            footer += f"; {mark} {meaning}"
    picture = report.heatmap(
        results.components,
        results.datasets,
        results.grid("llc"),
        results.grid("mcse"),
        marks,
        title=f"Local learning coefficients: {settings.model}",
        footer=footer,
    )
    return dict(zip(FILES, (report.to_json(header, results), report.to_npz(results), picture), strict=True))


def _dataset(pool: data.Pool, batch_size: int) -> dict[str, Any]:
    n = len(pool.sequences)
    return {
        "files": [str(f) for f in pool.source.files],
        "skipped_files": pool.source.skipped,
        "documents": pool.documents,
        "tokens": pool.tokens,
        "sequences_available": pool.available,
        "sequences": n,
        "sequences_used": n - n % batch_size,
        "sha256": pool.digest,
    }
