"""One chain in many layouts: ranks are spawned once, and compared with one rank without any."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import shard_worker
import torch
import torch.distributed as dist
from cases import differing
from shard_model import LAYOUTS
from shard_traps import TRAPS

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs torch.distributed with gloo"
)
HERE = Path(__file__).parent
Found = dict[Any, Any]
LOOPS = ("loop", "long", "accumulated", "accumulated long")


def pairs(mode: str, *, wanted: str) -> list[Any]:
    """(layout, name) of what the ranks look at in a mode, of one sort."""

    def sort(name: str) -> str:
        return "loops" if name in LOOPS else "estimates" if name.startswith("estimate") else "fed"

    found = [(layout, name) for layout in LAYOUTS for name in shard_worker.names(mode, layout)]
    return [pytest.param(*pair, id="-".join(pair)) for pair in found if sort(pair[1]) == wanted]


def environment() -> dict[str, str]:
    """Of ranks that share few cores, on this machine alone."""
    added = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    if any(name == "lo" for _, name in socket.if_nameindex()):
        added["GLOO_SOCKET_IFNAME"] = "lo"
    return {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")} | added


def ranks(mode: str, factory: pytest.TempPathFactory) -> tuple[Found, list[Found]]:
    """What one rank alone finds, and each of four; computed by the first of pytest's workers that needs it."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"shard-{mode}"
    try:
        folder.mkdir()
    except FileExistsError:
        deadline = time.monotonic() + 900
        while not (folder / "done").exists() and time.monotonic() < deadline:
            time.sleep(0.2)
    else:
        try:
            torch.save(shard_worker.alone(mode), folder / "alone.pt")
            program = [sys.executable, str(HERE / "shard_worker.py"), str(folder), mode]
            done = subprocess.run(
                program, capture_output=True, text=True, timeout=800, env=environment(), check=False
            )
            (folder / "log").write_text(done.stderr[-8000:])
        finally:
            (folder / "done").touch()
    paths = [folder / f"{name}.pt" for name in ("alone", *(f"rank{i}" for i in range(shard_worker.RANKS)))]
    if not all(path.exists() for path in paths):
        pytest.fail((folder / "log").read_text() if (folder / "log").exists() else "ranks did not finish")
    alone, *each = [torch.load(path, weights_only=False) for path in paths]
    return alone, each


@pytest.fixture(scope="session")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, list[Found]]:
    return ranks("quick", tmp_path_factory)


@pytest.fixture(scope="session")
def slow(tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, list[Found]]:
    return ranks("slow", tmp_path_factory)


def of(found: tuple[Found, list[Found]], layout: str, name: str) -> tuple[Any, list[Any]]:
    """What one rank found, and each of those that are in the layout."""
    alone, each = found
    there = [rank[layout, name] for rank in each if (layout, name) in rank]
    sizes, names, _, _ = LAYOUTS[layout]
    assert len(there) == torch.Size(sizes).numel() // (sizes[0] if names[0] == "copy" else 1)
    return alone.get(name), there


def assert_near(here: Any, alone: Any, rtol: float = 1e-5) -> None:
    assert here.keys() == alone.keys() if isinstance(alone, dict) else True
    for a, b in (
        zip(here.values(), alone.values(), strict=True) if isinstance(alone, dict) else [(here, alone)]
    ):
        torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=rtol, atol=rtol)


def check_fed(found: tuple[Found, list[Found]], layout: str, name: str) -> None:
    """Bits are equal; sums over all elements are to rounding, and the same number on every rank."""
    alone, there = of(found, layout, name)
    for here in there:
        assert here["apart"] == []
        for key in alone:
            if key.startswith("near"):
                assert_near(here[key], alone[key], rtol=1e-10 if key == "near thermostat" else 1e-5)
                assert_near(here[key], there[0][key], rtol=0.0)


@pytest.mark.parametrize(("layout", "name"), pairs("quick", wanted="fed"))
def test_noise_states_and_sums_do_not_depend_on_the_layout(quick, layout, name):
    """The noise alone, and the state after three steps with the same gradients, some of which are None."""
    check_fed(quick, layout, name)


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "name"), pairs("slow", wanted="fed"))
def test_noise_states_and_sums_of_every_sampler_in_every_layout(slow, layout, name):
    check_fed(slow, layout, name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tiles_are_where_pytorch_puts_the_elements(quick, layout):
    assert [here["apart"] for here in of(quick, layout, "placed")[1] if here["apart"]] == []


@pytest.mark.parametrize(("layout", "name"), pairs("quick", wanted="loops"))
def test_losses_agree_to_rounding(quick, layout, name):
    alone, there = of(quick, layout, name)
    for here in there:
        torch.testing.assert_close(here["losses"], alone["losses"], rtol=0.0, atol=1e-5)
    assert len(set(alone["losses"].tolist())) == len(alone["losses"])


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "name"), pairs("slow", wanted="loops"))
def test_losses_agree_to_rounding_over_30_steps(slow, layout, name):
    alone, there = of(slow, layout, name)
    for here in there:
        torch.testing.assert_close(here["losses"], alone["losses"], rtol=0.0, atol=1e-5)


def check_estimate(found: tuple[Found, list[Found]], layout: str, name: str) -> None:
    alone, there = of(found, layout, name)
    for here in there:
        torch.testing.assert_close(here["losses"], alone["losses"], rtol=0.0, atol=1e-5)
        torch.testing.assert_close(
            here["numbers"], alone["numbers"], rtol=1e-4, atol=1e-4, equal_nan=True
        )  # RMSprop has no order bias
        assert torch.equal(here["losses"], there[0]["losses"])  # ranks decide alike
        assert differing(here["numbers"], there[0]["numbers"]) == 0
        assert here["apart"] == []  # the weights are given back
        assert here["grads kept"]
        assert here["trainable"]
        assert here["settings"] == there[0]["settings"]
    here, wanted = there[0]["settings"], dict(alone["settings"])
    assert here["ranks"] == len(there)
    assert here["pool_samples"] == wanted["pool_samples"]
    split = LAYOUTS[layout][2] is not None and len(there) > 1
    assert (here["data_sha256"] == wanted["data_sha256"]) != split
    ours = {key: value for key, value in here.items() if key not in ("ranks", "data_sha256")}
    assert ours == {key: value for key, value in wanted.items() if key != "data_sha256"}


@pytest.mark.parametrize(("layout", "name"), pairs("quick", wanted="estimates"))
def test_an_estimate_is_the_same_in_every_layout(quick, layout, name):
    check_estimate(quick, layout, name)


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "name"), pairs("slow", wanted="estimates"))
def test_estimates_of_every_sampler_in_every_layout(slow, layout, name):
    check_estimate(slow, layout, name)


def trap(quick: tuple[Found, list[Found]], name: str) -> dict[str, Any]:
    return quick[1][0]["trap", name]


@pytest.mark.parametrize("name", ["zeroed_late", "zeroed_late_flat", "zeroed_late_in_place"])
def test_zero_grad_after_the_forward_pass_is_told(quick, name):
    found = trap(quick, name)
    assert found["wrong"]  # the gradients are
    assert re.search("still held that of the last step.*call zero_grad", found["message"])
    assert found["still"]  # no weight has moved
    assert found["then"] == ""


def test_right_orders_of_passes_and_steps_are_let_through(quick):
    assert trap(quick, "zeroed_in_time")["message"] == ""


def test_a_step_that_a_forward_pass_would_not_see_is_refused(quick):
    found = trap(quick, "evaluated")
    assert found["wrong"]
    assert re.search(r"'embed_tokens.weight' is unsharded.*module\.reshard\(\)", found["message"])
    assert found["then"] == ""
    assert found["seen"]
    found = trap(quick, "kept_unsharded")
    assert "is unsharded" in found["message"]
    assert found["then"] == ""


def test_unsharded_parameters_are_refused(quick):
    found = trap(quick, "unsharded")
    assert found["wrong"]  # an update of one is lost
    *lost, unseen = found["messages"]
    assert len(lost) == 3
    assert all(re.search(r"unsharded form of .* lost .*module\.reshard\(\)", message) for message in lost)
    assert "is unsharded" in unseen
    assert found["then"] == ""


def test_gradients_that_are_not_reduced_are_refused(quick):
    found = trap(quick, "unsynchronised")
    assert "set_requires_gradient_sync(True)" in found["message"]
    assert found["then"] == ""


def test_replaced_parameters_are_told(quick):
    found = trap(quick, "replaced")
    assert "was replaced in its module" in found["message"]
    assert "convert it" in found["converted"]


def test_what_is_in_another_layout_is_refused_or_moved(quick):
    found = trap(quick, "misplaced")
    gradient, anchor = found["messages"]
    assert "is a plain tensor, its parameter a DTensor" in gradient
    assert "give a DTensor placed like it" in anchor
    assert found["same"]


def test_an_estimate_that_is_interrupted_leaves_the_model_as_it_was(quick):
    assert trap(quick, "interrupted") == {"stopped": True, "kept": True, "same": True}


def test_an_estimate_of_a_head_does_not_change_what_fsdp_makes_of_the_others(quick):
    found = trap(quick, "narrowed")
    assert found["fp32"]
    assert found["llc"] == found["llc"]


def test_ranks_that_disagree_are_told_on_all(quick):
    for rank in quick[1][:2]:
        pools, settings, weights = rank["trap", "disagreeing"]["messages"]
        assert "numbers of batches differ between ranks" in pools
        assert "settings differ between ranks" in settings
        assert "'norm.weight' holds weights that are not finite" in weights


def test_every_trap_is_looked_at():
    source = Path(__file__).read_text()
    assert [name for name in TRAPS if f'"{name}"' not in source] == []


@pytest.mark.slow
def test_the_example_gives_the_same_numbers_under_torchrun():
    example = str(HERE.parent / "examples" / "sharded.py")
    numbers = []
    for start in ([], ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]):
        program = [sys.executable, *start, example, "5"]
        done = subprocess.run(
            program, capture_output=True, text=True, timeout=600, env=environment(), check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        numbers.append([float(x) for x in re.findall(r"LLC +(\S+)", done.stdout)])
    assert len(numbers[0]) == 2
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-3)
