"""The published setting through both libraries: its figures at a tiny size, and the section that they make."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent / "truth"))
import published
import published_runs as runs
import published_text
from published_model import BATCH, AttentionOnly, Size, Trained

pytest.importorskip("devinterp", reason="needs devinterp 2.0.1: pip install 'llc-fast[dev]'")

PLAN = runs.Plan(Size(16, 2, 40, 6, None, 0), draws=40, burnin=8, heads=("l1h1",))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> runs.Laboratory:
    torch.manual_seed(0)
    ids = torch.randint(0, 40, (PLAN.draws * BATCH, 6))
    folder = tmp_path_factory.mktemp("runs")
    return runs.Laboratory(PLAN, Trained(AttentionOnly(PLAN.size), ids, 0.0), ids, folder)


@pytest.mark.parametrize("component", ["full", "l1h1"])
def test_comparison(lab, component):
    """What was compared is the same; and each step of the walk changes what it says."""
    figures = runs.compare(lab, component)
    rows = [row for row in published.compared(component, figures) if not isinstance(row, str)]
    assert [row.passed for row in rows] == [True, True], rows
    assert figures["theirs"]["init_loss"] != pytest.approx(figures["whole_init_loss"], rel=1e-5)
    paired, formula = figures["whole"]["llc_mean"], figures["formula"]
    moved = runs.SETTING["n_beta"] * (figures["init_loss"] - figures["whole_init_loss"])
    assert paired - formula == pytest.approx(moved, abs=1e-4)
    if component == "full":
        assert figures["settled"]["llc_mean"] > paired  # chains begin at w0
    assert (
        figures["weights"] == {"full": 40 * 16 * 2 + 6 * 16 + 2 * (4 * 272 + 32) + 32, "l1h1": 536}[component]
    )


def test_finished_runs_are_not_repeated(lab, monkeypatch):
    first = lab.ours("again", "l1h1", num_draws=2)[0].dataset.sampling_loss_micro.values
    monkeypatch.setattr(runs, "sample", None)
    np.testing.assert_array_equal(lab.ours("again", "l1h1")[0].dataset.sampling_loss_micro.values, first)


def test_fresh_batches_leave_chains_where_they_were(lab, monkeypatch):
    figures = runs.fresh(lab, "l1h1")
    assert figures["same"]
    assert figures["difference"] == pytest.approx(figures["own"] - figures["apart"], abs=1e-9)
    assert abs(figures["difference"]) > 0


def test_curvature_of_a_softmax():
    """Two logits without an input: the Hessian is p (1 - p) [[1, -1], [-1, 1]] with p = 1/2."""

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.theta = nn.Parameter(torch.zeros(2))

        def forward(self, ids: Tensor) -> Tensor:
            return self.theta.expand(*ids.shape, 2)

    model = Logits()
    ids = torch.randint(0, 2, (2 * BATCH, 5), generator=torch.Generator().manual_seed(0))
    fake = SimpleNamespace(trained=SimpleNamespace(model=model), ids=ids, masks=lambda component: None)
    assert runs.curvature(fake, "full") == pytest.approx(0.5, rel=1e-3)
    fake.masks = lambda component: {"theta": torch.tensor([True, False])}
    assert runs.curvature(fake, "half") == pytest.approx(0.25, rel=1e-3)
    assert (model.theta == 0).all()


def test_section_is_of_the_figures():
    figures = json.loads(published.FIGURES.read_text(encoding="utf-8"))
    section = published_text.section(figures)
    assert published_text.DRAFT.read_text(encoding="utf-8") == section
    page = published_text.PAGE.read_text(encoding="utf-8")
    assert page.split(published_text.BEGIN)[1].split(published_text.END)[0].strip() == section.strip()
