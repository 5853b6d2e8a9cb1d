"""Losses of language models: against a plain formula and devinterp, for every kind of model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from llc_fast import lm
from llc_fast.lm import token_losses, vocabulary

VOCABULARY, LENGTH = 40, 9


class Plain(nn.Module):
    """A bigram model; `wrap` decides how it hands out its logits."""

    def __init__(self, wrap: str = "tensor") -> None:
        super().__init__()
        self.table, self.wrap = nn.Embedding(VOCABULARY, VOCABULARY), wrap

    def forward(self, ids: Tensor) -> Any:
        logits = self.table(ids)
        return logits if self.wrap == "tensor" else SimpleNamespace(logits=logits)


class Lens(Plain):
    """Wants to be asked for logits, as TransformerLens does."""

    def __init__(self) -> None:
        super().__init__()
        self.cfg = SimpleNamespace(n_heads=2, d_vocab=VOCABULARY)

    def forward(self, ids: Tensor, return_type: str = "loss") -> Any:
        return super().forward(ids) if return_type == "logits" else torch.zeros(())


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(VOCABULARY, (5, LENGTH), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def neox() -> nn.Module:
    transformers = pytest.importorskip(
        "transformers", reason="needs transformers: pip install 'llc-fast[cli]'"
    )
    torch.manual_seed(0)
    config = transformers.GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.5,
    )
    return transformers.GPTNeoXForCausalLM(config).eval()


def expected(logits: Tensor, ids: Tensor) -> Tensor:
    """-log p of every token after the first, one by one in float64."""
    p = logits.double().softmax(-1)
    return torch.stack(
        [
            torch.stack([-p[b, t - 1, ids[b, t]].log() for t in range(1, ids.shape[1])])
            for b in range(len(ids))
        ]
    )


@pytest.mark.parametrize("make", [Plain, lambda: Plain("output"), Lens])
def test_losses_are_those_of_the_formula(make: Any, ids: Tensor):
    model = make()
    losses = token_losses(model, ids)
    assert losses.dtype == torch.float32
    assert losses.shape == (5, LENGTH - 1)
    torch.testing.assert_close(losses.double(), expected(model.table(ids), ids), rtol=2e-6, atol=2e-6)


def test_losses_are_devinterps(neox: nn.Module, ids: Tensor):
    theirs = pytest.importorskip("devinterp.slt.lm_loss", reason="needs devinterp 2.0.1")
    torch.testing.assert_close(
        token_losses(neox, ids), theirs.compute_per_token_loss(neox, ids), rtol=1e-6, atol=1e-6
    )


def test_bf16_logits_are_summed_in_fp32(ids: Tensor):
    model = Plain().bfloat16()
    losses = token_losses(model, ids)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), expected(model.table(ids), ids), rtol=2e-6, atol=2e-6)
    assert token_losses(Plain().double(), ids).dtype == torch.float64


def test_pieces_give_the_same_losses_and_gradients(ids: Tensor, monkeypatch: pytest.MonkeyPatch):
    model = Plain()
    whole = token_losses(model, ids)
    (direct,) = torch.autograd.grad(whole.mean(), [model.table.weight])
    monkeypatch.setattr(lm, "CHUNK", 2 * LENGTH * VOCABULARY)
    calls = []
    own = lm._losses
    monkeypatch.setattr(lm, "_losses", lambda x, t: calls.append(len(x)) or own(x, t))
    pieces = token_losses(model, ids)
    assert calls == [2, 2, 1]
    assert torch.equal(pieces, whole)
    (recomputed,) = torch.autograd.grad(pieces.mean(), [model.table.weight])
    assert calls == [2, 2, 1, 1, 2, 2]
    torch.testing.assert_close(recomputed, direct, rtol=1e-6, atol=1e-8)


def test_many_models_at_once(ids: Tensor, monkeypatch: pytest.MonkeyPatch):
    """Under vmap, where pieces cannot be recomputed."""
    monkeypatch.setattr(lm, "CHUNK", 10)
    models = [Plain() for _ in range(3)]
    params, _ = stack_module_state(models)  # type: ignore[arg-type]

    class Bound(nn.Module):
        def __init__(self, own: dict[str, Tensor]) -> None:
            super().__init__()
            self.own = own

        def forward(self, ids: Tensor) -> Tensor:
            return functional_call(models[0], self.own, (ids,))

    losses = vmap(lambda own: token_losses(Bound(own), ids))(params)
    for mine, model in zip(losses, models, strict=True):
        torch.testing.assert_close(mine, token_losses(model, ids), rtol=1e-6, atol=1e-6)
    losses.mean().backward()
    assert params["table.weight"].grad is not None


def test_what_follows_the_last_token_does_not_count(ids: Tensor):
    model = Plain()
    ids[:, -1] = VOCABULARY - 1
    ids[:, :-1] %= VOCABULARY - 1
    (grad,) = torch.autograd.grad(token_losses(model, ids).sum(), [model.table.weight])
    assert not grad[VOCABULARY - 1].any()
    assert grad[ids[0, 0]].any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_give_losses_that_are_not(bad: float, ids: Tensor):
    model = Plain()
    with torch.no_grad():
        model.table.weight[ids[1, 3], 0] = bad
    losses = token_losses(model, ids)
    assert losses[1, 3].isnan()
    assert losses[ids[:, :-1] != ids[1, 3]].isfinite().all()


def test_a_vocabulary_may_be_masked(ids: Tensor):
    """-inf for tokens that never come is a probability of 0, and no death."""
    model, short = Plain(), ids % (VOCABULARY - 1)
    with torch.no_grad():
        model.table.weight[:, -1] = -torch.inf
    assert token_losses(model, short).isfinite().all()


def test_hugging_face_models_keep_no_cache(neox: nn.Module, ids: Tensor):
    seen: list[dict[str, Any]] = []
    neox.register_forward_pre_hook(lambda m, args, kwargs: seen.append(kwargs), with_kwargs=True)  # type: ignore[arg-type]
    token_losses(neox, ids)
    token_losses(torch.compile(neox, backend="eager"), ids)
    assert [call["use_cache"] for call in seen] == [False] * len(seen)
    assert len(seen) == 2


def test_logits_are_found_among_other_outputs(ids: Tensor):
    """A mixture of experts may put the loss of its router before the logits."""
    transformers = pytest.importorskip(
        "transformers", reason="needs transformers: pip install 'llc-fast[cli]'"
    )
    config = transformers.MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=16,
        num_local_experts=2,
        max_position_embeddings=32,
        output_router_logits=True,
    )
    model = transformers.MixtralForCausalLM(config).eval()
    torch.testing.assert_close(
        token_losses(model, ids).double(), expected(model(ids).logits, ids), rtol=1e-5, atol=1e-5
    )


def test_vocabulary(neox: nn.Module):
    assert vocabulary(neox) == VOCABULARY
    assert vocabulary(torch.compile(neox, backend="eager")) == VOCABULARY
    assert vocabulary(Lens()) == VOCABULARY
    assert vocabulary(Plain()) is None
