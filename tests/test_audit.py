"""Audits of stores that devinterp itself wrote, against numbers taken from the arrays by hand."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

audit_trees = pytest.importorskip(
    "audit_trees", reason="needs xarray and zarr: pip install 'llc-fast[store]'"
)

from audit_trees import LM, devinterp_store, spoiled, tokens  # noqa: E402

from llc_fast.audit import Audit, audit  # noqa: E402
from llc_fast.diagnostics import t_quantile  # noqa: E402
from llc_fast.errors import DataError  # noqa: E402
from llc_fast.evidence import assess  # noqa: E402
from llc_fast.store import open_tree  # noqa: E402
from llc_fast.tree_llc import evidence_of  # noqa: E402


def losses(path):
    tree = audit_trees.xr.open_datatree(path, engine="zarr", consolidated=False)
    return tree.sampling_loss_micro.values.mean(axis=(2, 3), dtype=np.float64), float(tree.init_loss.mean())


def by_devinterp(path):
    """What devinterp says of a store."""
    from devinterp.slt.llc import compute_llc

    return compute_llc(audit_trees.xr.open_datatree(path, engine="zarr", consolidated=False))


def same_as(found: Audit, theirs) -> None:
    assert found.reported is not None
    for name in ("llc_mean", "llc_std", "llc_scalar", "init_loss"):
        mine, old = getattr(found.reported, name), float(theirs[name])
        assert mine == pytest.approx(old, abs=2e-4, rel=1e-4), name


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """A pool of 6 batches, passed over 8 times after 12 steps of burn-in; init_loss is of all of it."""
    path = tmp_path_factory.mktemp("devinterp") / "healthy.zarr"
    return devinterp_store(path, num_burnin_steps=12, num_init_loss_batches=6, save_metrics=True)


def test_a_store_of_devinterp(healthy):
    found, (loss, start) = audit(healthy), losses(healthy)
    same_as(found, by_devinterp(healthy))
    assert (found.writer, found.completed, found.chains, found.source) == ("devinterp", True, 3, str(healthy))
    result = found.result
    assert result is not None
    cut = found.burnin
    assert cut >= 12
    as_set = 10 * (loss[:, 12:].mean() - start)  # whole passes, so that batches cancel
    assert (found.llc if found.as_set is None else found.as_set) == pytest.approx(as_set, abs=1e-4)
    assert found.error == result.mcse
    half = t_quantile(0.975, result.dof) * found.error
    assert (found.low, found.high) == pytest.approx((found.llc - half, found.llc + half), rel=1e-3)
    assert found.verdict["dead chains"].ok
    assert found.verdict["completed store"].ok
    assert found.verdict["repeatable losses"].ok
    assert found.verdict["same batches at w0"].ok
    assert found.verdict["pool size"].ok is False  # 24 sequences, 20 nbeta are 200
    assert result.settings["pool_samples"] == 24
    assert result.settings["weights"] == sum(p.numel() for p in LM().parameters())
    assert found.verdict["temperature"].ok is not None  # from the norms of its steps
    assert set(found.unknown) >= {"pool bias", "gradient at w0", "rounding of losses"}
    assert any("seed init_seed + c, 100 to 102" in note for note in found.notes)
    assert any("one order" in note for note in found.notes)
    assert any("train mode" in note for note in found.notes)
    assert found.line.startswith(f"LLC {found.llc:.5g} ± {found.error:.2g}, 95 % interval {found.low:.5g} to")
    assert json.loads(json.dumps(found.to_dict()))["corrected"]["llc"] == found.llc


def test_gpt_neox_and_its_dropout(tmp_path):
    transformers = pytest.importorskip("transformers")
    outcome = {}
    for p in (0.0, 0.3):
        torch.manual_seed(0)
        config = transformers.GPTNeoXConfig(
            vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
            max_position_embeddings=8, hidden_dropout=p,
        )  # fmt: skip
        model = transformers.GPTNeoXForCausalLM(config)
        path = devinterp_store(
            tmp_path / f"{p}.zarr", model, num_draws=24, num_chains=2, lr=1e-4, num_init_loss_batches=6
        )
        outcome[p] = audit(path)
        same_as(outcome[p], by_devinterp(path))
    assert outcome[0.0].verdict["repeatable losses"].ok
    assert outcome[0.3].verdict["repeatable losses"].ok is False
    first = losses(tmp_path / "0.3.zarr")[0][:, 0]  # of the same batch at w0
    assert outcome[0.3].verdict["repeatable losses"].value == pytest.approx(
        10 * abs(first[0] - first[1]) / 2 / abs(outcome[0.3].llc), rel=1e-4
    )


@pytest.mark.parametrize("kind", ["loss", "logits"])
def test_a_dead_chain(tmp_path, kind):
    """Chain 1 of 3 fails at step 20, as devinterp lets chains fail; its first steps are in what was reported."""
    from devinterp.slt.lm_loss import NonFiniteLogitsError

    def spoil(chain, step, loss):
        if chain == 1 and 15 <= step <= 20:
            loss = loss + 5.0
        if (chain, step) == (1, 20):
            if kind == "logits":
                raise NonFiniteLogitsError("not finite")
            loss = loss * math.nan
        return loss

    path = tmp_path / "dead.zarr"
    loss_fn = spoiled(3 * 6, 60, spoil)  # what chain 2 calls is still counted as chain 1's, after its step 20
    devinterp_store(path, loss_fn=loss_fn, num_burnin_steps=12, num_init_loss_batches=6)
    found, (loss, start) = audit(path), losses(path)
    same_as(found, by_devinterp(path))
    assert list(found.result.dead_chains) == [1]
    assert "step 20" in found.result.dead_chains[1]
    assert found.verdict["dead chains"].value == 1
    assert not found.ok
    as_set = 10 * (loss[[0, 2], 12:].mean() - start)
    assert (found.llc if found.as_set is None else found.as_set) == pytest.approx(as_set, abs=1e-4)
    assert found.reported.llc_mean > found.high + 1  # the dead chain's last steps
    assert found.verdict["reported value"].ok is False
    assert np.isnan(found.result.llc_per_chain[1])


def test_a_half_dead_chain(tmp_path):
    def spoil(chain, step, loss):
        return loss + 1.0 if chain == 2 and step >= 36 else loss

    path = tmp_path / "half.zarr"
    loss_fn = spoiled(3 * 6, 60, spoil)
    devinterp_store(path, loss_fn=loss_fn, num_burnin_steps=12, num_init_loss_batches=6)
    found = audit(path)
    assert list(found.result.half_dead) == [2]
    assert "jumped to another level" in found.result.half_dead[2]
    assert found.verdict["half-dead chains"].ok is False
    kept = found.result.llc_per_chain[:2].mean()
    assert found.without_half_dead == pytest.approx(kept, rel=1e-9)
    assert found.without_half_dead < found.llc - 1


def test_a_short_run_says_what_is_not_known(tmp_path):
    """10 draws of a pool of 60 batches: none comes back, and init_loss is of 32 of them."""
    path = devinterp_store(tmp_path / "short.zarr", ids=tokens(240), num_draws=10, num_chains=2)
    found, (loss, start) = audit(path), losses(path)
    assert found.llc == pytest.approx(10 * (loss.mean() - start), abs=1e-4)
    blind = assess(replace(evidence_of(open_tree(path)), common_error=0.0)).mcse
    assert found.error > blind * 1.01  # batches at w0 that are not those of draws
    assert found.result.settings["pool_samples"] is None
    for name in (
        "pool size",
        "ESS",
        "R-hat of |w - w0|^2",
        "drift of |w - w0|^2",
        "half the weights",
        "order bias",
    ):
        assert found.verdict[name].ok is None, name
        assert found.unknown[name], name
    assert "no batch came back in 10 steps" in found.unknown["pool size"]
    assert found.verdict["R-hat on the same batches"].ok is not None


def test_gradient_accumulation_unmatched_and_rmsprop(tmp_path):
    twice = devinterp_store(tmp_path / "twice.zarr", gradient_accumulation_steps=2, num_init_loss_batches=3)
    found, (loss, start) = audit(twice), losses(twice)
    same_as(found, by_devinterp(twice))
    assert found.result.settings["pool_batches"] == 6
    assert "whole epochs of 3 draws" in found.result.basis
    as_set = found.llc if found.as_set is None else found.as_set
    assert as_set == pytest.approx(10 * (loss.mean() - start), abs=1e-4)

    apart = devinterp_store(
        tmp_path / "apart.zarr", match_sampling_input_ids_across_chains=False, num_init_loss_batches=6
    )
    found, (loss, start) = audit(apart), losses(apart)
    same_as(found, by_devinterp(apart))
    as_set = found.llc if found.as_set is None else found.as_set
    assert as_set == pytest.approx(10 * (loss.mean() - start), abs=1e-4)
    assert "dropout" in found.unknown["repeatable losses"]
    assert not any("one order" in note for note in found.notes)

    slow = devinterp_store(tmp_path / "slow.zarr", sampling_method="rmsprop_sgld", lr=1e-3, num_chains=2)
    found = audit(slow)
    same_as(found, by_devinterp(slow))
    assert found.result.settings["sampler"] == "rmsprop_sgld"
    assert found.verdict["temperature"].ok is None
    assert found.verdict["order bias"].ok is None


def test_init_noise_is_refused(tmp_path):
    path = devinterp_store(tmp_path / "noise.zarr", init_noise=0.1, num_draws=24, num_init_loss_batches=6)
    found = audit(path)
    same_as(found, by_devinterp(path))
    assert not found.ok
    assert found.result is None
    assert "init_noise is 0.1" in found.refusal
    assert found.line == f"no estimate: {found.refusal}"
    assert {check.name for check in found.verdict} >= {"dead chains", "R-hat", "ESS", "drift"}
    assert found.to_dict()["corrected"] is None


def test_a_store_is_not_written_to(healthy):
    def state():
        return {
            str(p): (p.stat().st_mtime_ns, p.is_file() and hashlib.sha256(p.read_bytes()).hexdigest())
            for p in [healthy, *healthy.rglob("*")]
        }

    before = state()
    for p in before:
        os.chmod(p, 0o555 if os.path.isdir(p) else 0o444)
    try:
        assert audit(healthy).result is not None
        assert state() == before
    finally:
        for p in before:
            os.chmod(p, 0o755 if os.path.isdir(p) else 0o644)


def test_a_damaged_store(healthy, tmp_path):
    import shutil

    copy = shutil.copytree(healthy, tmp_path / "copy.zarr")
    chunk = next(p for p in (copy / "sampling_loss_micro" / "c").rglob("*") if p.is_file())
    chunk.write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="sampling_loss_micro cannot be read, the store is damaged"):
        audit(copy)
    (copy / "zarr.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as a Zarr store"):
        audit(copy)
