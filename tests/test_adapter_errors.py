"""Bad arguments of SGLD, init and update: an error of ours that names the argument, nothing written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_ops_errors import BACKENDS, NOT_A_SCALAR, OUT_OF_RANGE, SCALARS

from llc_fast import SGLD, LlcFastError, functional
from llc_fast.types import Box, Selection


def optimizer(**changes: Any) -> SGLD:
    return SGLD([torch.ones(4, requires_grad=True)], **{"nbeta": 2.0} | changes)


@pytest.mark.parametrize("name", [*SCALARS[:-1], "bounding_box_size"])
@pytest.mark.parametrize("value", NOT_A_SCALAR, ids=lambda v: repr(v)[:12])
def test_sgld_scalars(name, value):
    with pytest.raises(LlcFastError, match=rf"\b{name}\b"):
        optimizer(**{name: value})
    sampler = optimizer()
    sampler.param_groups[0][name] = value  # as a scheduler would
    with pytest.raises(LlcFastError, match=rf"\b{name}\b"):
        sampler.step()
    assert torch.all(sampler.param_groups[0]["params"][0] == 1)


@pytest.mark.parametrize("name", ["seed", "chain"])
@pytest.mark.parametrize("value", OUT_OF_RANGE, ids=repr)
def test_sgld_streams(name, value):
    with pytest.raises(LlcFastError, match=f"^{name} is "):
        optimizer(**{name: value})


W = torch.ones(3)
BAD_LISTS = {
    "nothing": [],
    "a number": 5,
    "not tensors": [1.0],
    "complex": [W.cfloat()],
    "integers": [W.int()],
    "meta": [W.to("meta")],
    "sparse": [W.to_sparse()],
    "expanded": [torch.ones(()).expand(3)],
    "twice the same": [W, W],
    "in two groups": [{"params": [W]}, {"params": [W]}],
    "groups that overlap": [{"params": [torch.ones(3)]}, {"params": [W[:2]]}, {"params": [W[1:]]}],
    "not a leaf": [torch.ones(3, requires_grad=True) * 1],
    "a name twice": [("w", torch.ones(3)), ("w", torch.ones(3))],
    "half of them named": [("w", torch.ones(3)), torch.ones(3)],
}


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
@pytest.mark.parametrize("kind", BAD_LISTS)
def test_sgld_params(kind):
    with pytest.raises(LlcFastError, match="params"):
        SGLD(BAD_LISTS[kind], nbeta=2.0)


def test_sgld_needs_nbeta():
    with pytest.raises(TypeError, match="nbeta"):
        SGLD([W])


BAD_NAMED = {
    "nothing": ({}, "named_params is empty"),
    "a number": (5, "named_params is a int"),
    "tensors": ([torch.ones(3)], "named_params must give"),
    "not tensors": ({"w": 1.0}, r"named_params\['w'\] is a float"),
    "a name twice": ([("w", torch.ones(3)), ("_orig_mod.w", torch.ones(3))], "'w' twice"),
    "complex": ({"w": W.cfloat()}, r"params\['w'\] is torch.complex64"),
    "meta": ({"w": W.to("meta")}, r"params\['w'\] is a meta tensor"),
    "sparse": ({"w": W.to_sparse()}, r"params\['w'\] has layout"),
    "expanded": ({"w": torch.ones(()).expand(3)}, r"params\['w'\] is expanded"),
    "views that overlap": ({"v": W[:2], "w": W[1:]}, "share memory"),
}


@pytest.mark.parametrize("kind", BAD_NAMED)
def test_init_params(kind):
    named, match = BAD_NAMED[kind]
    with pytest.raises(LlcFastError, match=match):
        functional.init(named)


def test_init_selection_and_ids():
    w = {"v": torch.ones(3), "w": torch.ones(4)}
    ids = {"v": 0, "w": 1}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"selection": "w"}, "selection is a str"),
        (
            {"selection": Selection("w", {"w": (Box(0, 1, 2, 2),)}, {"w": (9,)}, ids)},
            "selection is of a model",
        ),
        ({"selection": Selection("w", {"w": (Box(0, 1, 9, 9),)}, {"w": (4,)}, ids)}, "ends at element 9"),
        (
            {"selection": Selection("u", {"u": (Box(0, 1, 2, 2),)}, {"u": (4,)}, ids | {"u": 2})},
            "selects none",
        ),
        ({"tensor_ids": {"v": 0}}, "tensor_ids has no entry for 'w'"),
        ({"tensor_ids": [0, 1]}, "tensor_ids is a list"),
        ({"tensor_ids": {"v": 0, "w": -1}}, r"tensor_ids\[1\] is -1"),
        ({"tensor_ids": {"v": 3, "w": 3}}, "tensor_ids repeats"),
        ({"seed": -1}, "seed is -1"),
        ({"chain": 2**64}, "chain is"),
    ]
    for arguments, match in cases:
        with pytest.raises(LlcFastError, match=match):
            functional.init(w, **arguments)


@pytest.mark.parametrize("name", SCALARS)
@pytest.mark.parametrize("value", NOT_A_SCALAR, ids=lambda v: repr(v)[:12])
def test_update_scalars(name, value):
    w = {"w": torch.ones(4)}
    state = functional.init(w)
    with pytest.raises(LlcFastError, match=rf"\b{name}\b"):
        functional.update({}, state, w, **{"lr": 1e-3, "nbeta": 2.0} | {name: value})
    assert torch.all(w["w"] == 1)


def test_update_operands():
    w = {"w": torch.ones(4)}
    state = functional.init(w)
    cases: list[tuple[tuple[Any, Any, Any], str]] = [
        (({}, "state", w), "state is a str"),
        (({}, state, {}), "params has no 'w'"),
        (({}, state, [w["w"], w["w"]]), "params has 2 entries"),
        (({}, state, 5), "params is a int"),
        (({}, state, w["w"]), "params is a Tensor"),
        ((5, state, w), "grads is a int"),
        (([], state, w), "grads has 0 entries"),
        (({"w": torch.ones(5)}, state, w), r"grads\[0\] has shape"),
        (({"w": w["w"]}, state, w), "share memory"),
        (({}, state, {"w": torch.ones(5)}), r"anchors\[0\] has shape"),
        (({}, state, {"w": torch.ones(4).bfloat16()}), r"params\[0\] is bfloat16 without a remainder"),
        (({}, state._replace(step=2**32), w), "step is 4294967296"),
    ]
    for operands, match in cases:
        with pytest.raises(LlcFastError, match=match):
            functional.update(*operands, lr=1e-3, nbeta=2.0)
        assert torch.all(w["w"] == 1)


@pytest.mark.parametrize(("name", "match"), BACKENDS)
def test_backends(name, match):
    with pytest.raises(LlcFastError, match=match):
        SGLD([torch.ones(3)], nbeta=2.0, backend=name)
    with pytest.raises(LlcFastError, match=match):
        functional.init({"w": torch.ones(3)}, backend=name)
