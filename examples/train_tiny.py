"""Train a 2-layer GPT-NeoX on the standard library's code and prose, and save it as a Hugging Face model.

    python examples/train_tiny.py demo_out

writes demo_out/data/*.jsonl (the text), and demo_out/model (config.json, model.safetensors, tokenizer.json).
About one minute on two cores. The same seed, versions and thread count give the same weights.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

import stdlib_text
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from llc_fast import data
from llc_fast.models import sequence_losses

VOCABULARY, CONTEXT = 1024, 128
STEPS, BATCH, LR, SEED = 400, 32, 4e-3, 0
EOS = "<|endoftext|>"


def make_tokenizer(files: list[Path]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of the training text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (json.loads(line)["text"] for file in files for line in file.open(encoding="utf-8"))
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=EOS, bos_token=EOS, model_max_length=CONTEXT
    )


def sequences(name: str, file: Path, tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """All the sequences of a file, in random order."""
    source = data.Source(name, (file,))
    return data.make_pool(source, tokenizer, length=CONTEXT, max_sequences=10**6, seed=SEED).sequences


def make_model() -> GPTNeoXForCausalLM:
    torch.manual_seed(SEED)
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=VOCABULARY,
            hidden_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=384,
            max_position_embeddings=CONTEXT,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def train(model: GPTNeoXForCausalLM, sets: list[torch.Tensor]) -> None:
    """AdamW with warmup and cosine decay, on batches with as much of each set."""
    decay = [p for p in model.parameters() if p.ndim > 1]
    groups = [
        {"params": decay, "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim < 2]},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), weight_decay=0.0)
    share = BATCH // len(sets)
    model.train()
    start = time.perf_counter()
    for step in range(STEPS):
        rows = [torch.arange(step * share, (step + 1) * share) % len(s) for s in sets]
        batch = torch.cat([s[i] for s, i in zip(sets, rows, strict=True)])
        scale = min((step + 1) / 50, 0.5 * (1 + math.cos(math.pi * step / STEPS)))
        for group in optimizer.param_groups:
            group["lr"] = LR * scale
        loss = sequence_losses(model, batch).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == STEPS - 1:
            seconds = time.perf_counter() - start
            print(f"  step {step:4}/{STEPS}  loss {loss.item():.3f}  {seconds:5.1f} s", flush=True)
    model.eval()


@torch.no_grad()
def evaluate(model: GPTNeoXForCausalLM, tokens: torch.Tensor) -> float:
    """Mean loss in nats a token."""
    return torch.cat([sequence_losses(model, batch) for batch in tokens.split(64)]).mean().item()


def unigram(tokens: torch.Tensor, held_out: torch.Tensor) -> float:
    """Loss of token frequencies, the best that ignores context."""
    counts = torch.bincount(tokens.flatten(), minlength=VOCABULARY).double() + 1
    return -(counts / counts.sum()).log()[held_out[:, 1:]].mean().item()


def main(folder: Path) -> Path:
    """Make the text, the tokenizer and the model under `folder`; the model's directory."""
    print("writing the standard library's code and prose ...", flush=True)
    files = stdlib_text.write(folder / "data")
    tokenizer = make_tokenizer([files["code.train"], files["prose.train"]])
    tokens = {name: sequences(name, file, tokenizer) for name, file in files.items()}
    model = make_model()
    numel = sum(p.numel() for p in model.parameters())
    print(
        f"training a GPT-NeoX with {numel:,} parameters, {STEPS} steps of {BATCH} x {CONTEXT} tokens:",
        flush=True,
    )
    train(model, [tokens["code.train"], tokens["prose.train"]])
    print("loss in nats a token:     train  held out  held out, unigram")
    for name in ("code", "prose"):
        seen, held_out = tokens[f"{name}.train"], tokens[f"{name}.heldout"]
        losses = evaluate(model, seen[:256]), evaluate(model, held_out[:512]), unigram(seen, held_out)
        print(f"  {name:22} {losses[0]:6.3f}    {losses[1]:6.3f}             {losses[2]:6.3f}")
    logging.disable_progress_bar()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder / "model"


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo_out"))
