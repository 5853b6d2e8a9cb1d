"""A model's layers and their parts, by its family's entry or, without one, by usual names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, TypeVar

from torch import nn

from ..errors import ComponentError, LlcFastError, ModelError
from . import families, guess, recipe
from .families import Family
from .names import Tree, join

_LAYER_COUNT = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
# A tower beside the language model, or the encoder beside its decoder.
_ASIDE = re.compile(r"vision|visual|image|audio|encoder|tower")
_NORM = re.compile(r"norm|^ln($|_|\d)|_ln$", re.IGNORECASE)
_ASK = {"embed": "get_input_embeddings", "unembed": "get_output_embeddings"}
T = TypeVar("T")


class Anatomy:
    """Where one model keeps its parts. Paths are those of its tree, canonical and without wrappers."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self._found: dict[tuple[object, str], Any] = {}

    @classmethod
    def of(cls, model: nn.Module) -> Anatomy:
        return cls(Tree.of(model))

    def config(self, path: str = "") -> Any:
        """The config of the module at a path, else of the language model, else None."""
        found = (_text(self.tree.modules[owner]) for owner in (path, ""))
        return next((config for config in found if config is not None), None)

    @cached_property
    def names(self) -> list[str]:
        """What an entry for this model may be called: its class, or the model_type of it or of one inside."""
        root = type(self.tree.modules[""])
        classes = [kind.__name__ for kind in root.__mro__[: root.__mro__.index(nn.Module)]]
        kinds = [getattr(_text(module), "model_type", None) for module in self.tree.modules.values()]
        # A class goes first: TransformerLens' bridge gives the config of what it wraps as its own.
        return list(dict.fromkeys([*classes, *(kind for kind in kinds if isinstance(kind, str) and kind)]))

    @property
    def name(self) -> str:
        """What a new entry for this model is best called."""
        kind = getattr(self.config(), "model_type", None)
        return kind if isinstance(kind, str) and kind else type(self.tree.modules[""]).__name__

    @cached_property
    def entry(self) -> Family | None:
        """The entry for this model, None where there is none."""
        return families.find(self.names)

    @cached_property
    def family(self) -> Family:
        """The entry for this model, or what its modules' names suggest."""
        return self.entry or guess.family(self.tree, self.layers)

    @cached_property
    def layers(self) -> list[str]:
        """Paths of the decoder layers, in order; empty where the model has no such list.

        Raises ModelError where several lists of layers could be meant.
        """
        ends = self.entry.layers.split() if self.entry else []
        count = number(_LAYER_COUNT, self.config())
        lists = {
            path: children
            for path, module in self.tree.modules.items()
            if (_ends(path, ends) if ends else isinstance(module, nn.ModuleList))
            and (children := self.tree.children(path))
            and (ends or len(children) == count or any(map(self._attentions, children)))
        }
        outer = [path for path in lists if not any(path.startswith(f"{other}.") for other in lists)]
        for better in (
            [path for path in outer if any(map(self._attentions, lists[path]))],
            [path for path in outer if not _ASIDE.search(path)],
            [path for path in outer if len(lists[path]) == count],
        ):
            # Each sieve counts only where it leaves something: BERT's only list is called an encoder.
            outer = [path for path in outer if path in better] or outer
        if len(outer) > 1:
            found = ", ".join(outer)
            reason = f"the model has several lists of layers ({found}); select by parameter names"
            raise ModelError(f"{reason}. Or: {recipe.write(self.tree, self.name, lists[outer[0]])}")
        return lists[outer[0]] if outer else []

    def present(self, layer: str, field: str) -> list[str]:
        """Paths of those modules and parameters of a field of the entry that a layer has."""
        names = getattr(self.family, field).split()
        return [path for name in names if self.tree.has(path := join(layer, name))]

    def attention(self, layer: str) -> str | None:
        """Path of the self-attention of a layer, None where it has none.

        Raises ModelError where it has several.
        """
        found = self._attentions(layer)
        if len(found) > 1:
            modules = ", ".join(found)
            reason = f"{layer} has several attention modules ({modules}); select by parameter names"
            raise ModelError(reason) if self.entry else self.unknown(reason)
        return found[0] if found else None

    def mlp(self, layer: str) -> list[str]:
        """Paths of the modules that make up the MLP (or the mixture of experts) of a layer."""
        return self.present(layer, "mlp")

    def router(self, layer: str) -> list[str]:
        """Paths of what chooses between the experts of a layer, none where it has no experts."""
        return self.present(layer, "router") if self.present(layer, "experts") else []

    def _attentions(self, layer: str) -> list[str]:
        if self.entry is None:  # the family is guessed from the layers, which are found by this
            return guess.attentions(self.tree, layer)
        return [path for name in self.entry.attn.split() if self.tree.has(path := join(layer, name))]

    def embedding(self, which: str) -> list[str]:
        """Parameter names of `embed`, `pos_embed`, `unembed` or `final_norm`.

        Raises ComponentError where the model has none.
        """
        if own := getattr(self.entry, which, ""):
            found = self._outside(own)
        else:
            found = self._asked(which) or self._outside(guess.OUTSIDE[which])
        if not found:
            what = {"embed": "embedding", "unembed": "unembedding", "pos_embed": "position embedding"}
            kind = type(self.tree.modules[""]).__name__
            raise ComponentError(
                f"no {what.get(which, 'final norm')} was found in this {kind}; name its parameter"
            )
        return found

    def _asked(self, which: str) -> list[str]:
        try:
            module = getattr(self.tree.modules[""], _ASK[which])()
        except (AttributeError, KeyError, NotImplementedError):
            return []
        ids = {id(p) for p in module.parameters()} if isinstance(module, nn.Module) else set()
        return [n for n, p in self.tree.parameters.items() if id(p) in ids and self.tree.smallest[n] == n]

    def _outside(self, ends: str) -> list[str]:
        """Parameters of the module or parameter outside of the layers that the first fitting name means."""
        if not self.layers:
            return []
        stack = self.layers[0].rpartition(".")[0]
        owner = stack.rpartition(".")[0]
        paths = [p for p in (*self.tree.modules, *self.tree.parameters) if not p.startswith(f"{stack}.")]
        for end in ends.split():
            # The language model's own, before one of a tower beside it.
            mine = sorted(
                (p for p in paths if _ends(p, [end])), key=lambda p: (not p.startswith(owner), len(p))
            )
            if mine and (found := self.tree.inside(mine[0])):
                return found
        return []

    def norms(self, path: str = "") -> list[str]:
        """Names of the parameters of the norms inside of a module, told by their class or their name."""
        found = []
        for name in self.tree.inside(path) if path else set(self.tree.smallest.values()):
            owner = name.rpartition(".")[0]
            words = (owner.rpartition(".")[2], type(self.tree.modules.get(owner)).__name__)
            found += [name] if any(_NORM.search(word) for word in words) else []
        return sorted(found)

    def once(self, find: Callable[[Anatomy, str], T], layer: str) -> T:
        """What `find` finds in a layer, looked for once: a glob over neurons asks thousands of times."""
        if (find, layer) not in self._found:
            self._found[find, layer] = find(self, layer)
        found: T = self._found[find, layer]
        return found

    def unknown(self, reason: str, kind: type[LlcFastError] = ModelError) -> LlcFastError:
        """An error that shows how to write an entry for this model."""
        config = self.config(self.layers[0]) if self.layers else self.config()
        return kind(f"{reason}. {recipe.write(self.tree, self.name, self.layers, config)}")


def number(names: Iterable[str], *sources: Any) -> int | None:
    """The first integer that one of the sources, in their order, has under one of the names."""
    for source in sources:
        for name in names:
            value = getattr(source, name, None)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    return None


def _text(module: nn.Module) -> Any:
    """A module's config, that of its language model where there are several."""
    config = getattr(module, "config", None) or getattr(module, "cfg", None)
    return getattr(config, "text_config", None) or config


def _ends(path: str, ends: list[str]) -> bool:
    return any(f".{path}".endswith(f".{end}") for end in ends)
