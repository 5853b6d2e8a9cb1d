"""The benchmark of whole chains: that all contenders do the same work, and that its numbers are what they say."""

import contextlib
import gc
import importlib.util
import sys
import tempfile
from collections import Counter
from dataclasses import replace

import pytest
import torch

import llc_fast
from llc_fast.benchmarks import _chain_samplers, _chains, _models, chain
from llc_fast.benchmarks._chain_passes import Passes, counted
from llc_fast.benchmarks._chain_slope import Slope
from llc_fast.benchmarks._chains import Walk
from llc_fast.benchmarks._table import Table
from llc_fast.benchmarks._timing import Timing
from llc_fast.benchmarks._work import Setting
from llc_fast.benchmarks.run import PACES

NEEDED = ("transformers", "datasets", "devinterp", "posteriors")
PEERS = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in NEEDED),
    reason="needs the peers of the bench extra",
)
TINY = Setting(scale="tiny", pace=PACES["tiny"])
SMALL = {
    "gpt2-tiny": _models.MODELS["gpt2-tiny"],
    "neox": _models.Spec("NeoX", "gpt_neox", 0, _models._wide(64, 32, 32, 64, 2, 4)),
    "llama": _models.Spec("Llama", "llama", 0, _models._wide(64, 32, 32, 64, 2, 4)),
}


@pytest.fixture(autouse=True, scope="module")
def quick_collections():
    """Benchmarks and devinterp collect garbage often, which takes long among all modules that are loaded by then."""
    with contextlib.suppress(ModuleNotFoundError):
        _chains.devinterp(walk())(1)
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Every family that is measured, small."""
    monkeypatch.setattr(_models, "MODELS", {**_models.MODELS, **SMALL})


def tokens(name):
    return _models.token_batches(name, 2, 2, 8)


def walk(component="full", name="gpt2-tiny", dtype=torch.float32):
    return Walk(_models.build(name, dtype=dtype), component, tokens(name))


def rows(table):
    return {row["name"].partition(": ")[0::2]: row for row in table.rows}


def without(monkeypatch, *packages):
    """As if packages were not installed."""

    class Missing:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name in packages:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for name in list(sys.modules):
        if name.partition(".")[0] in packages:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing, *sys.meta_path])


# --- the contenders do the same ---


@pytest.fixture
def independent(monkeypatch):
    """Calls of the model's class and of autograd's two doors, however they are made."""
    seen = Passes()
    model_class = type(_models.build("gpt2-tiny", "meta"))

    def count(way, call):
        def counting(*args, **kwargs):
            setattr(seen, way, getattr(seen, way) + 1)
            return call(*args, **kwargs)

        return counting

    for owner, name, way in (
        (model_class, "forward", "forward"),
        (torch.autograd, "grad", "backward"),
        (torch.Tensor, "backward", "backward"),
    ):
        monkeypatch.setattr(owner, name, count(way, getattr(owner, name)))
    return seen


@PEERS
@pytest.mark.parametrize(
    ("build", "once"),
    [
        (_chains.bare, (0, 0)),
        (_chains.ours, (2, 2)),  # losses and gradients of the pool at w0
        (_chains.devinterp, (2, 0)),
        (_chains.posteriors, (2, 0)),
    ],
)
def test_passes_are_counted(independent, build, once):
    w = walk()
    with counted(w.model) as passes:
        contender = chain.Contender("", "ours", build(w), passes)
        for draws in (2, 5):
            independent.forward = independent.backward = 0
            contender(draws)
            assert contender.seen[draws] == (independent.forward, independent.backward)
            assert contender.seen[draws] == (draws + once[0], draws + once[1])
    assert contender.each((2, 5)) == (1.0, 1.0)
    assert not w.model._forward_hooks


@PEERS
@pytest.mark.parametrize("build", [_chains.bare, _chains.ours, _chains.devinterp, _chains.posteriors])
def test_all_walk_on_the_batches_of_the_pool(build):
    w, seen = walk(), []

    def look(module, args, kwargs):
        seen.append(tuple(kwargs["input_ids"].flatten().tolist()))

    w.model.register_forward_pre_hook(look, with_kwargs=True)
    build(w)(4)
    baseline = 0 if build is _chains.bare else 1
    assert Counter(seen) == {tuple(tokens.flatten().tolist()): 2 + baseline for tokens in w.pool}


def test_passes_of_a_contender_that_makes_more_are_said():
    passes = Passes()

    def run(draws):
        passes.forward += 3 * draws + 7
        passes.backward += draws // 2

    contender = chain.Contender("", "peer", run, passes)
    for draws in (2, 6):
        contender(draws)
    assert contender.each((2, 6)) == (3.0, 0.5)


@PEERS
@pytest.mark.parametrize("component", ["full", "l1h0"])
@pytest.mark.parametrize("name", list(SMALL))
def test_all_estimate_the_same_quantity(monkeypatch, name, component):
    """Drift, pull and what is averaged, where noise is small beside them: the LLC of all is that of ours."""
    for setting, value in (("LR", 1e-8), ("NBETA", 1e8), ("LOCALIZATION", 4e7)):
        monkeypatch.setattr(_chains, setting, value)
    w = walk(component, name)
    w = replace(w, pool=w.pool[:1])  # the order of batches differs, which large steps feel
    wanted = _chains.ours(w)(6)
    assert abs(wanted) > 1e3
    for build in (_chains.devinterp, _chains.posteriors)[: 2 if component == "full" else 1]:
        assert build(w)(6) == pytest.approx(wanted, rel=0.05)  # noise: about 1 % of a step's drift


@PEERS
@pytest.mark.parametrize("component", ["full", "l1h0"])
def test_samplers_alone_move_what_a_component_is_by_its_noise(component):
    w = walk(component)
    before = weights(w.model)
    selection = llc_fast.select(w.model, component)
    for build in (_chain_samplers.ours, _chain_samplers.devinterp, _chain_samplers.eager):
        moving = _chain_samplers.Moving.of(w)
        build(moving)()
        moved, still = [], []
        for name, now, w0 in zip(moving.params, moving.work.params, moving.work.anchors, strict=True):
            mask = selection.mask(name)
            moved.append((now - w0)[mask])
            still.append((now - w0)[~mask])
        d = torch.cat(moved)
        assert len(d) == selection.numel
        assert not torch.cat(still).any()
        # Drift is below 1e-3 of the noise; 5 standard errors of a standard deviation.
        assert float(d.std()) == pytest.approx(_chains.LR**0.5, rel=5 / (2 * len(d)) ** 0.5)
    assert weights(w.model) == before


# --- the caller's model, folders and screen ---


@PEERS
@pytest.mark.parametrize("component", ["full", "l1h0"])
def test_a_model_is_left_as_it_was(component):
    w = walk(component)
    frozen = w.model.get_parameter("transformer.wpe.weight")
    frozen.requires_grad_(False)
    before = state(w.model)
    for build in (_chains.ours, _chains.devinterp, _chains.posteriors)[: 3 if component == "full" else 2]:
        build(w)(2)
        assert state(w.model) == before, build
    frozen.requires_grad_(True)
    before = state(w.model)
    steps, shares = Table("a", "", []), Table("b", "", [])
    chain.measure(TINY, chain.Case("gpt2-tiny"), w, steps, shares)
    assert state(w.model) == before


@PEERS
def test_devinterp_leaves_no_folder_and_prints_nothing(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run = _chains.devinterp(walk())
    run(2)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


@PEERS
@pytest.mark.parametrize("build", [_chains.ours, _chains.devinterp, _chains.posteriors])
def test_a_chain_that_dies_gives_no_number(monkeypatch, build):
    monkeypatch.setattr(_chains, "LR", 1e30)
    contender = chain.Contender("", "peer", build(walk()), Passes())
    with pytest.raises((ArithmeticError, llc_fast.errors.ChainError)):
        contender(4)
    assert contender.seen == {}


# --- the tables ---


@PEERS
def test_the_tables_of_a_tiny_run():
    """Every row is there, says equal work, and refers to the floor and to ours."""
    steps, shares, *llama = chain.tables(TINY)
    assert [table.key for table in llama] == ["chain-llama-tiny", "chain-parts-llama-tiny"]
    for table in llama:
        absent = [row["name"] for row in table.rows if "absent" in row]
        assert absent == [f"{chain.HEAD}: {chain.POSTERIORS}"] * ("parts" not in table.key)
        assert "Llama 29k bf16, 2 x 8 tokens a step" in table.text()
    names = [chain.FLOOR, "llc_fast", chain.DEVINTERP, chain.POSTERIORS]
    found = rows(steps)
    assert list(found) == [(c, n) for c in ("full", "l1h0") for n in names]
    assert [k for k, row in found.items() if "absent" in row] == [("l1h0", chain.POSTERIORS)]
    for (_, name), row in found.items():
        if "absent" in row:
            assert row["absent"] == "it moves whole tensors, not a head"
            continue
        assert (row["forward"], row["backward"]) == (1.0, 1.0)
        assert row["samples"] == 1
        assert ("llc" in row) == (name != chain.FLOOR)
        assert row["role"] == {chain.FLOOR: "floor", "llc_fast": "ours"}.get(name, "peer")
    parts = rows(shares)
    assert list(parts) == [
        (c, n) for c in ("full", "l1h0") for n in ("llc_fast", chain.DEVINTERP, "PyTorch by hand")
    ]
    for (title, name), row in parts.items():
        assert row["model"] == found[title, chain.FLOOR]["step"]
        assert row["share"] == row["sampler"] / row["step"]
        if name == "PyTorch by hand":
            assert row["step"] == row["model"] + row["sampler"]
        else:
            assert row["step"] == found[title, name]["step"]
            assert row["rest"] == row["step"] - row["model"] - row["sampler"]
    for table in (steps, shares):
        assert "GPT-2 29k, 2 x 8 tokens a step" in table.text()


@PEERS
@pytest.mark.parametrize("name", list(SMALL))
def test_bf16_models_of_every_family_run(name):
    w = walk(name=name, dtype=torch.bfloat16)
    steps, shares = Table("a", "", chain.COLUMNS), Table("b", "", chain.PARTS)
    case = chain.Case(name, torch.bfloat16)
    chain.measure(TINY, case, w, steps, shares)
    chain.measure(TINY, case, Walk(w.model, chain.HEAD, w.pool), steps, shares)
    assert len(steps.rows) == 8
    absent = [row["name"] for row in steps.rows + shares.rows if "absent" in row]
    assert absent == [f"{chain.HEAD}: {chain.POSTERIORS}"]


def test_gains_and_memory_are_ratios_of_what_was_measured():
    def slope(step):
        return Slope(Timing(step, step - 1, step + 1, 3), 9.0)

    times = {chain.FLOOR: slope(4.0), "llc_fast": slope(5.0), chain.DEVINTERP: slope(15.0)}
    peer = chain.Contender(chain.DEVINTERP, "peer", lambda draws: None, Passes(), {2: (4, 3), 6: (12, 7)})
    peer.peak, peer.llc = 300, 0.5
    row = chain.values(peer, times, 100, (2, 6))
    assert row["gain"] == 3.0
    assert row["floors"] == 3.75
    assert (row["forward"], row["backward"]) == (2.0, 1.0)
    assert (row["peak"], row["times"]) == (400, 4.0)
    assert (row["step"], row["low"], row["high"], row["once"], row["llc"]) == (15.0, 14.0, 16.0, 9.0, 0.5)
    ours = chain.Contender("llc_fast", "ours", lambda draws: None, Passes(), {2: (4, 3), 6: (12, 7)})
    assert chain.values(ours, times, 100, (2, 6)).keys().isdisjoint({"gain", "peak", "llc"})


def measured(component="full"):
    steps, shares = Table("a", "", chain.COLUMNS), Table("b", "", chain.PARTS)
    chain.measure(TINY, chain.Case("gpt2-tiny"), walk(component), steps, shares)
    return rows(steps), rows(shares)


@PEERS
def test_a_peer_that_is_not_installed_is_a_row(monkeypatch):
    without(monkeypatch, "devinterp", "posteriors")
    steps, shares = measured()
    title = "full"
    assert steps[title, chain.DEVINTERP]["absent"] == "not installed (devinterp)"
    assert steps[title, chain.POSTERIORS]["absent"] == "not installed (posteriors)"
    assert shares[title, chain.DEVINTERP]["absent"] == "not installed (devinterp)"
    for there in (steps[title, "llc_fast"], shares[title, "llc_fast"], shares[title, "PyTorch by hand"]):
        assert "absent" not in there


@PEERS
def test_without_transformers_a_model_is_a_row(monkeypatch):
    without(monkeypatch, "transformers")
    found = [[(row["name"], row["absent"]) for row in table.rows] for table in chain.tables(TINY)]
    titles = ["GPT-2 29k", "Llama 29k bf16"]
    assert found == [[(title, "not installed (transformers)")] for title in titles for _ in range(2)]


# --- limited time ---


class Hours:
    """A clock on which every chain takes an hour a run, and what is left of so many hours."""

    def __init__(self, monkeypatch, hours):
        self.now, self.hours = 0.0, hours
        monkeypatch.setattr(chain.time, "monotonic", lambda: self.now)
        for name in ("bare", "ours", "devinterp", "posteriors"):
            monkeypatch.setattr(_chains, name, self.build)

    def build(self, walk, backend="auto"):
        def run(draws):
            self.now += 1

        return run

    def left(self):
        return self.hours - self.now


@PEERS
def test_what_time_does_not_suffice_for_is_a_row(monkeypatch):
    """Two runs warm up a contender: after three of them 6 hours are gone, and 5.5 that are left are fewer."""
    hours = Hours(monkeypatch, 11.5)
    steps, shares = Table("a", "", chain.COLUMNS), Table("b", "", chain.PARTS)
    setting = replace(TINY, left=hours.left)
    spare = chain.Spare(setting)
    for component in ("full", chain.HEAD):
        case = chain.Case("gpt2-tiny")
        chain.measure(setting, case, walk(component), steps, shares, spare)
    found = rows(steps)
    there = [key for key, row in found.items() if "absent" not in row]
    assert there == [("full", n) for n in (chain.FLOOR, "llc_fast", chain.DEVINTERP)]
    assert {row["absent"] for row in found.values() if "absent" in row} == {
        "no time left",
        "it moves whole tensors, not a head",
    }
    assert {row["absent"] for row in shares.rows} == {"no time left"}


@PEERS
def test_who_has_little_time_gets_tables_of_each_component(monkeypatch):
    hours = Hours(monkeypatch, 1e6)
    monkeypatch.setattr(chain, "questions", lambda setting: ([chain.Case("gpt2-tiny")], (2, 8)))
    keys = ["chain-gpt2-tiny", "chain-parts-gpt2-tiny"]
    found = list(chain.tables(replace(TINY, left=hours.left)))
    assert [table.key for table in found] == keys * 2
    for early, late in zip(found[:2], found[2:], strict=True):
        assert [row["name"].partition(":")[0] for row in early.rows] == ["full"] * len(early.rows)
        assert late.rows[: len(early.rows)] == early.rows
        assert len(late.rows) == 2 * len(early.rows)
    assert [table.key for table in chain.tables(TINY)] == keys


@PEERS
def test_without_time_no_model_is_built(monkeypatch):
    monkeypatch.setattr(_models, "build", lambda *a: pytest.fail("built"))
    for table in chain.tables(replace(TINY, left=lambda: 0.0)):
        assert [row["absent"] for row in table.rows] == ["no time left"]


@PEERS
@pytest.mark.parametrize("longest", [0, 2])
def test_a_peer_out_of_memory_is_a_row(monkeypatch, longest):
    """At once, or only in its long run."""

    def build(walk):
        def run(draws):
            if draws > longest:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
            return 0.0

        return run

    monkeypatch.setattr(_chains, "devinterp", build)
    steps, shares = measured(chain.HEAD)
    title = chain.HEAD
    assert steps[title, chain.DEVINTERP]["absent"] == "out of memory"
    assert shares[title, chain.DEVINTERP]["absent"] == "out of memory"
    for there in (steps[title, "llc_fast"], shares[title, "llc_fast"], shares[title, "PyTorch by hand"]):
        assert "absent" not in there


def weights(model):
    return {name: tuple(p.detach().flatten().tolist()) for name, p in model.named_parameters()}


def state(model):
    flags = {name: (p.requires_grad, p.grad) for name, p in model.named_parameters()}
    hooks = [len(m._forward_hooks) for m in model.modules()]
    return weights(model), flags, hooks, [m.training for m in model.modules()]
