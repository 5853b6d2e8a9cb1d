"""Component names: which there are, how they are written, and what a glob matches."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from ..errors import ArgumentTypeError, ComponentError, ModelError
from . import families
from .attention import heads
from .names import Tree

JOIN = " + "
_LAYER = re.compile(r"l(\d+)(?:\s*([hg])\s*(\d+)|\s+(attn|mlp))?", re.ASCII)


@dataclass(frozen=True)
class Part:
    """A layer or a part of it. kind: "", "attn", "mlp", "h" (a head) or "g" (a group)."""

    layer: int
    kind: str = ""
    index: int = 0

    def __str__(self) -> str:
        tail = f"{self.kind}{self.index}" if self.kind in ("h", "g") else f" {self.kind}".rstrip()
        return f"l{self.layer}{tail}"


def parse(text: str) -> Part | None:
    """The part of a layer that a name such as `l3`, `L3 H5` or `l3 mlp` means, None for other names."""
    if (match := _LAYER.fullmatch(text.strip().lower())) is None:
        return None
    layer, letter, index, word = match.groups()
    return Part(int(layer), letter or word or "", int(index or 0))


def components(model: nn.Module) -> list[str]:
    """Every component name of this model: `full`, `embed`, `unembed`, the layers and their parts, the
    heads, the groups where several heads share a KV head, and the parameters.

    A part that cannot be told apart in this model is left out.
    """
    return names_of(Tree.of(model))


def names_of(tree: Tree) -> list[str]:
    parameters = sorted(set(tree.smallest.values()), key=natural)
    return ["full", *_structured(tree), *parameters]


def expand(model: nn.Module, pattern: str) -> list[str]:
    """The component names that a glob matches, in natural order (l0h2 before l0h10).

    A glob (`*`, `?`, `[...]`) is matched against the components other than `full`, upper and lower
    case alike; only where it matches none, against the parameter names: `l*h*` is every head and
    never `lm_head.weight`. Any other name comes back alone, in its canonical form. Raises
    ComponentError where nothing matches, ArgumentTypeError where the pattern is not a string.
    """
    if not isinstance(pattern, str):
        raise ArgumentTypeError(f"a pattern must be a string, got {type(pattern).__name__}")
    tree = Tree.of(model)
    found = terms(tree, pattern)
    return matches(tree, found[0]) if len(found) == 1 and is_glob(tree, found[0]) else [JOIN.join(found)]


def is_glob(tree: Tree, text: str) -> bool:
    return tree.canonical(text) is None and any(sign in text for sign in "*?[")


def matches(tree: Tree, pattern: str) -> list[str]:
    """`expand` for a glob."""
    if found := [name for name in _structured(tree) if fnmatchcase(name, _tidy(pattern))]:
        return found
    if found := [name for name in set(tree.smallest.values()) if fnmatchcase(name, pattern)]:
        return sorted(found, key=natural)
    if re.match(r"l.*[hg]", _tidy(pattern)):
        for layer in families.layers(tree):
            if families.attention(tree, layer):
                heads(tree, layer)  # raises with the reason where the heads cannot be told apart
    raise ComponentError(f"{pattern!r} matches no component and no parameter; {_summary(tree)}")


def terms(tree: Tree, component: str | Sequence[str]) -> list[str]:
    """The members of a union in canonical form, duplicates merged, in natural order."""
    if isinstance(component, str):
        members = [component] if tree.canonical(component) else component.split(JOIN)
    elif isinstance(component, list | tuple) and all(isinstance(c, str) for c in component):
        members = [term for c in component for term in terms(tree, c)]
    else:
        raise ArgumentTypeError(f"a component must be a string or a list of strings, got {component!r}")
    found = sorted({canonical_term(tree, member) for member in members}, key=natural)
    if not found:
        raise ComponentError("an empty list selects nothing; name at least one component, or 'full'")
    if "full" in found and len(found) > 1:
        raise ComponentError(f"'full' cannot be combined with others, got {', '.join(map(repr, found))}")
    return found


def canonical_term(tree: Tree, text: str) -> str:
    """One name as results store it. Raises ComponentError where it is not a name of this model."""
    text = text.strip()
    if (name := tree.canonical(text)) is not None:
        return name
    if is_glob(tree, text):
        return _tidy(text) if any(fnmatchcase(name, _tidy(text)) for name in _structured(tree)) else text
    if part := parse(text):
        return str(part)
    if text.lower() in ("full", "embed", "unembed"):
        return text.lower()
    names = names_of(tree)
    near = get_close_matches(text, names, n=3) or get_close_matches(text.lower(), names, n=3)
    hint = f"near it: {', '.join(map(repr, near))}; " if near else ""
    raise ComponentError(f"unknown component {text!r}; {hint}{_summary(tree)}")


def natural(text: str) -> list[tuple[int, str]]:
    """Sort key that takes digits as numbers."""
    pieces = re.split(r"(\d+)", text, flags=re.ASCII)
    return [(int(piece), "") if i % 2 else (0, piece) for i, piece in enumerate(pieces)] + [(0, text)]


def _tidy(glob: str) -> str:
    glob = " ".join(glob.lower().split())
    return re.sub(r"^(l\S*) ([hg][\d*?\[])", r"\1\2", glob)


def _structured(tree: Tree) -> list[str]:
    found = []
    try:
        layers = families.layers(tree)
    except ModelError:
        layers = []
    for which in ("embed", "unembed"):
        try:
            found += [which] if families.embedding(tree, which) else []
        except (ComponentError, ModelError):
            continue
    for i, layer in enumerate(layers):
        found.append(f"l{i}")
        found += [f"l{i} attn"] if _has_attention(tree, layer) else []
        found += [f"l{i} mlp"] if any(tree.inside(path) for path in families.mlp(tree, layer)) else []
        try:
            own = heads(tree, layer)
        except (ComponentError, ModelError):
            continue
        found += [f"l{i}h{h}" for h in range(own.count)]
        found += [f"l{i}g{g}" for g in range(own.groups) if own.groups < own.count]
    return found


def _has_attention(tree: Tree, layer: str) -> bool:
    try:
        return families.attention(tree, layer) is not None
    except ModelError:
        return False


def _summary(tree: Tree) -> str:
    layers = [name for name in _structured(tree) if (part := parse(name)) and not part.kind]
    if not layers:
        return "this model has 'full' and its parameter names (no list of transformer layers was found)"
    return (
        f"this model has 'full', 'embed', 'unembed', 'l0' to '{layers[-1]}', 'l0 attn', 'l0 mlp', "
        "heads 'l0h0', groups 'l0g0', parameter names, and globs over these"
    )
