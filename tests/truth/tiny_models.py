"""Tiny models of three families, briefly trained, for what is run on both samplers. No dropout: modes do not matter."""

from __future__ import annotations

import torch
from datasets import Dataset
from torch import Tensor, nn

ALPHABET, LENGTH, SEQUENCES = 24, 10, 64


def model(family: str) -> nn.Module:
    """gpt_neox, qwen2 (two heads share keys and values) or llama, at random."""
    import transformers

    torch.manual_seed(0)
    common = {
        "vocab_size": ALPHABET,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 32,
        "max_position_embeddings": 16,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    if family == "gpt_neox":
        made: nn.Module = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**common))
    elif family == "qwen2":
        made = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**common, num_key_value_heads=2))
    else:
        made = transformers.LlamaForCausalLM(transformers.LlamaConfig(**common))
    return made


def data(seed: int = 0) -> Tensor:
    """Sequences in which a token is followed by one of three."""
    g = torch.Generator().manual_seed(seed)
    rows = [torch.randint(ALPHABET, (SEQUENCES,), generator=g)]
    for _ in range(LENGTH - 1):
        rows.append((3 * rows[-1] + torch.randint(3, (SEQUENCES,), generator=g)) % ALPHABET)
    return torch.stack(rows, dim=1)


def dataset(ids: Tensor) -> Dataset:
    return Dataset.from_dict({"input_ids": ids.tolist()}).with_format("torch")


def trained(family: str, ids: Tensor, steps: int) -> nn.Module:
    """On the very sequences that are sampled on, towards a minimum of their loss."""
    m = model(family)
    optimizer = torch.optim.Adam(m.parameters(), lr=1e-2)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
        optimizer.zero_grad()
        m(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    return m
