"""A whole step of a small model as a CUDA graph: forward, backward and ours in one launch, with the same bits?"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from llc_fast.optim import SGLD

from ._gpu_device import Bench
from ._table import Column, Table, spread
from ._timing import Call, interleave, reason
from ._work import SETTINGS, release

WARMUPS, REPLAYS = 3, 20  # steps; of a chain that only tries the code, one each


class Small(nn.Module):
    """A transformer of two layers, without dropout."""

    def __init__(self, vocabulary: int, width: int, context: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.place = nn.Parameter(torch.zeros(context, width))
        layer = nn.TransformerEncoderLayer(
            width, max(1, width // 32), 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.unembed = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.unembed(self.blocks(self.embed(tokens) + self.place))
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


class Chain:
    """The same small model, tokens and sampler each time."""

    def __init__(self, bench: Bench, backend: str) -> None:
        vocabulary, width, batch, context = bench.setting.pick(
            (512, 256, 8, 64), (512, 256, 8, 64), (32, 32, 2, 8)
        )
        generator = torch.Generator().manual_seed(1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = Small(vocabulary, width, context).to(bench.setting.device)
        tokens = torch.randint(vocabulary, (batch, context), generator=generator)
        self.tokens = tokens.to(bench.setting.device)
        self.sampler = SGLD(self.model.named_parameters(), seed=0, backend=backend, **SETTINGS)

    def step(self) -> None:
        self.sampler.zero_grad(set_to_none=False)
        with sdpa_kernel(SDPBackend.MATH):  # the others add up gradients in any order
            self.model(self.tokens).backward()
        self.sampler.step()

    def warm(self, bench: Bench) -> None:
        with bench.device.aside():
            for _ in range(bench.setting.pick(WARMUPS, WARMUPS, 1)):
                self.step()
        bench.device.synchronize()

    def weights(self) -> list[Tensor]:
        return [p.detach().cpu().clone() for p in self.model.parameters()]


def graph(bench: Bench) -> Iterator[Table]:
    table = Table(
        "gpu-graph",
        "A whole step of a small transformer: forward, backward and the sampler's",
        [
            Column("us", "us", ".1f"),
            Column("low", "from", ".1f"),
            Column("high", "to", ".1f"),
            Column("gain", "x as fast", ".2f"),
            Column("bits", "bits"),
        ],
        "As its caller sees it, in fp32, with deterministic algorithms. Bits: weights against those of as many eager "
        "steps.",
    )
    setting = bench.setting
    for backend in bench.backends:
        name = f"captured, {backend}"
        why = bench.absent(backend)
        if why is None and bench.cuda and backend != "cuda":
            why = "backend 'cuda' alone can be captured"
        if why is not None:
            table.add(name, absent=why, backend=backend)
            continue
        setting.say(f"graph: {backend}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of deterministic algorithms, where an operator has none
                torch.use_deterministic_algorithms(True, warn_only=True)
                torch.utils.deterministic.fill_uninitialized_memory = False  # would be timed too
                _rows(table, bench, backend)
        except Exception as e:
            table.add(name, absent=reason(e), backend=backend)
        finally:
            torch.use_deterministic_algorithms(False)
            release(setting)
        yield table
        bench.alive()
    yield table


def _rows(table: Table, bench: Bench, backend: str) -> None:
    chains = [Chain(bench, backend) for _ in range(3)]
    for chain in chains:
        chain.warm(bench)
    replay = bench.device.capture(chains[2].step)
    for call in (chains[0].step, chains[1].step, replay):
        for _ in range(bench.setting.pick(REPLAYS, REPLAYS, 1)):
            call()
        bench.device.synchronize()
    first, again, captured = (chain.weights() for chain in chains)
    calls: dict[str, Call] = {"eager": chains[0].step, "captured": replay}
    times, absent = interleave(calls, bench.setting.pace, bench.setting.device)
    for kind in calls:
        facts = {"backend": backend, "kind": kind}
        if kind not in times:
            table.add(f"{kind}, {backend}", absent=absent[kind], **facts)
            continue
        scaled = spread(times[kind], 1e3)
        values = {"us": scaled["ns"], "low": scaled["low"], "high": scaled["high"]}
        if "eager" in times:
            values["gain"] = times["eager"].median / times[kind].median
        bits = verdict(first, again, again if kind == "eager" else captured)
        table.add(f"{kind}, {backend}", **facts, **values, bits=bits)


def verdict(eager: list[Tensor], again: list[Tensor], found: list[Tensor]) -> str:
    """Whether weights are those of the eager chain, as far as two eager chains agree."""
    if not _same(eager, again):
        return "gradients are not deterministic here"
    return "equal" if _same(eager, found) else "differ"


def _same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x.view(torch.int32), y.view(torch.int32)) for x, y in zip(a, b, strict=True))
