"""A 2-layer attention-only transformer, trained on the text of Python's standard library."""

from __future__ import annotations

import hashlib
import sys
import tempfile
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from llc_fast.lm import token_losses
from llc_fast.selection import Family, register_family

BATCH = 32
LAYERS = 2


@dataclass(frozen=True)
class Size:
    """Of the model, its text (documents, None: all) and its training."""

    width: int
    heads: int
    vocabulary: int
    context: int
    documents: int | None
    steps: int


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        out: Tensor = self.o(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return out


class AttentionOnly(nn.Module):
    """Logits of token ids; no MLPs and no dropout."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embed = nn.Embedding(size.vocabulary, size.width)
        self.positions = nn.Embedding(size.context, size.width)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"norm": nn.LayerNorm(size.width), "attn": Attention(size.width, size.heads)})
            for _ in range(LAYERS)
        )
        self.norm = nn.LayerNorm(size.width)
        self.unembed = nn.Linear(size.width, size.vocabulary, bias=False)
        for embedding in (self.embed, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)
        register_family(
            "AttentionOnly",
            Family(
                layers="layers",
                attn="attn",
                **{name: f"attn.{name}" for name in "qkvo"},
                heads=size.heads,
                embed="embed",
                pos_embed="positions",
                unembed="unembed",
                final_norm="norm",
            ),
        )

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.positions.weight[: ids.shape[1]]
        for layer in self.layers:
            x = x + layer["attn"](layer["norm"](x))
        logits: Tensor = self.unembed(self.norm(x))
        return logits


@dataclass(frozen=True)
class Trained:
    """loss: of the last training batches, in nats a token. rows: (sequences, context), shuffled."""

    model: AttentionOnly
    rows: Tensor
    loss: float


def trained(size: Size) -> Trained:
    """The model and its text; from the temporary folder where this code has made them before."""
    made = repr((asdict(size), torch.__version__, sys.version)).encode() + Path(__file__).read_bytes()
    file = Path(tempfile.gettempdir(), "llc_fast_published") / f"{hashlib.sha256(made).hexdigest()[:16]}.pt"
    torch.manual_seed(0)
    model = AttentionOnly(size)
    if file.is_file():
        found = torch.load(file, weights_only=True)
        model.load_state_dict(found["model"])
        return Trained(model.eval(), found["rows"], found["loss"])
    rows = text(size)
    loss = train(model, rows, size.steps)
    file.parent.mkdir(exist_ok=True)
    torch.save({"model": model.state_dict(), "rows": rows, "loss": loss}, file)
    return Trained(model, rows, loss)


def text(size: Size) -> Tensor:
    """Rows of byte-level BPE tokens of the standard library's code and prose."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
    import stdlib_text

    texts = [document for _, _, document in islice(stdlib_text.documents(), size.documents)]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size.vocabulary,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    ids = torch.tensor([i for part in bpe.encode_batch(texts) for i in (0, *part.ids)])
    rows = ids[: len(ids) // size.context * size.context].view(-1, size.context)
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]


def train(model: nn.Module, rows: Tensor, steps: int) -> float:
    """AdamW on each row once or more, decayed to 0; the mean loss of the last tenth of the steps."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99))
    losses = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * min((step + 1) / 100, 1 - step / steps)
        batch = rows[torch.arange(step * BATCH, (step + 1) * BATCH) % len(rows)]
        loss = token_losses(model, batch).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    last = losses[-max(1, steps // 10) :]
    return sum(last) / len(last)
