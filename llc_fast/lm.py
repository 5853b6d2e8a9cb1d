"""Losses of causal language models, one a token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from torch.utils.checkpoint import checkpoint

CHUNK = 2**24  # logits per piece of the cross-entropy: 64 MiB in fp32
_WRAPPED = ("_orig_mod", "_fsdp_wrapped_module", "module")  # torch.compile, FSDP1, DDP
_NOWHERE = -100  # a target that cross_entropy skips


def token_losses(model: nn.Module, input_ids: Tensor) -> Tensor:
    """Next-token cross-entropy in nats, fp32 (fp64 of a float64 model) of shape (batch, length - 1).

    model: a Hugging Face causal LM, one of TransformerLens, or a module that returns logits of shape (batch, length,
    vocabulary), by themselves or as `.logits`. input_ids: (batch, length), on the model's device; every token counts,
    also padding. Logits that are not finite give losses that are not finite. A large vocabulary costs one copy of the
    logits in fp32 at most: pieces of it are recomputed for the gradient.
    """
    logits = token_logits(model, input_ids)
    targets = pad(input_ids[..., 1:], (0, 1), value=_NOWHERE)  # moved there, the logits need no copy
    # A transform of torch.func cannot see into checkpoint.
    if logits.numel() <= CHUNK or torch._C._are_functorch_transforms_active():
        return _losses(logits, targets)[..., :-1]
    rows = max(1, CHUNK // logits[0].numel())
    pieces = zip(logits.split(rows), targets.split(rows), strict=True)
    return torch.cat([checkpoint(_losses, x, t, use_reentrant=False) for x, t in pieces])[..., :-1]


def token_logits(model: nn.Module, input_ids: Tensor) -> Tensor:
    """The logits of a causal LM, without a cache of keys and values."""
    inner = _unwrapped(model)
    if is_lens(inner):
        out = model(input_ids, return_type="logits")
    elif _is_hugging_face(inner):
        out = model(input_ids, use_cache=False, return_dict=True)  # of a tuple the first may be another loss
    else:
        out = model(input_ids)
    logits: Tensor = getattr(out, "logits", out)
    return logits


def vocabulary(model: nn.Module) -> int | None:
    """How many tokens a model has embeddings for, None where it does not say."""
    inner = _unwrapped(model)
    if is_lens(inner):
        size = getattr(inner.cfg, "d_vocab", None)
        return size if isinstance(size, int) and size > 0 else None
    try:
        weight = inner.get_input_embeddings().weight
    except (AttributeError, NotImplementedError):
        return None
    return int(weight.shape[0]) if isinstance(weight, Tensor) and weight.dim() == 2 else None


def is_lens(model: nn.Module) -> bool:
    """Whether it is a model of TransformerLens, or made like one."""
    return hasattr(model, "cfg") and hasattr(model.cfg, "n_heads")


def _is_hugging_face(model: nn.Module) -> bool:
    kinds = {(c.__module__.partition(".")[0], c.__name__) for c in type(model).__mro__}
    return not kinds.isdisjoint({("transformers", "PreTrainedModel"), ("peft", "PeftModel")})


def _unwrapped(model: nn.Module) -> Any:
    while (inner := next((m for m in map(model._modules.get, _WRAPPED) if m is not None), None)) is not None:
        model = inner
    return model


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    """At every position; what follows the last is not known, and not counted."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    each = cross_entropy(wide.flatten(0, -2), targets.flatten(), reduction="none", ignore_index=_NOWHERE)
    return each.view(targets.shape)
