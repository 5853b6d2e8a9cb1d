"""Two trained models on which two estimators are compared: a small transformer and a deep linear network.

Their data are rows of token ids, and their loss takes (model, ids) to one loss for each token or sample, so that
llc_fast and devinterp run the very same function on the very same rows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

LENGTH, ALPHABET, BATCH = 32, 128, 32


@dataclass(frozen=True)
class Problem:
    """A model at w0, its data, and the settings of the LLC that is asked for.

    ids: (samples, length), int64. component: of the model, for `llc_fast.select`.
    """

    name: str
    model: nn.Module
    loss_fn: Callable[[nn.Module, Tensor], Tensor]
    ids: Tensor
    component: str
    lr: float
    nbeta: float
    localization: float


def token_losses(model: nn.Module, ids: Tensor) -> Tensor:
    """Next-token cross-entropy, (batch, length - 1)."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)


def transformer(*, samples: int, steps: int) -> Problem:
    """A head of a GPT-NeoX with 2 layers, trained on single characters of Python's documentation strings."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=ALPHABET,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=192,
        max_position_embeddings=LENGTH,
        bos_token_id=0,
        eos_token_id=0,
    )
    model, text = GPTNeoXForCausalLM(config), characters()
    _train(model, text, steps)
    # the settings of Wang et al. 2024, arXiv 2410.02984, for heads of small transformers
    run = {"lr": 1e-3, "nbeta": 30.0, "localization": 200.0}
    return Problem("transformer, head l1h1", model, token_losses, text[:samples].clone(), "l1h1", **run)


def characters() -> Tensor:
    """The prose of Python's standard library in rows of LENGTH ASCII characters, shuffled."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
    import stdlib_text

    text = "\n".join(prose for kind, _, prose in stdlib_text.documents() if kind == "prose")
    ids = torch.frombuffer(bytearray(text.encode("ascii", "replace")), dtype=torch.uint8).long()
    rows = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]


def _train(model: nn.Module, rows: Tensor, steps: int) -> None:
    """AdamW, warmed up and decayed to 0, so that it ends near a minimum."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 4e-3 * min((step + 1) / 100, 1 - step / steps)
        batch = rows[torch.randint(len(rows), (BATCH,), generator=generator)]
        optimizer.zero_grad()
        token_losses(model, batch).mean().backward()
        optimizer.step()
    model.eval()


def deep_linear(
    *, samples: int, width: int = 10, layers: int = 3, rank: int = 3, noise: float = 1.0
) -> Problem:
    """A deep linear network at the weights that made its data, each layer of the same low rank."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))
    with torch.no_grad():
        for layer in model:
            left, right = torch.randn(2, width, rank, generator=generator)
            layer.weight.copy_(torch.linalg.qr(left).Q @ torch.linalg.qr(right).Q.T)
        x = torch.randn(samples, width, generator=generator)
        y = model(x) + noise * torch.randn(samples, width, generator=generator)

    def losses(model: nn.Module, ids: Tensor) -> Tensor:
        """The loss of each sample, whose number is its first token: (batch, 1)."""
        i = ids[:, 0]
        return (model(x[i]) - y[i]).square().sum(dim=1, keepdim=True) / 2

    ids = torch.arange(samples)[:, None].repeat(1, 2)
    name = f"deep linear {'-'.join([str(width)] * (layers + 1))}, rank {rank}"
    # chains relax in 2/(lr localization) = 33 steps, so that either estimator can settle in what it is given
    return Problem(name, model, losses, ids, "full", lr=2e-3, nbeta=30.0, localization=30.0)
