"""How to write the entry of an unknown family: an example in the model's own names, to copy and check."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from . import guess
from .names import Tree

_AFFIXES = re.compile(r"proj(ection)?|linear|lin|layer|weight|to|[w_]")
_ROLES = {"q": "q", "query": "q", "k": "k", "key": "k", "v": "v", "value": "v"} | dict.fromkeys(
    ("o", "out", "output"), "o"
)
_OPEN = "..."
_LINES = (
    ("layers",),
    ("attn",),
    ("q", "k", "v"),
    ("qkv", "layout"),
    ("o",),
    ("heads",),
    ("mlp",),
    ("up", "down"),
    ("embed", "unembed"),
)
_NOTES = {
    "qkv": "layout: 'grouped' or 'stacked'; or q=, k= and v=",
    "q": "or qkv= and layout=",
    "heads": "how many query heads, or the name of the config's attribute that says so",
}


def write(tree: Tree, name: str, layers: list[str], config: Any = None) -> str:
    """The text of the remedy. name: what the entry is registered under. layers: their paths, or none."""
    layer = layers[0] if layers else _numbered(tree)
    entry = _entry(tree, layer, config)
    lines = []
    for fields in _LINES:
        given = [f"{field}={entry[field]}" for field in fields if field in entry]
        note = f"  # {_NOTES[fields[0]]}" if fields[0] in _NOTES else ""
        lines += [f"    {', '.join(given)},{note}"] if given else []
    text = "\n".join(["Family(", *lines, ")"])
    inside = [n for n in tree.parameters if layer and n.startswith(f"{layer}.")] or list(tree.parameters)
    start = f"{layer}." if layer else ""
    shapes = ", ".join(f"{n.removeprefix(start)} {tuple(tree.parameters[n].shape)}" for n in inside[:24])
    more = f", and {len(inside) - 24} more" if len(inside) > 24 else ""
    return (
        "Say where the model keeps its parts: fill in every ..., check the rest, leave out what it does not "
        "have (docs/selection.md explains the fields). Then select again:\n\n"
        "from llc_fast.selection import Family, register_family\n\n"
        f'register_family("{name}", {text})\n\n'
        f"Parameters {'of ' + layer if layer else 'of the model'}: {shapes}{more}"
    )


def _entry(tree: Tree, layer: str, config: Any) -> dict[str, str]:
    """Field -> Python source of its value."""
    guessed = guess.family(tree, [layer] if layer in tree.modules else [])
    found = {field: getattr(guessed, field) for field in ("attn", "q", "k", "v", "o", "mlp", "up", "down")}
    matrices = _matrices(tree, layer)
    tops = list(dict.fromkeys(path.partition(".")[0] for path in matrices))
    several = [top for top in tops if sum(path.startswith(f"{top}.") for path in matrices) > 1]
    attn = found["attn"] or next((t for t in several if re.search("att|mix|head", t)), "")
    attn = attn or next((t for t in several if t != found["mlp"]), "")
    mlp = found["mlp"] or next((t for t in several if t != attn), "")
    found |= {"attn": attn, "mlp": mlp}
    if not found["q"]:
        found |= _roles({p: weight for p, weight in matrices.items() if p.startswith(f"{attn}.")})
    if not found["up"]:
        found |= _neurons({p: weight.shape for p, weight in matrices.items() if p.startswith(f"{mlp}.")})
    out = {"layers": _quoted(layer.rpartition(".")[0]) if layer else _OPEN}
    wanted = ("qkv", "layout", "o") if found.get("qkv") else ("q", "k", "v", "o")
    out |= {field: _quoted(value) if (value := found.get(field)) else _OPEN for field in ("attn", *wanted)}
    out |= {field: _quoted(v) if (v := found[field]) else _OPEN for field in ("mlp", "up", "down")}
    owners = (tree.modules.get(f"{layer}.{attn}"), config)
    if not any(isinstance(getattr(owner, name, None), int) for owner in owners for name in guess.HEADS):
        out["heads"] = _OPEN
    if not hasattr(tree.modules[""], "get_input_embeddings"):
        outside = [n for n in tree.parameters if not layer or not n.startswith(layer.rpartition(".")[0])]
        names = [n.removesuffix(".weight") for n in outside if tree.parameters[n].ndim == 2]
        for field, hint in (("embed", r"^(?!.*(unemb|pos)).*(emb|tok|wte)"), ("unembed", r"head|unemb|out")):
            name = next((n for n in names if re.search(hint, n, re.IGNORECASE)), "")
            out |= {field: _quoted(name)} if name else {}
    return out


def _roles(matrices: dict[str, Tensor]) -> dict[str, str]:
    """Roles by the letter in a projection's name; two without such letters are one for q, k, v, and the output."""
    found: dict[str, str] = {}
    for path in matrices:
        role = _ROLES.get(_AFFIXES.sub("", path.rpartition(".")[2].lower()))
        found |= {role: path} if role and role not in found else {}
    rest = [path for path in matrices if path not in found.values()]
    if set("qkv") <= set(found) and len(rest) == 1:
        return {"o": rest[0]} | found
    if len(matrices) == 2:
        qkv = max(matrices, key=lambda path: matrices[path].numel())
        return {"qkv": qkv, "o": next(path for path in matrices if path != qkv)}
    return found


def _neurons(shapes: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """The way into the neurons and the way out, by their shapes."""
    once = [path for path, shape in shapes.items() if list(shapes.values()).count(shape) == 1]
    if len(shapes) not in (2, 3) or not once:
        return {}
    return {"up": " ".join(path for path in shapes if path != once[-1]), "down": once[-1]}


def _matrices(tree: Tree, layer: str) -> dict[str, Tensor]:
    """Projections of a layer by their names relative to it, in the order in which the model registers them."""
    start = f"{layer}."
    names = [n for n in dict.fromkeys(tree.names.values()) if layer and n.startswith(start)]
    found = {n.removeprefix(start).removesuffix(".weight"): tree.parameters[n] for n in names}
    return {name: weight for name, weight in found.items() if weight.ndim > 1}


def _quoted(text: str) -> str:
    return f'"{text}"'


def _numbered(tree: Tree) -> str:
    """The first module of the longest numbered list, whatever class the list has; "" where there is none."""
    count: dict[str, set[str]] = {}
    for name in tree.parameters:
        if match := re.search(r"^(.*?)\.(\d+)\.", name):
            count.setdefault(match[1], set()).add(match[2])
    best = max(count, key=lambda path: len(count[path]), default="")
    return f"{best}.{min(count[best], key=int)}" if best else ""
