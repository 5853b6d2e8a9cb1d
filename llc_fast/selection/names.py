"""Names of a model's modules and parameters, the same however the model is wrapped."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial

from torch import nn

from ..errors import ArgumentTypeError, ComponentError, ModelError

# torch.compile, FSDP1, activation checkpointing and TransformerLens' bridge put their module under these.
WRAPPERS = frozenset(
    {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_original_component"}
)
# PEFT's own modules put what they wrap under these.
_PEFT = ("base_model", "model", "base_layer")
_LORA = re.compile(r"(^|\.)lora_")


@dataclass(frozen=True)
class Tree:
    """A model's modules and parameters by canonical name.

    modules: innermost module by path, "" is the model itself. parameters: by every name, tied ones
    too, sorted by code point. names: the names that `model.named_parameters(remove_duplicate=False)`
    gives, and their canonical ones. smallest: the name under which a (tied) parameter is kept.
    """

    modules: Mapping[str, nn.Module]
    parameters: Mapping[str, nn.Parameter]
    names: Mapping[str, str]
    smallest: Mapping[str, str]

    @classmethod
    def of(cls, model: nn.Module) -> Tree:
        if not isinstance(model, nn.Module):
            raise ArgumentTypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        raw = dict(model.named_modules(remove_duplicate=False))
        # A wrapper comes before what it wraps, so the innermost module keeps the path.
        modules = {_strip(path, raw): module for path, module in raw.items()}
        names: dict[str, str] = {}
        found: dict[str, nn.Parameter] = {}
        # The bridge's own method gives names that are no paths of its modules.
        bridged = _library(model) == "transformer_lens"
        named = partial(nn.Module.named_parameters, model) if bridged else model.named_parameters
        for name, parameter in named(remove_duplicate=False):
            names[name] = clean = _strip(name, raw)
            if found.setdefault(clean, parameter) is not parameter:
                raise ModelError(f"two parameters are named {clean!r} without their wrappers; rename one")
        parameters = {name: found[name] for name in sorted(found)}
        first: dict[int, str] = {}
        smallest = {name: first.setdefault(id(p), name) for name, p in parameters.items()}
        if bridged:
            names |= {name: first[id(p)] for name, p in model.named_parameters() if id(p) in first}
        return cls(modules, parameters, names, smallest)

    def canonical(self, name: str) -> str | None:
        """The smallest canonical name of a parameter given under any of its names."""
        return self.smallest.get(self.names.get(name, name))

    def children(self, path: str) -> list[str]:
        """Paths of the modules one level down."""
        return [join(path, name) for name, _ in self.modules[path].named_children()]

    def below(self, path: str) -> Iterator[str]:
        """The path itself, then the paths of all modules under it, outer ones first."""
        yield path
        for child in self.children(path):
            yield from self.below(child)

    def inside(self, path: str) -> list[str]:
        """Names of the parameters of a module and of everything under it, tied ones as smallest."""
        prefix = path + "."
        return [self.smallest[name] for name in self.parameters if name.startswith(prefix) or name == path]

    def has(self, path: str) -> bool:
        """Whether a module or a parameter has this path."""
        return path in self.modules or path in self.parameters


def canonical_name(model: nn.Module, name: str) -> str:
    """The name under which a parameter is selected, counted and stored.

    name: any name of a parameter, with wrapper prefixes or without. Wrappers (torch.compile, FSDP,
    checkpointing; `module.` of DataParallel and DistributedDataParallel; `base_model.model.` and
    `base_layer.` of PEFT) are stripped, tied parameters go by their smallest name. Raises
    ComponentError where the model has no such parameter.
    """
    tree = Tree.of(model)
    if (found := tree.canonical(name)) is None:
        near = ", ".join(map(repr, get_close_matches(name, tree.parameters, n=3)))
        raise ComponentError(f"the model has no parameter {name!r}" + (f"; near it: {near}" if near else ""))
    return found


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Canonical name -> parameter, sorted by name; a tied parameter once, under its smallest name."""
    tree = Tree.of(model)
    return {name: p for name, p in tree.parameters.items() if tree.smallest[name] == name}


def parameter_table(model: nn.Module) -> dict[str, int]:
    """Canonical name -> tensor_id, for every name of every parameter, sorted by name.

    The id is the position of the name among all names, sorted by code point, from 0. A further name
    of a tied parameter takes a position too but maps to the id of the smallest, so that either name
    leads to the same noise.
    """
    return table(Tree.of(model))


def table(tree: Tree) -> dict[str, int]:
    position = {name: i for i, name in enumerate(tree.parameters)}
    return {name: position[tree.smallest[name]] for name in tree.parameters}


def join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to a LoRA adapter, by the names that PEFT gives those."""
    return _LORA.search(name) is not None


def _strip(name: str, modules: Mapping[str, nn.Module]) -> str:
    parts = name.split(".")
    kept = [part for i, part in enumerate(parts) if not _wraps(modules, parts[:i], *parts[i : i + 2])]
    return ".".join(kept)


def _wraps(modules: Mapping[str, nn.Module], parent: list[str], part: str, after: str = "") -> bool:
    if part in WRAPPERS:
        return True
    if part != "module" and part not in _PEFT:
        return False
    owner = modules.get(".".join(parent))
    if part == "module":
        return isinstance(owner, nn.DataParallel | nn.parallel.DistributedDataParallel)
    # An adapter around another one would share its names if both lost the path to the inner one.
    return _library(owner) == "peft" and not (part == "base_layer" and is_adapter(after))


def _library(module: nn.Module | None) -> str:
    """The package that a module's class is from, which thus need not be imported.

    FSDP2's `fully_shard` puts a class of torch's on top of it.
    """
    packages = (base.__module__.partition(".")[0] for base in type(module).__mro__)
    return next((name for name in packages if name != "torch"), "torch")
