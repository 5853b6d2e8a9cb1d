"""How long is one SGLD step of a 124M-parameter model, against its own noise-free floor and against peers?

    python benchmarks/bench_step.py [--quick] [--threads 2] [--rounds 9] [--json FILE]

Every row is a step of the same tensors (GPT-2's 148) in the same run, in turn; ratios are of medians. The floor
is our own kernel without noise: it reads w, g and w0 and writes w. A peer that is not installed is a row that
says so.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from _timing import Timing, interleave, machine
from torch import Tensor

from llc_fast.backends import cpu_backend
from llc_fast.plan import Plan
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


def ours(
    params: list[Tensor], grads: list[Tensor], anchors: list[Tensor], backend: str, noise: float
) -> Callable[[], None]:
    """A step through a prepared plan, as the optimizer and the estimator take it."""
    low = [torch.zeros_like(p, dtype=torch.int16) if p.dtype == torch.bfloat16 else None for p in params]
    plan = Plan(params, anchors, remainders=low, seed=0, backend=backend)
    scalars = Scalars.check(**SETTINGS, noise_level=noise)
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a model of 12M parameters, fewer rounds")
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
    half = [[t.bfloat16() for t in ts] for ts in (params, grads, anchors)]
    calls: dict[str, Callable[[], object]] = {}
    for isa in cpu_backend.isas():
        calls[f"llc_fast fp32, {isa}"] = ours(params, grads, anchors, f"cpu:{isa}", 1.0)
        calls[f"llc_fast split bf16, {isa}"] = ours(*half, f"cpu:{isa}", 1.0)
    best = cpu_backend.isas()[0]
    calls["floor fp32"] = ours(params, grads, anchors, f"cpu:{best}", 0.0)
    calls["floor split bf16"] = ours(*half, f"cpu:{best}", 0.0)
    absent = {}
    for name, build in PEERS.items():
        try:
            call = build(params, grads, anchors)
            call()
            calls[name] = call
        except Exception as e:  # a peer that cannot run here is a row, not a crash
            absent[name] = f"{type(e).__name__}: {e}".splitlines()[0][:80]
    times = interleave(calls, rounds)
    report(times, absent, numel, len(shapes), args.json)


def report(
    times: dict[str, Timing], absent: dict[str, str], numel: int, tensors: int, path: Path | None
) -> None:
    """Print the table; write it as JSON if asked."""
    here = machine()
    best = here["isa"]
    print(f"One SGLD step of {numel:,} parameters in {tensors} tensors, {here['threads']} threads")
    print(f"{here['cpu']}; torch {here['torch']}; load {here['load']}\n")
    print(f"{'':42s}{'ns/param':>9s}  {'middle half':>15s}  {'x floor':>8s}  {'ours is':>8s}")
    rows = []
    for name, t in times.items():
        kind = "split bf16" if "split" in name else "fp32"
        floor = times[f"floor {kind}"].median
        gain = t.median / times[f"llc_fast {kind}, {best}"].median
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
