"""The commands and their options."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer

from ..errors import LlcFastError
from .settings import Settings

app = typer.Typer(
    help="Local learning coefficients of language models, whole or restricted to a component and a dataset.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Dtype(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"


class SamplerName(StrEnum):
    sgld = "sgld"
    rmsprop_sgld = "rmsprop_sgld"
    sghmc = "sghmc"
    sgnht = "sgnht"


class State(StrEnum):
    remainder = "split"  # str has a method split
    rounded = "sr"


class Question(StrEnum):
    step = "step"
    noise = "noise"
    memory = "memory"
    curves = "curves"
    host = "host"
    chain = "chain"
    stacked = "stacked"
    all = "all"


@contextmanager
def _guarded(interrupted: str = "interrupted: nothing was written") -> Iterator[None]:
    """Errors as one message and exit code 2; Ctrl-C as 130."""
    try:
        yield
    except KeyboardInterrupt:
        _say(interrupted)
        raise typer.Exit(130) from None
    except LlcFastError as e:
        _say(f"error: {e}")
        raise typer.Exit(2) from None
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as e:
        if isinstance(e, RuntimeError) and not _out_of_memory(e):
            raise
        _say("error: out of memory: lower --batch-size or --context, or use --dtype bfloat16")
        raise typer.Exit(2) from None


def _out_of_memory(e: RuntimeError) -> bool:
    return isinstance(e, torch.OutOfMemoryError) or "can't allocate memory" in str(e)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        print(f"llc-fast {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def estimate(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL_DIR", help="Hugging Face model directory: safetensors, tokenizer."),
    ],
    data: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=FILES",
            help="A dataset: NAME=FILE[,FILE...] of text, .jsonl or .parquet; a FILE may be a directory or a "
            "quoted glob ('code=src/**/*.py'). Once for each dataset.",
        ),
    ],
    lr: Annotated[float, typer.Option(help="Step size epsilon.")],
    nbeta: Annotated[float, typer.Option(help="Inverse temperature n*beta: the weight of the loss.")],
    localization: Annotated[
        float, typer.Option(help="Strength gamma of the pull towards the trained weights.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="New directory for the result.")],
    components: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAMES",
            help="Components: names and globs, comma-separated: 'l*h*' is every head, 'l0 mlp', 'full'. "
            "See: llc-fast components MODEL_DIR. (default: full)",
            show_default=False,
        ),
    ] = None,
    chains: Annotated[int, typer.Option(help="Chains of each cell.")] = 4,
    draws: Annotated[int, typer.Option(help="Draws kept of each chain.")] = 200,
    burnin: Annotated[int, typer.Option(help="Steps before the first draw.")] = 0,
    steps_between_draws: Annotated[int, typer.Option(help="Steps from one draw to the next.")] = 1,
    batch_size: Annotated[int, typer.Option(help="Sequences of a batch.")] = 32,
    context: Annotated[
        int | None,
        typer.Option(
            help="Tokens of a sequence. (default: 256, or what the model takes)",
            show_default=False,
        ),
    ] = None,
    max_sequences: Annotated[
        int, typer.Option(help="Most sequences of a dataset's pool, chosen by --seed.")
    ] = 1024,
    text_field: Annotated[
        str, typer.Option(help="Key (.jsonl) or column (.parquet) that holds the text.")
    ] = "text",
    weight_decay: Annotated[float, typer.Option(help="Prior precision lambda around zero.")] = 0.0,
    noise_level: Annotated[float, typer.Option(help="Factor on the noise; 1 samples the posterior.")] = 1.0,
    bounding_box_size: Annotated[
        float | None, typer.Option(help="Farthest that a weight may go from where it was trained.")
    ] = None,
    sampler: Annotated[SamplerName, typer.Option(help="How chains move.")] = SamplerName.sgld,
    alpha: Annotated[
        float | None,
        typer.Option(help="Decay of rmsprop_sgld's mean square. (default: .99)", show_default=False),
    ] = None,
    eps: Annotated[
        float | None,
        typer.Option(help="Bound of rmsprop_sgld's preconditioner, 1/eps. (default: .1)", show_default=False),
    ] = None,
    friction: Annotated[
        float | None,
        typer.Option(help="Of sghmc and sgnht. (default: .1 and .01)", show_default=False),
    ] = None,
    state: Annotated[
        State, typer.Option(help="bfloat16 with a remainder (split) or rounded stochastically (sr).")
    ] = State.remainder,
    seed: Annotated[int, typer.Option(help="Seed of the chains and of the choice of sequences.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[Dtype, typer.Option(help="What the weights are converted to.")] = Dtype.float32,
    backend: Annotated[
        str, typer.Option(help="auto, reference, cpu, triton, cuda (see: llc-fast info).")
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(help="CPU threads. (default: PyTorch's)", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier result in DIR.")] = False,
) -> None:
    """Estimate the LLC of every component on every dataset.

    Prints a table of LLCs with standard errors and writes result.json, arrays.npz and heatmap.png to DIR.
    Exit code: 0 done; 1 done, but the chains of some cells all diverged; 2 an error, nothing written;
    130 interrupted, nothing written.
    """
    with _guarded():
        from .estimate import run

        settings = Settings(
            model=model,
            data=tuple(data),
            components=tuple(components or ["full"]),
            out=out,
            lr=lr,
            nbeta=nbeta,
            localization=localization,
            weight_decay=weight_decay,
            noise_level=noise_level,
            bounding_box_size=bounding_box_size,
            sampler=sampler.value,
            alpha=alpha,
            eps=eps,
            friction=friction,
            state=state.value,
            chains=chains,
            draws=draws,
            burnin=burnin,
            steps_between_draws=steps_between_draws,
            batch_size=batch_size,
            context=context,
            max_sequences=max_sequences,
            text_field=text_field,
            seed=seed,
            device=device,
            dtype=dtype.value,
            backend=backend,
            threads=threads,
            force=force,
        )
        code = run(settings.check())
    raise typer.Exit(code)


@app.command()
def components(
    model: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="Hugging Face model directory.")],
    pattern: Annotated[str, typer.Argument(help="Only names that this glob matches.")] = "",
) -> None:
    """List a model's components and their numbers of weights."""
    with _guarded():
        from .. import models, selection

        model_ = models.structure(model)
        names = selection.expand(model_, pattern) if pattern else selection.components(model_)
        width = max(map(len, names))
        for name in names:
            print(f"{name:{width}}  {selection.select(model_, name).numel:>14,}")


@app.command()
def audit(
    store: Annotated[
        Path, typer.Argument(metavar="STORE", help="Zarr store of devinterp 2.x or of llc_fast.sample.")
    ],
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the JSON there too, over what is there.", show_default=False
        ),
    ] = None,
) -> None:
    """Read a stored run again, without sampling: the estimate as it was reported, and as it should have been.

    Prints both, every check with its threshold, what the store does not tell, and last the corrected estimate. The
    store is not written to.
    Exit code: 0 no check failed; 1 a check failed, or there is no estimate; 2 an error, nothing said;
    130 interrupted.
    """
    with _guarded("interrupted"):
        from .audit import run

        code = run(store, as_json=json, out=out)
    raise typer.Exit(code)


@app.command()
def info(json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """Say what runs here: versions, instruction set, backends and why one is missing, threads."""
    with _guarded():
        from .info import show

        show(as_json=json)


@app.command()
def bench(
    question: Annotated[
        Question | None,
        typer.Argument(
            help="One step, its noise, its memory, how its time grows, a whole chain. (default: all)",
            show_default=False,
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Smaller sizes, in minutes.")] = False,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The JSON there. (default: bench.json in --out)")
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for bench.json, bench.md and pictures.")
    ] = Path("bench_out"),
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda, cuda:1, ... (default: auto)", show_default=False)
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads. (default: PyTorch's)", show_default=False)
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Ours; once for each. (default: auto; see: llc-fast info)",
            show_default=False,
        ),
    ] = None,
    earlier: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="Show an earlier JSON; measure nothing.")
    ] = None,
) -> None:
    """Time the sampler beside what people use otherwise and what the hardware allows, on this machine.

    Prints tables as they come and keeps them in DIR. Peers come with the extra "bench"; one that is missing is a row
    that says so.
    Exit code: 0 done; 1 some question was not finished; 2 an error, nothing measured; 130 interrupted, with the
    tables that were finished kept.
    """
    with _guarded("interrupted"):
        from .bench import run

        code = run(
            question and question.value,
            quick=quick,
            json=json,
            out=out,
            device=device,
            threads=threads,
            names=backend or [],
            earlier=earlier,
        )
    raise typer.Exit(code)
