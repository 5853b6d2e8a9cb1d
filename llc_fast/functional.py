"""SGLD as init and update, for code that has its own backward pass: gradients come in, state is explicit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import ArgumentError, ArgumentTypeError, ComponentError
from .plan import Plan, as_list, check_param
from .scalars import Scalars, check_stream
from .selection.names import WRAPPERS
from .types import Selection, Tile

Named = Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]
Values = Mapping[str, Tensor | None] | Sequence[Tensor | None]


class State(NamedTuple):
    """A chain between two steps; with the parameters themselves, all there is to know.

    step: the next update, 0 at first. seed, chain: what its noise is drawn from. names, tensor_ids: of the
    parameters that move. anchors: w0. remainders: int16 lower halves of bf16 parameters, else None.
    tiles: what is updated, None for everything. plan: located operands, rebuilt where missing; not pickled.
    """

    step: int
    seed: int
    chain: int
    names: tuple[str, ...]
    tensor_ids: tuple[int, ...]
    anchors: tuple[Tensor, ...]
    remainders: tuple[Tensor | None, ...]
    tiles: tuple[Tile, ...] | None
    backend: str
    plan: Plan | None = None


def plain_name(name: str) -> str:
    """A parameter's name without the prefixes that torch.compile, FSDP and checkpointing add."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def init(
    named_params: Named,
    selection: Selection | None = None,
    *,
    seed: int = 0,
    chain: int = 0,
    tensor_ids: Mapping[str, int] | None = None,
    backend: str = "auto",
) -> State:
    """The state of a new chain that starts at the given weights, which become its anchor.

    named_params: all of a model's parameters by name, as `model.named_parameters()` gives them: their sorted
    names count the noise unless `tensor_ids` or a selection says otherwise. Those with requires_grad=False do
    not move unless none requires it (plain tensors). selection: from `llc_fast.select`, None for everything.
    seed, chain: unsigned 64-bit. Raises ArgumentError, ArgumentTypeError, ComponentError.

    >>> w = torch.ones(4)
    >>> state = init({"w": w}, seed=1)
    >>> state = update({"w": torch.zeros(4)}, state, {"w": w}, lr=1e-3, nbeta=10.0, localization=1.0)
    >>> state.step
    1
    """
    seed, chain, _ = check_stream(seed=seed, chain=chain)
    params, counted = _named(named_params)
    if not isinstance(selection, Selection | None):
        raise ArgumentTypeError(
            f"selection is a {type(selection).__name__}: give what llc_fast.select returned"
        )
    if not isinstance(tensor_ids, Mapping | None):
        raise ArgumentTypeError(f"tensor_ids is a {type(tensor_ids).__name__}: give a number by name")
    for name, p in params.items():
        check_param(repr(name), p)
    table = dict(selection.tensor_ids) if selection is not None else None
    if tensor_ids is not None:
        table = dict(tensor_ids)
    if table is None:
        table = counted
    selected = () if selection is None else selection.boxes
    unknown = sorted(name for name in (*params, *selected) if name not in table)
    if unknown:
        raise ArgumentError(f"tensor_ids has no entry for {unknown[0]!r}: give the table of all parameters")
    if any(p.requires_grad for p in params.values()):
        params = {name: p for name, p in params.items() if p.requires_grad}
    tiles: list[Tile] | None = None
    if selection is not None:
        by_id = {table[name]: name for name in sorted(params, reverse=True)}
        chosen = {by_id[table[n]]: boxes for n, boxes in selection.boxes.items() if table[n] in by_id}
        if not chosen:
            raise ComponentError(
                f"{selection.component!r} selects none of the given parameters that require a gradient: "
                "unfreeze them, or choose another component"
            )
        params = {name: params[name] for name in sorted(chosen)}
        for n, shape in selection.shapes.items():
            here = params.get(by_id.get(table[n], ""))
            if here is not None and tuple(here.shape) != tuple(shape):
                raise ArgumentError(
                    f"selection is of a model whose {n!r} has shape {tuple(shape)}, here it is "
                    f"{tuple(here.shape)}: select from this model"
                )
        tiles = [Tile.of(i, box) for i, name in enumerate(params) for box in chosen[name]]
    with torch.no_grad():
        anchors = tuple(p.detach().clone(memory_format=torch.contiguous_format) for p in params.values())
        remainders = tuple(
            torch.zeros(p.shape, dtype=torch.int16, device=p.device) if p.dtype == torch.bfloat16 else None
            for p in params.values()
        )
    ids = tuple(table[name] for name in params)
    state = State(
        0,
        seed,
        chain,
        tuple(params),
        ids,
        anchors,
        remainders,
        None if tiles is None else tuple(tiles),
        backend,
    )
    return state._replace(plan=_plan(state, list(params.values())))


def update(
    grads: Values,
    state: State,
    params: Mapping[str, Tensor] | Sequence[Tensor],
    *,
    lr: float,
    nbeta: float,
    localization: float = 0.0,
    weight_decay: float = 0.0,
    noise_level: float = 1.0,
    box: float | None = None,
) -> State:
    """One SGLD step: writes `params` (and the state's remainders) in place, returns the next state.

    grads, params: by name (others are ignored), or one each in the order of `state.names`; a missing or None
    gradient is +0. Scalars as for `llc_fast.sgld_step_`. Raises before anything is written.
    """
    scalars = Scalars.check(
        lr=lr,
        nbeta=nbeta,
        localization=localization,
        weight_decay=weight_decay,
        noise_level=noise_level,
        box=box,
    )
    if not isinstance(state, State):
        raise ArgumentTypeError(f"state is a {type(state).__name__}: give what init or update returned")
    check_stream(seed=state.seed, chain=state.chain, step=state.step)
    moving = _in_order("params", params, state.names)
    gradients = _in_order("grads", grads, state.names, optional=True)
    plan = state.plan
    if plan is None or any(a is not b for a, b in zip(plan.params, moving, strict=True)):
        plan = _plan(state, moving)  # type: ignore[arg-type]
    plan.step(gradients, scalars, state.step)
    return state._replace(step=state.step + 1, plan=plan)


def _plan(state: State, params: Sequence[Tensor]) -> Plan:
    return Plan(
        params,
        state.anchors,
        remainders=state.remainders,
        tensor_ids=state.tensor_ids,
        tiles=state.tiles,
        seed=state.seed,
        chain=state.chain,
        backend=state.backend,
    )


def _named(named_params: Named) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Name -> tensor, wrapper prefixes stripped, one name a tensor; name -> tensor_id, for every name."""
    pairs = named_params.items() if isinstance(named_params, Mapping) else named_params
    if not isinstance(pairs, Iterable):
        raise ArgumentTypeError(
            f"named_params is a {type(pairs).__name__}: give what model.named_parameters() returns"
        )
    params: dict[str, Tensor] = {}
    seen: dict[int, str] = {}
    for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
            raise ArgumentTypeError("named_params must give (name, tensor) pairs, as named_parameters() does")
        name, p = plain_name(pair[0]), pair[1]
        if not isinstance(p, Tensor):
            raise ArgumentTypeError(f"named_params[{name!r}] is a {type(p).__name__}: give a tensor")
        if name in params:
            raise ArgumentError(f"named_params has {name!r} twice: give each parameter once")
        params[name] = p
    if not params:
        raise ArgumentError("named_params is empty: give at least one parameter")
    table = {name: i for i, name in enumerate(sorted(params))}
    for name in table:  # tied weights count under their smallest name
        if seen.setdefault(id(params[name]), name) != name:
            del params[name]
    return params, table


def _in_order(
    name: str, values: Values, names: tuple[str, ...], *, optional: bool = False
) -> list[Tensor | None]:
    if isinstance(values, Mapping):
        plain = {plain_name(key): value for key, value in values.items()}
        absent = [n for n in names if n not in plain]
        if absent and not optional:
            raise ArgumentError(f"{name} has no {absent[0]!r}: give every parameter of the state")
        return [plain.get(n) for n in names]
    values = as_list(name, values)
    if len(values) != len(names):
        raise ArgumentError(f"{name} has {len(values)} entries, the state {len(names)}: give one each")
    return values
