"""Which components a model has, and what a glob matches among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TypeVar

from torch import nn

from ..errors import ArgumentTypeError, ComponentError, ModelError
from .anatomy import Anatomy
from .attention import heads
from .grammar import GLOB, JOIN, WORDS, natural, parse, tidy
from .mlp import experts, neurons
from .names import is_adapter

T = TypeVar("T")


def components(model: nn.Module) -> list[str]:
    """Every component name of this model: `full`, the embeddings, the norms, the adapters, the layers and
    their parts, the heads, the groups where several heads share a KV head, the experts, and the parameters.

    A part that cannot be told apart in this model is left out, and so are the neurons, which are many.
    """
    return names_of(Anatomy.of(model))


def names_of(model: Anatomy) -> list[str]:
    parameters = sorted(set(model.tree.smallest.values()), key=natural)
    return ["full", *_structured(model), *parameters]


def expand(model: nn.Module, pattern: str) -> list[str]:
    """The component names that a glob matches, in natural order (l0h2 before l0h10).

    A glob (`*`, `?`, `[...]`) is matched against the components other than `full`, upper and lower
    case alike; only where it matches none, against the parameter names: `l*h*` is every head and
    never `lm_head.weight`. A glob with the form of a part matches parts of its kind and nothing else: `l*e*`
    is every expert, `l0n*` every neuron of layer 0. Any other name comes back alone, in its canonical form. Raises
    ComponentError where nothing matches, ArgumentTypeError where the pattern is not a string.
    """
    if not isinstance(pattern, str):
        raise ArgumentTypeError(f"a pattern must be a string, got {type(pattern).__name__}")
    anatomy = Anatomy.of(model)
    found = terms(anatomy, pattern)
    return (
        matches(anatomy, found[0]) if len(found) == 1 and is_glob(anatomy, found[0]) else [JOIN.join(found)]
    )


def is_glob(model: Anatomy, text: str) -> bool:
    return model.tree.canonical(text) is None and any(sign in text for sign in "*?[")


def matches(model: Anatomy, pattern: str) -> list[str]:
    """`expand` for a glob."""
    if found := _matching(model, pattern):
        return found
    if (shape := GLOB.fullmatch(tidy(pattern))) and shape[2]:
        tell = {"h": heads, "g": heads, "e": experts, "n": neurons}[shape[2]]
        for i, layer in enumerate(model.layers):
            if fnmatchcase(str(i), shape[1]) and (shape[2] in "en" or model.attention(layer)):
                tell(model, layer)  # raises with the reason where they cannot be told apart
    elif found := [name for name in set(model.tree.smallest.values()) if fnmatchcase(name, pattern)]:
        return sorted(found, key=natural)
    raise ComponentError(f"{pattern!r} matches no component and no parameter; {_summary(model)}")


def terms(model: Anatomy, component: str | Sequence[str]) -> list[str]:
    """The members of a union in canonical form, duplicates merged, in natural order."""
    if isinstance(component, str):
        members = [component] if model.tree.canonical(component) else component.split(JOIN)
    elif isinstance(component, list | tuple) and all(isinstance(c, str) for c in component):
        members = [term for c in component for term in terms(model, c)]
    else:
        raise ArgumentTypeError(f"a component must be a string or a list of strings, got {component!r}")
    found = sorted({canonical_term(model, member) for member in members}, key=natural)
    if not found:
        raise ComponentError("an empty list selects nothing; name at least one component, or 'full'")
    if "full" in found and len(found) > 1:
        raise ComponentError(f"'full' cannot be combined with others, got {', '.join(map(repr, found))}")
    return found


def canonical_term(model: Anatomy, text: str) -> str:
    """One name as results store it. Raises ComponentError where it is not a name of this model."""
    text = text.strip()
    if (name := model.tree.canonical(text)) is not None:
        return name
    if is_glob(model, text):
        return tidy(text) if _matching(model, text) else text
    if part := parse(text):
        return str(part)
    if text.lower() in WORDS:
        return text.lower()
    names = names_of(model)
    near = get_close_matches(text, names, n=3) or get_close_matches(text.lower(), names, n=3)
    hint = f"near it: {', '.join(map(repr, near))}; " if near else ""
    raise ComponentError(f"unknown component {text!r}; {hint}{_summary(model)}")


def _matching(model: Anatomy, pattern: str) -> list[str]:
    """The components that a glob matches."""
    pattern = tidy(pattern)
    shape = GLOB.fullmatch(pattern)
    if shape is None or not any(shape.groups()[1:]):
        return [name for name in _structured(model) if fnmatchcase(name, pattern)]
    layer, letter, index, word, lora = shape.groups()
    names = _neurons(model, layer) if letter == "n" else _structured(model)
    parts = [part for name in names if (part := parse(name))]
    return [
        str(part)
        for part in parts
        if part.kind == (letter or word or "")
        and part.lora == bool(lora)
        and fnmatchcase(str(part.layer), layer)
        and (not letter or fnmatchcase(str(part.index), index))
    ]


def _neurons(model: Anatomy, layers: str) -> list[str]:
    found = []
    for i, layer in enumerate(model.layers):
        if fnmatchcase(str(i), layers) and (own := _or_none(lambda at: neurons(model, at), layer)):
            found += [f"l{i}n{n}" for n in range(own.count)]
    return found


def _structured(model: Anatomy) -> list[str]:
    found = [w for w in ("embed", "pos_embed", "unembed") if _or_none(model.embedding, w)]
    found += ["norms"] if model.norms() else []
    found += ["final_norm"] if _or_none(model.embedding, "final_norm") else []
    found += ["lora"] if any(map(is_adapter, model.tree.parameters)) else []
    for i, layer in enumerate(_or_none(lambda _: model.layers, "") or []):
        # Names, and the parameters that the first of them means.
        own = [([f"l{i}"], model.tree.inside(layer))]
        attn = _or_none(model.attention, layer)
        own.append(([f"l{i} attn"], model.tree.inside(attn) if attn else []))
        own.append(([f"l{i} mlp"], [n for path in model.mlp(layer) for n in model.tree.inside(path)]))
        own.append(([f"l{i} norms"], model.norms(layer)))
        own.append(([f"l{i} router"], [n for path in model.router(layer) for n in model.tree.inside(path)]))
        if its := _or_none(lambda at: heads(model, at), layer):
            own.append(([f"l{i}h{h}" for h in range(its.count)], [n for n, _ in its.head(0)]))
            groups = its.groups if its.groups < its.count else 0
            own.append(([f"l{i}g{g}" for g in range(groups)], [n for n, _ in its.group(0)]))
        if those := _or_none(lambda at: experts(model, at), layer):
            own.append(([f"l{i}e{e}" for e in range(those.count)], [n for n, _ in those.boxes(range(1))]))
        found += [name for names, parameters in own if parameters for name in names]
        found += [f"{name} lora" for names, ps in own if any(map(is_adapter, ps)) for name in names]
    return found


def _or_none(find: Callable[[str], T], what: str) -> T | None:
    """What can be told about this model, None where that is an error."""
    try:
        return find(what)
    except (ComponentError, ModelError):
        return None


def _summary(model: Anatomy) -> str:
    layers = _or_none(lambda _: model.layers, "") or []
    if not layers:
        return "this model has 'full' and its parameter names (no list of transformer layers was found)"
    return (
        f"this model has 'full', 'embed', 'unembed', 'norms', 'l0' to 'l{len(layers) - 1}', 'l0 attn', 'l0 mlp', "
        "heads 'l0h0', groups 'l0g0', experts 'l0e0', neurons 'l0n0', parameter names, and globs over these"
    )
