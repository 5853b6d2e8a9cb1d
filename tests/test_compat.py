"""devinterp 2.0.1's own code with our sampler beneath it."""

from __future__ import annotations

import builtins
import functools
import importlib.metadata
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from llc_fast import dropin
from llc_fast.compat import patch as patching
from llc_fast.compat import patch_devinterp
from llc_fast.errors import BackendError

theirs = pytest.importorskip(
    "devinterp.slt.sampling", reason="needs devinterp 2.0.1: pip install 'llc-fast[dev]'"
)
MODULES = ("sampling", "llc", "bif", "susceptibilities")


@pytest.fixture(autouse=True)
def original() -> Iterator[Callable[..., Any]]:
    """devinterp's function; every test must have put it back."""
    sample = theirs.sample
    yield sample
    assert all(sys.modules[f"devinterp.slt.{name}"].sample is sample for name in MODULES if module(name))


def module(name: str) -> types.ModuleType | None:
    return sys.modules.get(f"devinterp.slt.{name}")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What reaches our sampler, which is not run."""
    seen: list[dict[str, Any]] = []

    @functools.wraps(dropin.sample)
    def sample(**kwargs: Any) -> str:
        seen.append(kwargs)
        return "tree"

    monkeypatch.setattr(dropin, "sample", sample)
    return seen


def test_every_module_calls_ours_until_undone(calls: list[dict[str, Any]], original: Callable[..., Any]):
    patch = patch_devinterp()
    own = {sys.modules[f"devinterp.slt.{name}"].sample for name in MODULES}
    assert len(own) == 1
    assert own != {original}
    model = torch.nn.Linear(2, 2)
    result = sys.modules["devinterp.slt.bif"].sample(model, "data", {}, lr=0.1, n_beta=3.0, num_chains=2)
    assert result == "tree"
    assert calls == [
        {"model": model, "dataset": "data", "observables": {}, "lr": 0.1, "n_beta": 3.0, "num_chains": 2}
    ]
    patch.undo()
    assert sys.modules["devinterp.slt.llc"].sample is original
    patch.undo()


def test_arguments_are_devinterps(calls: list[dict[str, Any]], original: Callable[..., Any]):
    with patch_devinterp():
        assert inspect.signature(theirs.sample) == inspect.signature(original)
        with pytest.raises(TypeError, match="backend"):  # ours alone
            theirs.sample(None, None, {}, lr=0.1, n_beta=3.0, backend="cpu")
        with pytest.raises(TypeError, match="n_beta"):
            theirs.sample(None, None, {}, lr=0.1)
    assert calls == []
    assert set(inspect.signature(original).parameters) <= set(inspect.signature(dropin.sample).parameters)


def test_defaults_are_devinterps():
    mine, known = (inspect.signature(f).parameters for f in (dropin.sample, theirs.sample))
    assert {name: mine[name].default for name in known if name != "observables"} == {
        name: p.default for name, p in known.items() if name != "observables"
    }


def test_twice_is_once(calls: list[dict[str, Any]], original: Callable[..., Any]):
    with patch_devinterp() as outer:
        ours = theirs.sample
        with patch_devinterp():
            assert theirs.sample is ours
        assert theirs.sample is ours
        inner = patch_devinterp()
        outer.undo()
        outer.undo()
        assert theirs.sample is ours
        inner.undo()
        assert theirs.sample is original


def test_an_exception_ends_it(calls: list[dict[str, Any]], original: Callable[..., Any]):
    with pytest.raises(KeyError), patch_devinterp():
        raise KeyError
    assert theirs.sample is original


def test_what_a_script_imported_before_or_meanwhile(
    calls: list[dict[str, Any]], original: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    script = types.ModuleType("a_script")
    script.draw_samples = original  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_script", script)
    with patch_devinterp():
        assert script.draw_samples is theirs.sample is not original
        script.again = theirs.sample  # type: ignore[attr-defined]
    assert script.draw_samples is script.again is original


def test_other_versions_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(patching, "version", lambda name: "1.3.2")
    with pytest.raises(
        BackendError, match=r"devinterp is 1.3.2, the patch is for 2.0.1.*estimate_learning_coeff"
    ):
        patch_devinterp()
    monkeypatch.setattr(patching, "version", lambda name: "3.0.0")
    with pytest.raises(BackendError, match=r"devinterp is 3.0.0.*call llc_fast.sample"):
        patch_devinterp()

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(patching, "version", missing)
    with pytest.raises(BackendError, match=r"pip install 'devinterp==2.0.1'"):
        patch_devinterp()


def test_an_import_that_fails_is_explained(monkeypatch: pytest.MonkeyPatch):
    """As with the zarr that Python 3.12 resolves, which has moved what devinterp imports."""
    for name in [name for name in sys.modules if name.startswith("devinterp")]:
        monkeypatch.delitem(sys.modules, name)
    own = builtins.__import__

    def without(
        name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
    ) -> Any:
        if name == "zarr.core.chunk_grids":
            raise ImportError("cannot import name 'RegularChunkGrid'", name="zarr.core.chunk_grids")
        return own(name, globals, locals, fromlist, level)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        BackendError, match=r"does not import \(ImportError: .*RegularChunkGrid.*zarr<3.2.*llc_fast.sample"
    ):
        patch_devinterp()


def test_a_changed_signature_is_refused(calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch):
    def sample(model: Any, *, brand_new: int = 0) -> None: ...

    monkeypatch.setattr(theirs, "sample", sample)
    with pytest.raises(BackendError, match="brand_new"):
        patch_devinterp()
    monkeypatch.undo()


def test_devinterps_llc_runs_on_our_chains(tmp_path: Any):
    """Its own function from beginning to end, on a tiny GPT-NeoX."""
    datasets, transformers = pytest.importorskip("datasets"), pytest.importorskip("transformers")
    from devinterp.slt.llc import llc

    torch.manual_seed(0)
    config = transformers.GPTNeoXConfig(
        vocab_size=30,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
    )
    model = transformers.GPTNeoXForCausalLM(config)
    ids = torch.randint(30, (64, 9))
    data = datasets.Dataset.from_dict({"input_ids": ids.tolist()}).with_format("torch")
    settings: dict[str, Any] = {
        "lr": 1e-4,
        "n_beta": 10.0,
        "localization": 100.0,
        "batch_size": 4,
        "num_chains": 2,
    }
    settings |= {"num_draws": 6, "batches_per_draw": 1, "device": "cpu"}
    with patch_devinterp():
        result = llc(model, data, {"same": data}, output_path=tmp_path / "ours.zarr", **settings)
    assert result.loss_trace.shape == (2, 6)
    assert bool(result.llc_per_chain.notnull().all())
    import xarray

    tree = xarray.open_datatree(tmp_path / "ours.zarr", engine="zarr", consolidated=False)
    assert "llc_fast" in tree.attrs
    assert tree["loss_same"].shape == (2, 6, 4, 8)
