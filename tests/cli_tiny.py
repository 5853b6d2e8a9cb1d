"""A tiny language model with its tokenizer and text, for tests of the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

CODE = "def add(a, b):\n    return a + b\n\nclass Point:\n    x = 0\n    y = 1\n"
PROSE = "The quick brown fox jumps over the lazy dog, and then it rests for a while in the sun.\n"
EOS = "<|endoftext|>"


def make(folder: Path, *, seed: int = 0, vocabulary: int = 300) -> Path:
    """A random GPT-NeoX of 2 layers with 2 heads, context 32, and a byte-level BPE: `folder` itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([CODE, PROSE], trainer)
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=EOS).save_pretrained(folder)
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    config = GPTNeoXConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
    )
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    torch.set_rng_state(state)
    return folder


def texts(folder: Path) -> dict[str, Path]:
    """`code.txt` with 40 copies, `prose.jsonl` with 40 documents."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"code": folder / "code.txt", "prose": folder / "prose.jsonl"}
    files["code"].write_text(CODE * 40, encoding="utf-8")
    files["prose"].write_text(
        "".join(json.dumps({"text": PROSE}) + "\n" for _ in range(40)), encoding="utf-8"
    )
    return files


def command(model: Path, out: Path, *data: str, **options: Any) -> list[str]:
    """Arguments of a small `estimate`; options replace its own, None removes one."""
    values: dict[str, Any] = {"components": "l0h0,l1 mlp", "lr": 1e-3, "nbeta": 10, "localization": 100}
    values |= {"chains": 2, "draws": 8, "burnin": 2, "batch-size": 4, "context": 16, "max-sequences": 16}
    values |= {name.replace("_", "-"): value for name, value in options.items()}
    arguments = ["estimate", str(model), "--out", str(out)]
    for each in data:
        arguments += ["--data", each]
    for name, value in values.items():
        arguments += [] if value is None else [f"--{name}", str(value)]
    return arguments


def leftovers(folder: Path) -> list[str]:
    """Hidden names that an unfinished write would have left."""
    return [p.name for p in folder.iterdir() if p.name.startswith(".llc-fast-")]
