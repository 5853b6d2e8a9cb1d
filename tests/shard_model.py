"""A tiny decoder whose shards are uneven and empty, and its layouts over four ranks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCAB, WIDTH, HEADS, HEAD, HIDDEN, CONTEXT = 11, 10, 4, 3, 14, 6
BATCH = 8


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (
            nn.Linear(WIDTH, HEADS * HEAD, bias=i == 0) for i in range(3)
        )
        self.o_proj = nn.Linear(HEADS * HEAD, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            f(x).unflatten(-1, (-1, HEAD)).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj)
        )
        scores = (q @ k.transpose(-1, -2) / HEAD**0.5).masked_fill(
            torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1), float("-inf")
        )
        return self.o_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up_proj, self.down_proj = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.up_proj(x)))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(), MLP()
        self.input_layernorm, self.post_attention_layernorm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Tiny(nn.Module):
    """Two layers; the embedding and the head are one tensor, `scale` has fewer elements than there are ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type="tiny", num_attention_heads=HEADS, num_hidden_layers=2)
        self.embed_tokens = nn.Embedding(VOCAB, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)
        self.lm_head = nn.Linear(WIDTH, VOCAB, bias=False)
        self.lm_head.weight = self.embed_tokens.weight
        self.scale = nn.Parameter(torch.ones(3))
        self.unused = nn.Parameter(torch.ones(5, 3))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x)) * self.scale.prod()


def plain(dtype: torch.dtype = torch.float32) -> Tiny:
    """The model on one rank, always with the same weights."""
    torch.manual_seed(1)
    model = Tiny()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    return model.to(dtype)


def losses(model: nn.Module, tokens: Tensor) -> Tensor:
    """The loss of each place of each sequence."""
    logits = model(tokens[:, :-1])
    return F.cross_entropy(logits.float().transpose(1, 2), tokens[:, 1:], reduction="none")


def loss_fn(model: nn.Module, tokens: Tensor) -> Tensor:
    return losses(model, tokens).mean()


def batch(i: int) -> Tensor:
    """Random tokens, the same on every rank."""
    generator = torch.Generator().manual_seed(100 + i)
    return torch.randint(VOCAB, (BATCH, CONTEXT + 1), generator=generator)


def gradient(name: str, p: Tensor, step: int) -> Tensor | None:
    """A gradient from nowhere, the same on every rank; none for some parameters."""
    if name == "unused" or (step == 1 and name.endswith("o_proj.bias")):
        return None
    seed = step * 1000 + sum(map(ord, name))
    return torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)).to(p.dtype)


# Of the meshes: sizes and names of their dimensions. The rest: over which the data are split, weights sharded by
# FSDP (replicated, sharded), and by tensor parallelism.
LAYOUTS: dict[str, tuple[tuple[int, ...], tuple[str, ...], Any, Any]] = {
    "fsdp1": ((4, 1), ("copy", "dp"), ("dp",), None),
    "fsdp2": ((2, 2), ("copy", "dp"), ("dp",), None),
    "fsdp4": ((4,), ("dp",), ("dp",), None),
    "hsdp": ((2, 2), ("replicate", "shard"), ("replicate", "shard"), None),
    "tp2": ((2, 2), ("copy", "tp"), None, "tp"),
    "tp4": ((4,), ("tp",), None, "tp"),
    "fsdp2 tp2": ((2, 2), ("dp", "tp"), ("dp",), "tp"),
}


def _sharded(t: Tensor, mesh: Any, placements: Any) -> Tensor:
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(t, mesh, placements, src_data_rank=None)


def like(t: Tensor, p: Tensor) -> Tensor:
    """A full tensor, the same on every rank, in the layout of a parameter, by PyTorch's own means."""
    return _sharded(t, p.device_mesh, p.placements) if hasattr(p, "placements") else t


def meshes() -> dict[str, Any]:
    """The mesh of each layout; called by all ranks."""
    from torch.distributed.device_mesh import init_device_mesh

    return {
        layout: init_device_mesh("cpu", sizes, mesh_dim_names=names)
        for layout, (sizes, names, _, _) in LAYOUTS.items()
    }


def spread(
    layout: str, mesh: Any, dtype: torch.dtype = torch.float32, flat: bool = False, **fsdp: Any
) -> Tiny:
    """The model in a layout; flat: FSDP has one group of parameters; fsdp: its other arguments."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    _, _, dp, tp = LAYOUTS[layout]
    model = plain(dtype)
    if tp:
        plan: dict[str, Any] = {}
        for i in range(2):
            plan |= {f"layers.{i}.self_attn.{x}_proj": ColwiseParallel() for x in "qkv"}
            plan[f"layers.{i}.self_attn.o_proj"] = RowwiseParallel()
            plan[f"layers.{i}.mlp.up_proj"] = ColwiseParallel(use_local_output=False)
            plan[f"layers.{i}.mlp.down_proj"] = RowwiseParallel()
        plan["embed_tokens"] = RowwiseParallel(input_layouts=Replicate())
        plan["lm_head"] = ColwiseParallel(output_layouts=Replicate())
        parallelize_module(model, mesh[tp], plan, src_data_rank=None)
        model.lm_head.weight = model.embed_tokens.weight
        model.unused = nn.Parameter(_sharded(model.unused.detach(), mesh[tp], [Shard(1)]))
    if dp:
        over = mesh[dp[0]] if len(dp) == 1 else mesh[dp]
        for layer in [] if flat else model.layers:
            fully_shard(layer, mesh=over, **fsdp)
        fully_shard(model, mesh=over, **fsdp)
    return model


def part(layout: str, mesh: Any, tokens: Tensor) -> Tensor:
    """This rank's part of a batch."""
    _, _, dp, _ = LAYOUTS[layout]
    rank, count = 0, 1
    for name in dp or ():
        rank, count = rank * mesh[name].size() + mesh[name].get_local_rank(), count * mesh[name].size()
    return tokens[rank::count]
