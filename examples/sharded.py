"""A local learning coefficient of a model that is sharded with FSDP2, as a whole and of one head.

    torchrun --nproc-per-node 2 examples/sharded.py
    python examples/sharded.py                         # the same on one process, without FSDP: the same numbers

A number after it is how many draws a chain makes (80).

On GPUs (one a process) or on CPUs. Each process holds its part of every weight and is given its part of every batch;
the noise of a weight does not depend on who holds it, so the chains are the same ones, to rounding.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from llc_fast import estimate_llc

VOCAB, WIDTH, HEADS, CONTEXT = 17, 32, 4, 24
BATCH, BATCHES = 64, 10
DRAWS = int(sys.argv[1]) if len(sys.argv) > 1 else 80
SETTINGS = {"lr": 1e-3, "nbeta": 30.0, "localization": 300.0, "num_chains": 4, "num_draws": DRAWS}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            f(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj)
        )
        out: Tensor = self.o_proj(
            F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2)
        )
        return out


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.self_attn = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), Attention()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Model(nn.Module):
    """A decoder of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCAB, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.norm, self.lm_head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCAB, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.lm_head(self.norm(x))
        return logits


def sequences(count: int) -> Tensor:
    """Each number is the sum of the two before it, modulo a prime; a tenth of them are noise."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(VOCAB, (count, CONTEXT), generator=generator)
    wrong = torch.rand(x.shape, generator=generator) < 0.1
    for i in range(2, CONTEXT):
        x[:, i] = torch.where(wrong[:, i], x[:, i], (x[:, i - 1] + x[:, i - 2]) % VOCAB)
    return x


def losses(model: nn.Module, tokens: Tensor) -> Tensor:
    """The loss of every sequence and place."""
    logits = model(tokens)
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")


def train(model: nn.Module, batches: list[Tensor]) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(200):
        optimizer.zero_grad()
        losses(model, batches[step % len(batches)]).mean().backward()
        optimizer.step()


def main() -> None:
    together = "RANK" in os.environ  # started by torchrun
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    rank, ranks, mesh = 0, 1, None
    if together:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        rank, ranks = dist.get_rank(), dist.get_world_size()
        mesh = init_device_mesh(device.type, (ranks,))

    torch.manual_seed(0)  # all processes make the same weights
    model = Model().to(device)
    if together:
        for layer in model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    pool = sequences(BATCH * BATCHES).split(BATCH)
    mine = [batch[rank::ranks].to(device) for batch in pool]
    train(model, mine)

    for component in ("full", "l1h0"):
        # Every process calls it, with its part of each batch, and gets the same result.
        result: Any = estimate_llc(
            model, losses, mine, component=component, num_burnin_steps=20, seed=1, **SETTINGS
        )
        if rank == 0:
            print(f"{component} on {ranks} process{'es' * (ranks > 1)}:")
            print(result, flush=True)
    if together:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
