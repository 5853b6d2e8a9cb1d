"""Which weights a restriction selects, as text."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from .errors import ArgumentError, ArgumentTypeError

_CYAN, _YELLOW, _PLAIN = "\033[36m", "\033[33m", "\033[0m"
_WIDTH = 24  # of a bar


def preview_weight_restriction(
    model: nn.Module, masks: Mapping[str, Tensor | None], *, plain: bool = False
) -> None:
    """Print the parameters of a restriction, grouped by module, with the selected share of each.

    masks: of `create_param_masks`: parameter -> boolean mask, None for all of it. plain: the names alone, sorted.
    """
    if not isinstance(masks, Mapping):
        raise ArgumentTypeError(f"masks is a {type(masks).__name__}: give what create_param_masks returns")
    if plain:
        for name in sorted(masks):
            print(name)
        return
    groups: dict[str, list[str]] = {}
    for name, mask in masks.items():
        module, _, leaf = name.rpartition(".")
        groups.setdefault(module, []).append(f"{leaf:35} {_share(model, name, mask)}")
    for module in sorted(groups):
        if module:
            print(f"\n{_CYAN}{module}{_PLAIN}")
        *above, last = groups[module]
        rows = [("  ", "├─", row) for row in above] + [("  ", "└─", last)]
        for indent, branch, row in rows if module else [("", "", row) for row in groups[module]]:
            print(f"{indent}{_CYAN}{branch}{_PLAIN} {row}")


def _share(model: nn.Module, name: str, mask: Tensor | None) -> str:
    """A bar, the percentage, and the numbers of elements."""
    try:
        parameter = model.get_parameter(name)
    except AttributeError as e:
        raise ArgumentError(f"masks has {name!r}, which is no parameter of the model") from e
    if mask is not None and mask.shape != parameter.shape:
        raise ArgumentError(
            f"masks[{name!r}] has shape {tuple(mask.shape)}, its parameter {tuple(parameter.shape)}: make them equal"
        )
    total = parameter.numel()
    selected = total if mask is None else int(mask.count_nonzero())
    percent = 100 * (selected / total) if total else 0.0
    full = int(percent / 100 * _WIDTH)
    bar = "▰" * full + "▱" * (_WIDTH - full)
    return f"{_YELLOW}{bar}{_PLAIN}  {_YELLOW}{percent:5.1f}%{_PLAIN}  ({selected:,} of {total:,})"
