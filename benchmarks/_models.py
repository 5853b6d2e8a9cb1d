"""Language models with random weights, made from a configuration in code: nothing is downloaded.

`build` makes them where they are to be, in the dtype they are to have: billions of weights take seconds on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


@dataclass(frozen=True)
class Spec:
    """A model. family: transformers' model_type; settings: of its configuration; numel: its parameters."""

    title: str
    family: str
    numel: int
    settings: dict[str, Any]


def _gpt2(vocabulary: int, context: int, width: int, layers: int, heads: int) -> dict[str, Any]:
    size = {"vocab_size": vocabulary, "n_positions": context}
    special = {"bos_token_id": 0, "eos_token_id": 0}  # the usual ones are beyond a small vocabulary
    return size | {"n_embd": width, "n_layer": layers, "n_head": heads} | special | NO_DROPOUT


def _wide(vocabulary: int, context: int, width: int, inner: int, layers: int, heads: int) -> dict[str, Any]:
    size = {"vocab_size": vocabulary, "max_position_embeddings": context, "hidden_size": width}
    return size | {"intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads}


# Off, so that a chain in training mode and one in eval mode walk on the same loss.
NO_DROPOUT = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
MODELS = {
    "gpt2-tiny": Spec("GPT-2 29k", "gpt2", 28_544, _gpt2(64, 32, 32, 2, 4)),
    "gpt2-3m": Spec("GPT-2 3M", "gpt2", 2_788_992, _gpt2(5000, 256, 192, 4, 6)),
    "neox-20m": Spec("GPT-NeoX 20M", "gpt_neox", 20_084_736, _wide(12288, 512, 384, 1536, 6, 6)),
    "gpt2-124m": Spec("GPT-2 124M", "gpt2", 124_439_808, _gpt2(50257, 1024, 768, 12, 12)),
    "llama-tiny": Spec("Llama 29k", "llama", 29_344, _wide(64, 32, 32, 88, 2, 4)),
    "llama-1.5b": Spec("Llama 1.5B", "llama", 1_518_450_688, _wide(32000, 2048, 2048, 5632, 27, 16)),
    "llama-7b": Spec("Llama 7B", "llama", 6_738_415_616, _wide(32000, 2048, 4096, 11008, 32, 32)),
}
NAMES = tuple(MODELS)


def build(
    name: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
) -> nn.Module:
    """A model of `NAMES`, in eval mode, its weights as its family draws them at the start of training.

    Raises ModuleNotFoundError without transformers. Leaves PyTorch's random state as it was.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    spec, device = MODELS[name], torch.device(device)
    config = AutoConfig.for_model(spec.family, **spec.settings)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval()


def token_batches(
    name: str, count: int, size: int, length: int, device: torch.device | str = "cpu", seed: int = 0
) -> list[Tensor]:
    """Batches of random tokens for a model, each of shape (size, length)."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = MODELS[name].settings["vocab_size"]
    return list(torch.randint(vocabulary, (count, size, length), generator=generator).to(device))


def token_losses(model: Callable[..., Any], tokens: Tensor) -> Tensor:
    """Next-token cross-entropy, fp32 of shape (batch, length - 1): what both estimators take for a loss."""
    predicted = model(input_ids=tokens, use_cache=False).logits[:, :-1].float()
    losses = cross_entropy(predicted.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return losses.view(predicted.shape[:2])


def weight_bytes(model: nn.Module) -> int:
    return sum(p.nbytes for p in model.parameters())
