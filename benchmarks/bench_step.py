"""How long is one step of a 124M-parameter model, against its own noise-free floor and against peers?

    python benchmarks/bench_step.py [--quick] [--threads 2] [--rounds 9] [--json FILE]

Every row is a step of the same tensors (GPT-2's 148) in the same run, in turn; ratios are of medians. A row's floor
is our own kernel for the same sampler and storage without noise: for SGLD in fp32 it reads w, g and w0 and writes w.
With --samplers: samplers, storages and sums instead of instruction sets and hand-written peers. A peer that is not
installed is a row that says so.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _timing import Timing, interleave, machine
from torch import Tensor

from llc_fast.backends import cpu_backend
from llc_fast.kept import start
from llc_fast.plan import Plan
from llc_fast.samplers import find
from llc_fast.scalars import Scalars

LR, NBETA, LOCALIZATION = 1e-6, 30.0, 100.0
SETTINGS = {"lr": LR, "nbeta": NBETA, "localization": LOCALIZATION}


def gpt2_shapes(
    layers: int = 12, width: int = 768, vocabulary: int = 50257, context: int = 1024
) -> list[tuple[int, ...]]:
    """Shapes of GPT-2's parameters, 148 tensors and 124,439,808 elements at the defaults."""
    block: list[tuple[int, ...]] = [
        (width,),
        (width,),
        (width, 3 * width),
        (3 * width,),
        (width, width),
        (width,),
    ]
    block += [(width,), (width,), (width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [(vocabulary, width), (context, width), *(block * layers), (width,), (width,)]


OWN = {"rmsprop_sgld": {"alpha": 0.99, "eps": 0.1}, "sghmc": {"friction": 0.1}, "sgnht": {"friction": 0.1}}


def ours(
    params: list[Tensor],
    grads: list[Tensor],
    anchors: list[Tensor],
    backend: str,
    noise_level: float,
    *,
    sampler: str = "sgld",
    **options: Any,
) -> Callable[[], None]:
    """A step through a prepared plan, as the optimizer and the estimator take it."""
    scalars = Scalars.check(**SETTINGS, noise_level=noise_level, **OWN.get(sampler, {}))
    kept = [start("", p, find(sampler), options.get("state", "split"), 1.0, 1.0)[0] for p in params]
    buffer = find(sampler).buffer
    plan = Plan(
        params,
        anchors,
        sampler=sampler,
        remainders=[k.get("remainder") for k in kept],
        buffers=[k.get(buffer or "") for k in kept],
        thermostat=torch.full((1,), 0.1, dtype=torch.float64) if sampler == "sgnht" else None,
        seed=0,
        backend=backend,
        **options,
    )
    counter = iter(range(2**31))
    return lambda: plan.step(grads, scalars, next(counter))


def eager(params: list[Tensor], grads: list[Tensor], anchors: list[Tensor]) -> Callable[[], None]:
    """The step as one writes it down."""

    def step() -> None:
        for w, g, w0 in zip(params, grads, anchors, strict=True):
            drift = NBETA * g + LOCALIZATION * (w - w0)
            w.copy_(w - LR / 2 * drift + math.sqrt(LR) * torch.randn_like(w))

    return step


def in_place(params: list[Tensor], grads: list[Tensor], anchors: list[Tensor]) -> Callable[[], None]:
    """The step as one tunes it by hand: in place, one scratch buffer."""
    scratch = torch.empty(max(p.numel() for p in params))

    def step() -> None:
        for w, g, w0 in zip(params, grads, anchors, strict=True):
            z = scratch[: w.numel()].view(w.shape).normal_()
            w.lerp_(w0, LR / 2 * LOCALIZATION).add_(g, alpha=-LR / 2 * NBETA).add_(z, alpha=math.sqrt(LR))

    return step


def compiled(params: list[Tensor], grads: list[Tensor], anchors: list[Tensor]) -> Callable[[], None]:
    """The step as torch.compile fuses it."""

    def update(w: Tensor, g: Tensor, w0: Tensor) -> None:
        w.copy_(w - LR / 2 * (NBETA * g + LOCALIZATION * (w - w0)) + math.sqrt(LR) * torch.randn_like(w))

    fused = torch.compile(update, dynamic=True)
    return lambda: [fused(*t) for t in zip(params, grads, anchors, strict=True)] and None


def devinterp(params: list[Tensor], grads: list[Tensor], anchors: list[Tensor]) -> Callable[[], None]:
    """devinterp's own optimizer, as it is."""
    from devinterp.optim.sgmcmc import SGMCMC

    leaves = [torch.nn.Parameter(p) for p in params]
    for leaf, g in zip(leaves, grads, strict=True):
        leaf.grad = g
    return SGMCMC.sgld(leaves, lr=LR, nbeta=NBETA, localization=LOCALIZATION).step


def devinterp_metrics(params: list[Tensor], grads: list[Tensor], anchors: list[Tensor]) -> Callable[[], None]:
    """devinterp's optimizer with its metrics on."""
    from devinterp.optim.sgmcmc import SGMCMC

    leaves = [torch.nn.Parameter(p) for p in params]
    for leaf, g in zip(leaves, grads, strict=True):
        leaf.grad = g
    common = {"lr": LR, "nbeta": NBETA, "localization": LOCALIZATION}
    return SGMCMC.sgld(leaves, save_metrics=True, **common).step


def devinterp_rmsprop(params: list[Tensor], grads: list[Tensor], anchors: list[Tensor]) -> Callable[[], None]:
    """devinterp's RMSprop-SGLD."""
    from devinterp.optim.sgmcmc import SGMCMC

    leaves = [torch.nn.Parameter(p) for p in params]
    for leaf, g in zip(leaves, grads, strict=True):
        leaf.grad = g
    return SGMCMC.rmsprop_sgld(leaves, lr=LR, nbeta=NBETA, localization=LOCALIZATION).step


def randn(params: list[Tensor], grads: list[Tensor], anchors: list[Tensor]) -> Callable[[], None]:
    """PyTorch's noise alone."""
    scratch = torch.empty(max(p.numel() for p in params))
    return lambda: [scratch[: p.numel()].normal_() for p in params] and None


PEERS = {
    "devinterp 2.0.1 SGMCMC.sgld": devinterp,
    "PyTorch eager": eager,
    "PyTorch in place (normal_, lerp_, add_)": in_place,
    "PyTorch torch.compile": compiled,
    "PyTorch normal_ alone": randn,
}
SAMPLER_PEERS = {
    "devinterp 2.0.1 SGMCMC.sgld": devinterp,
    "devinterp 2.0.1 SGMCMC.sgld, save_metrics": devinterp_metrics,
    "devinterp 2.0.1 SGMCMC.rmsprop_sgld": devinterp_rmsprop,
}
# Name of a row, dtype, options; its floor is the same without noise and sums.
SAMPLERS: list[tuple[str, torch.dtype, dict[str, Any]]] = [
    ("SGLD fp32", torch.float32, {}),
    ("SGLD fp32, sums", torch.float32, {"sums": True}),
    ("SGLD split bf16", torch.bfloat16, {}),
    ("SGLD split bf16, sums", torch.bfloat16, {"sums": True}),
    ("SGLD sr bf16", torch.bfloat16, {"state": "sr"}),
    ("SGLD sr bf16, ih4", torch.bfloat16, {"state": "sr", "noise": "ih4"}),
    ("SGLD fp16 with master", torch.float16, {}),
    ("RMSprop-SGLD fp32", torch.float32, {"sampler": "rmsprop_sgld"}),
    ("RMSprop-SGLD split bf16", torch.bfloat16, {"sampler": "rmsprop_sgld"}),
    ("SGHMC fp32", torch.float32, {"sampler": "sghmc"}),
    ("SGNHT fp32", torch.float32, {"sampler": "sgnht"}),
]


def cast(tensors: list[list[Tensor]], dtype: torch.dtype) -> list[list[Tensor]]:
    return tensors if dtype == torch.float32 else [[t.to(dtype) for t in ts] for ts in tensors]


def sampler_calls(
    tensors: list[list[Tensor]], backend: str
) -> tuple[dict[str, Callable[[], object]], dict[str, tuple[str, str]]]:
    """Calls by name, and for each row the names of its floor and of what it is compared with."""
    calls: dict[str, Callable[[], object]] = {}
    against: dict[str, tuple[str, str]] = {}
    by_dtype = {dtype: cast(tensors, dtype) for dtype in dict.fromkeys(dtype for _, dtype, _ in SAMPLERS)}
    for name, dtype, options in SAMPLERS:
        floor = "floor " + name.partition(",")[0]
        quiet = {k: v for k, v in options.items() if k not in ("sums", "noise")}
        calls[name] = ours(*by_dtype[dtype], backend, 1.0, **options)
        if floor not in calls:
            calls[floor] = ours(*by_dtype[dtype], backend, 0.0, **quiet)
        against[name] = against[floor] = (floor, name)
    return calls, against


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a model of 12M parameters, fewer rounds")
    parser.add_argument("--samplers", action="store_true", help="compare samplers, storages and sums")
    parser.add_argument("--threads", type=int, default=min(2, torch.get_num_threads()))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    shapes = gpt2_shapes(3, 384, 16000) if args.quick else gpt2_shapes()
    rounds = 5 if args.quick else args.rounds
    numel = sum(math.prod(s) for s in shapes)

    params = [torch.randn(s) * 0.02 for s in shapes]
    grads = [torch.randn(s) * 1e-3 for s in shapes]
    anchors = [p.clone() for p in params]
    tensors = [params, grads, anchors]
    calls: dict[str, Callable[[], object]] = {}
    best = cpu_backend.isas()[0]
    if args.samplers:
        calls, against = sampler_calls(tensors, f"cpu:{best}")
    else:
        half, against = cast(tensors, torch.bfloat16), {}
        for isa in cpu_backend.isas():
            calls[f"llc_fast fp32, {isa}"] = ours(*tensors, f"cpu:{isa}", 1.0)
            calls[f"llc_fast split bf16, {isa}"] = ours(*half, f"cpu:{isa}", 1.0)
        calls["floor fp32"] = ours(*tensors, f"cpu:{best}", 0.0)
        calls["floor split bf16"] = ours(*half, f"cpu:{best}", 0.0)
    absent = {}
    for name, build in (SAMPLER_PEERS if args.samplers else PEERS).items():
        try:
            call = build(params, grads, anchors)
            call()
            calls[name] = call
        except Exception as e:  # a peer that cannot run here is a row, not a crash
            absent[name] = f"{type(e).__name__}: {e}".splitlines()[0][:80]
    for name in calls:
        if args.samplers and name not in against:
            mine = "RMSprop-SGLD fp32" if "rmsprop" in name else "SGLD fp32"
            against[name] = f"floor {mine}", mine + (", sums" if "metrics" in name else "")
        elif name not in against:
            kind = "split bf16" if "split" in name else "fp32"
            against[name] = f"floor {kind}", f"llc_fast {kind}, {best}"
    report(interleave(calls, rounds), against, absent, numel, len(shapes), args.json)


def report(
    times: dict[str, Timing],
    against: dict[str, tuple[str, str]],
    absent: dict[str, str],
    numel: int,
    tensors: int,
    path: Path | None,
) -> None:
    """Print the table; write it as JSON if asked. against: the floor of each row, and our row beside it."""
    here = machine()
    print(f"One step of {numel:,} parameters in {tensors} tensors, {here['threads']} threads")
    print(f"{here['cpu']}; torch {here['torch']}; load {here['load']}\n")
    print(f"{'':42s}{'ns/param':>9s}  {'middle half':>15s}  {'x floor':>8s}  {'ours is':>8s}")
    rows = []
    for name, t in times.items():
        floor, mine = (times[other].median for other in against[name])
        gain = t.median / mine
        ns, low, high = (x / numel * 1e9 for x in (t.median, t.low, t.high))
        print(f"{name:42s}{ns:9.3f}  {low:7.3f}-{high:7.3f}  {t.median / floor:8.2f}  {gain:7.2f}x")
        rows.append(
            {"name": name, "ns": ns, "low": low, "high": high, "floors": t.median / floor, "gain": gain}
        )
    for name, reason in absent.items():
        print(f"{name:42s}{'not run:':>9s}  {reason}")
    if path is not None:
        path.write_text(
            json.dumps({"machine": here, "parameters": numel, "rows": rows, "absent": absent}, indent=1)
            + "\n"
        )


if __name__ == "__main__":
    main()
