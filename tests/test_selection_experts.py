"""Experts and routers: in one parameter for all experts, and in a list of modules."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from test_selection_families import IDS, LAYER, built, llama, masks_of, moved
from test_selection_lens import hooked
from torch import Tensor, nn

from llc_fast.errors import ComponentError, ModelError
from llc_fast.selection import components, expand, select

transformers = pytest.importorskip("transformers")

COUNT, TOP, WIDE, NARROW = 4, 2, 24, 12


class Expert(nn.Module):
    def __init__(self, gate: str, up: str, down: str) -> None:
        super().__init__()
        self.order = gate, up, down
        for name in (gate, up):
            self.add_module(name, nn.Linear(WIDE, NARROW, bias=False))
        self.add_module(down, nn.Linear(NARROW, WIDE, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        gate, up, down = (getattr(self, name) for name in self.order)
        return down(torch.tanh(gate(x)) * up(x))


class Listed(nn.Module):
    """A mixture of experts as transformers 4 has it, by the names of Mixtral or of Qwen."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDE, COUNT, bias=False)
        self.experts = nn.ModuleList(Expert(*names) for _ in range(COUNT))

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.gate(x).softmax(-1).topk(TOP)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            share = (weights * (chosen == i)).sum(-1, keepdim=True)
            out = out + torch.where(share > 0, share * expert(x), 0)
        return out


def listed(place: str, *names: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        torch.manual_seed(0)
        kind = "Mixtral" if place == "block_sparse_moe" else "Qwen3Moe"
        model = llama(kind, 4, 2, 6).build()
        for layer in model.model.layers:
            del layer.mlp
            layer.add_module(place, Listed(*names))
            layer.__dict__["mlp"] = getattr(layer, place)  # transformers 5 calls it by this name
        return model.double().eval()

    return build


def hooked_moe() -> nn.Module:
    torch.manual_seed(0)
    model = hooked(num_experts=COUNT, experts_per_token=TOP, gated_mlp=True).double().eval()
    for p in model.parameters():
        if p.ndim > 1:  # a norm's bias would send every token to the same experts
            nn.init.normal_(p, std=0.3)
    return model


# Model, path of the experts' module, path of the router's weight, and experts' parameters by their names.
FUSED = {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"}
QWEN = {"gate_proj", "up_proj", "down_proj"}
CASES = {
    "mixtral": (lambda: built("mixtral"), "model.layers.1.mlp", "gate", FUSED),
    "qwen2_moe": (lambda: built("qwen2_moe"), "model.layers.1.mlp", "gate", FUSED),
    "qwen3_moe": (lambda: built("qwen3_moe"), "model.layers.1.mlp", "gate", FUSED),
    "listed_mixtral": (
        listed("block_sparse_moe", "w1", "w3", "w2"), "model.layers.1.block_sparse_moe", "gate",
        {f"block_sparse_moe.experts.{{}}.{w}.weight" for w in ("w1", "w2", "w3")},
    ),
    "listed_qwen": (
        listed("mlp", "gate_proj", "up_proj", "down_proj"), "model.layers.1.mlp", "gate",
        {f"mlp.experts.{{}}.{w}.weight" for w in QWEN},
    ),
    "hooked": (
        hooked_moe, "blocks.1.mlp", "W_gate",
        {f"mlp.experts.{{}}.W_{w}.weight" for w in ("in", "gate", "out")},
    ),
}  # fmt: skip


@pytest.fixture(params=CASES, scope="module")
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, str, str, set[str]]:
    build, *rest = CASES[request.param]
    return build(), *rest


def passed(model: nn.Module, path: str) -> tuple[Tensor, Tensor]:
    """What goes into the mixture of experts, and what comes out, one row a token."""
    seen: list[Tensor] = []
    handle = model.get_submodule(path).register_forward_hook(lambda _, a, out: seen.extend((a[0], out)))
    with torch.no_grad():
        model(IDS)
    handle.remove()
    return seen[0].flatten(0, 1), seen[1].flatten(0, 1)


def test_an_experts_weights_move_the_tokens_routed_to_it_and_no_other(case):
    model, path, router, _ = case
    x, before = passed(model, path)
    gate = model.get_submodule(f"{path}.{router}").weight
    chosen = (x @ gate.T).topk(TOP).indices
    some = 0
    for expert in range(COUNT):
        with moved(model, masks_of(model, f"l{LAYER}e{expert}")):
            after = passed(model, path)[1]
        routed = (chosen == expert).any(-1)
        assert torch.equal((after != before).any(-1), routed)
        assert ((after - before).abs().amax(-1)[routed] > 1e-6).all()
        some += 0 < int(routed.sum()) < len(routed)
    assert some >= 2


def test_experts_and_router_make_up_the_mlp(case):
    model, path, router, names = case
    layer = path.rpartition(".")[0]
    one, every = select(model, f"l{LAYER}e2"), select(model, f"l{LAYER}e*")
    assert set(one.boxes) == {f"{layer}.{name.format(2)}" for name in names}
    assert every.numel == COUNT * one.numel  # disjoint
    assert all(every.covers(name) for name in every.boxes)
    assert list(select(model, f"l{LAYER} router").boxes) == [f"{path}.{router}.weight"]
    left = select(model, f"l{LAYER} mlp").boxes.keys() - every.boxes.keys()
    assert {name for name in left if "shared" not in name} == {f"{path}.{router}.weight"}
    assert select(model, f"l{LAYER}e1:3").boxes == select(model, [f"l{LAYER}e1", f"l{LAYER}e2"]).boxes


def test_names_of_experts(case):
    model, *_ = case
    names = [name for name in components(model) if name.startswith("l0")]
    assert names[:5] == ["l0", "l0 attn", "l0 mlp", "l0 norms", "l0 router"]
    assert names[-COUNT:] == [f"l0e{e}" for e in range(COUNT)]
    assert expand(model, "l*e*") == [f"l{i}e{e}" for i in range(2) for e in range(COUNT)]
    assert expand(model, "L1 E[02]") == ["l1e0", "l1e2"]
    assert expand(model, "l* router") == ["l0 router", "l1 router"]
    assert select(model, "L1 E 3") == select(model, "l1e3")
    with pytest.raises(ComponentError, match=r"expert 4 is out of range, .* experts 0 to 3"):
        select(model, "l1e4")
    with pytest.raises(ComponentError, match="has experts, whose neurons have no names"):
        select(model, "l1n0")
    with pytest.raises(ComponentError, match="has experts, whose neurons have no names"):
        expand(model, "l*n*")


def test_layers_without_experts():
    model = llama("Qwen2Moe", 4, 2, 6, num_experts=4, moe_intermediate_size=12, mlp_only_layers=[0]).build()
    assert expand(model, "l*e*") == [f"l1e{e}" for e in range(4)]
    assert len(expand(model, "l*n*")) == 20
    assert expand(model, "l* router") == ["l1 router"]
    for component in ("l0e0", "l0 router", "l0e*"):
        with pytest.raises(ComponentError, match=r"no experts|no such part"):
            select(model, component)
    with pytest.raises(ComponentError, match="no experts"):
        select(built("llama"), "l0e0")


def test_experts_in_an_unknown_form():
    model = llama("Mixtral", 4, 2, 6, num_local_experts=4).build()
    experts = model.model.layers[0].mlp.experts
    experts.down_proj = nn.Parameter(experts.down_proj[:3])
    with pytest.raises(ModelError, match=r"no list of experts.* \(3, 24, 20\)"):
        select(model, "l0e0")
    assert select(model, "l0 mlp").numel > 0
