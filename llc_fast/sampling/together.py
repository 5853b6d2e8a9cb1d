"""One estimate by many ranks: what they must agree on, and what they hold parts of."""

from __future__ import annotations

import hashlib

from torch import nn

from ..shard import Ranks, is_dtensor, refuse_flat


def ranks_of(model: nn.Module) -> Ranks | None:
    """The ranks that hold a model together, None if none of its parameters is a DTensor."""
    refuse_flat(model)
    params = list(model.parameters())
    return Ranks(params) if any(is_dtensor(p) for p in params) else None


def pooled(ranks: Ranks | None, digest: str | None) -> tuple[str | None, bool]:
    """The digest of the pool that ranks hold together, and whether this rank is the first with its part."""
    if ranks is None:
        return digest, True
    own = bytes(32) if digest is None else bytes.fromhex(digest)
    every = ranks.digests(own)
    first = every.index(own) == ranks.position
    if bytes(32) in every:
        return None, first
    return (digest if len(set(every)) == 1 else hashlib.sha256(b"".join(every)).hexdigest()), first
