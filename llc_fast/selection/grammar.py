"""How component names are written.

    component := union of terms, joined by " + "
    term      := "full" | "embed" | "pos_embed" | "unembed" | "norms" | "final_norm" | "lora"
               | part ["lora"] | parameter name | glob
    part      := layer | layer word | layer letter index
    layer     := "l" number                      l3
    word      := "attn" | "mlp" | "norms" | "router"
    letter    := "h" head | "g" group of heads that share a KV head | "e" expert | "n" neuron
    index     := number | number ":" number      l3h5, l3n0:64 (0 to 63)

`lora` after a part leaves only its adapters: `l3 lora`, `l3h5 lora`. Case and spaces are free: `L3 H5`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

JOIN = " + "
WORDS = ("full", "embed", "pos_embed", "unembed", "norms", "final_norm", "lora")
_PART = re.compile(
    r"l(\d+)(?:\s*([hgen])\s*(\d+)(?::(\d+))?|\s+(attn|mlp|norms|router))?(\s+lora)?", re.ASCII
)
# A glob over parts of one kind, so that `l*e*` is every expert and not "l0 router" as well.
GLOB = re.compile(r"l([\d*?![\]-]+)(?:([hgen])([\d*?![\]-]+)|\s(attn|mlp|norms|router))?(\slora)?")


@dataclass(frozen=True)
class Part:
    """A layer or a part of it. kind: "", a word or a letter; a letter has indices from `index` to `stop`."""

    layer: int
    kind: str = ""
    index: int = 0
    stop: int = 0
    lora: bool = False

    def __str__(self) -> str:
        tail = f" {self.kind}".rstrip()
        if len(self.kind) == 1:
            tail = f"{self.kind}{self.index}" + (f":{self.stop}" if self.stop != self.index + 1 else "")
        return f"l{self.layer}{tail}{' lora' if self.lora else ''}"


def parse(text: str) -> Part | None:
    """The part of a layer that a name such as `l3`, `L3 H5` or `l3 mlp` means, None for other names."""
    if (match := _PART.fullmatch(text.strip().lower())) is None:
        return None
    layer, letter, index, stop, word, lora = match.groups()
    first = int(index or 0)
    last = int(stop) if stop else first + 1
    return Part(int(layer), letter or word or "", first, last if letter else 0, bool(lora))


def natural(text: str) -> list[tuple[int, str]]:
    """Sort key that takes digits as numbers."""
    pieces = re.split(r"(\d+)", text, flags=re.ASCII)
    return [(int(piece), "") if i % 2 else (0, piece) for i, piece in enumerate(pieces)] + [(0, text)]


def tidy(glob: str) -> str:
    """A glob over components in lower case with the spaces that names have."""
    glob = " ".join(glob.lower().split())
    return re.sub(r"^(l\S*) ([hgen][\d*?\[])", r"\1\2", glob)
