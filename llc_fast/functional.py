"""The samplers as init and update, for code that has its own backward pass: gradients come in, state is explicit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from operator import is_
from typing import NamedTuple

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from .checks import as_list, check_noise, check_param, check_state
from .errors import ArgumentError, ArgumentTypeError, ComponentError
from .kept import refusal, start
from .masks import check as check_mask
from .masks import tiles as masks_to_tiles
from .plan import Plan
from .samplers import find, own_settings
from .scalars import Scalars, check_scalar, check_stream
from .selection.names import WRAPPERS
from .shard import held, prepare
from .types import Selection, Tile

Named = Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]
Values = Mapping[str, Tensor | None] | Sequence[Tensor | None]


class State(NamedTuple):
    """A chain between two steps; with the parameters themselves, all there is to know.

    step: the next update, 0 at first. seed, chain: what its noise is drawn from. names, tensor_ids: of the
    parameters that move. anchors: w0. remainders: int16 lower halves of bf16 parameters, fp32 masters of fp16 ones,
    else None. tiles: what is updated, None for everything. sampler: its name. buffers: its fp32 state of each
    parameter, None if it has none. masks: packed bits, where a mask is no few boxes. thermostat: SGNHT's friction,
    fp64 of shape (1,); friction: where it began. storage, noise: "split" or "sr", "gaussian" or "ih4". sums: whether
    steps leave sums. notes: where the storage asked for was refused, and why. rounded: the least noise, lr
    noise_level^2, for which "sr" was found harmless. plan: located operands, rebuilt where
    missing; not pickled.
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
    sampler: str = "sgld"
    buffers: tuple[Tensor | None, ...] | None = None
    masks: tuple[Tensor | None, ...] | None = None
    thermostat: Tensor | None = None
    friction: float | None = None
    storage: str = "split"
    noise: str = "gaussian"
    sums: bool = False
    notes: tuple[str, ...] = ()
    rounded: float | None = None
    plan: Plan | None = None

    def totals(self) -> Tensor:
        """The sums of the last step, fp64 (parameters, 24), columns `llc_fast.sums.NAMES`; needs sums=True."""
        if self.plan is None:
            raise ArgumentError("state has made no step yet: call update first")
        return self.plan.totals()


@lru_cache(maxsize=1 << 16)
def plain_name(name: str) -> str:
    """A parameter's name without the prefixes that torch.compile, FSDP and checkpointing add."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def init(
    named_params: Named,
    selection: Selection | None = None,
    *,
    sampler: str = "sgld",
    seed: int = 0,
    chain: int = 0,
    tensor_ids: Mapping[str, int] | None = None,
    masks: Mapping[str, Tensor] | None = None,
    state: str = "split",
    lr: float | None = None,
    noise_level: float = 1.0,
    friction: float | None = None,
    noise: str = "gaussian",
    sums: bool = False,
    backend: str = "auto",
) -> State:
    """The state of a new chain that starts at the given weights, which become its anchor.

    named_params: all of a model's parameters by name, as `model.named_parameters()` gives them: their sorted
    names count the noise unless `tensor_ids` or a selection says otherwise; for a model with PEFT adapters, as
    `llc_fast.selection.named_parameters` gives them. Those with requires_grad=False do
    not move unless none requires it (plain tensors). selection: from `llc_fast.select`, None for everything.
    masks: instead of a selection, booleans by name; parameters without one move as a whole. sampler: "sgld",
    "rmsprop_sgld", "sghmc" or "sgnht", which starts at `friction`. state: of bf16 parameters, "split" or "sr", which
    needs the lr (and noise_level) that steps will have, and falls back to split where it would heat the chain:
    `State.notes`. noise: "gaussian" or "ih4". sums: whether each step leaves `State.totals()`. seed, chain: unsigned
    64-bit. Raises ArgumentError, ArgumentTypeError, ComponentError.

    >>> w = torch.ones(4)
    >>> state = init({"w": w}, seed=1)
    >>> state = update({"w": torch.zeros(4)}, state, {"w": w}, lr=1e-3, nbeta=10.0, localization=1.0)
    >>> state.step
    1
    """
    seed, chain, _ = check_stream(seed=seed, chain=chain)
    method, state, noise = find(sampler), check_state(state), check_noise(noise)
    step_size = 0.0 if lr is None else check_scalar("lr", lr)
    noise_level = check_scalar("noise_level", noise_level)
    if state == "sr" and lr is None and method.name == "sgld":
        raise ArgumentTypeError("lr is None: state='sr' needs to know how much noise a step has, give its lr")
    if method.thermostat:
        friction = check_scalar("friction", friction)
    elif friction is not None:
        raise ArgumentError(
            f"friction is given to init, but {sampler} takes it at each update: give it there"
        )
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
    bits = None
    if masks is not None:
        if selection is not None:
            raise ArgumentError("selection and masks are both given: give one of them")
        tiles, bits = _masked(masks, params)
    with torch.no_grad():
        started = [start(name, p, method, state, step_size, noise_level) for name, p in params.items()]
    kept = [k for k, _ in started]
    device = next(iter(params.values())).device
    first = State(
        0,
        seed,
        chain,
        tuple(params),
        tuple(table[name] for name in params),
        tuple(k["anchor"] for k in kept),
        tuple(k.get("remainder") for k in kept),
        None if tiles is None else tuple(tiles),
        backend,
        sampler=method.name,
        buffers=None if method.buffer is None else tuple(k[method.buffer] for k in kept),
        masks=bits,
        thermostat=torch.full((1,), friction or 0.0, dtype=torch.float64, device=device)
        if method.thermostat
        else None,
        friction=friction,
        storage=state,
        noise=noise,
        sums=bool(sums),
        notes=tuple(note for _, note in started if note is not None),
        rounded=step_size * noise_level**2 if state == "sr" else None,
    )
    return first._replace(plan=_plan(first, list(params.values())))


def _masked(
    masks: Mapping[str, Tensor], params: Mapping[str, Tensor]
) -> tuple[list[Tile], tuple[Tensor | None, ...]]:
    if not isinstance(masks, Mapping):
        raise ArgumentTypeError(f"masks is a {type(masks).__name__}: give a boolean tensor by name")
    plain = {plain_name(name): mask for name, mask in masks.items()}
    unknown = sorted(plain.keys() - params.keys())
    if unknown:
        raise ArgumentError(f"masks has {unknown[0]!r}, which is none of the parameters that move: drop it")
    given = [
        None if name not in plain else check_mask(f"masks[{name!r}]", plain[name], p)
        for name, p in params.items()
    ]
    tiles, bits = masks_to_tiles(list(params.values()), given)
    return tiles, tuple(bits)


@_disable_dynamo  # compiled code breaks off here; `llc_fast.ops` are what it takes in
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
    alpha: float | None = None,
    eps: float | None = None,
    friction: float | None = None,
) -> State:
    """One step: writes `params` (and the state's tensors) in place, returns the next state.

    grads, params: by name (others are ignored), or one each in the order of `state.names`; a missing or None
    gradient is +0. Scalars as for `llc_fast.sgld_step_`; alpha (.99) and eps (.1) as for `rmsprop_sgld_step_`;
    friction (.1, or what `init` was given) as for `sghmc_step_`. Raises before anything is written.
    """
    if not isinstance(state, State):
        raise ArgumentTypeError(f"state is a {type(state).__name__}: give what init or update returned")
    scalars = Scalars.check(
        lr=lr,
        nbeta=nbeta,
        localization=localization,
        weight_decay=weight_decay,
        noise_level=noise_level,
        box=box,
        **own_settings(
            state.sampler,
            alpha=alpha,
            eps=eps,
            friction=state.friction if friction is None else friction,
        ),
    )
    check_stream(seed=state.seed, chain=state.chain, step=state.step)
    moving = _in_order("params", params, state.names)
    gradients = _in_order("grads", grads, state.names, optional=True)
    state = _cooled(state, scalars)
    plan = state.plan
    if plan is None or not _from(plan, state) or not all(map(is_, held(plan), moving)):
        plan = _plan(state, moving)  # type: ignore[arg-type]
    plan.step(gradients, scalars, state.step)
    return state._replace(step=state.step + 1, plan=plan)


def _from(plan: Plan, state: State) -> bool:
    """Whether a plan was made from what the state is now."""
    origin, now = plan.origin, _origin(state)
    if not isinstance(origin, tuple) or origin[0] != now[0] or len(origin[1]) != len(now[1]):
        return False
    return all(map(is_, origin[1], now[1]))


def _origin(state: State) -> tuple[tuple[object, ...], tuple[Tensor | None, ...]]:
    """What of a state its plan was made from: values, and which tensors."""
    tensors = (
        *state.anchors,
        *state.remainders,
        *(state.buffers or ()),
        *(state.masks or ()),
        state.thermostat,
    )
    counted = state.seed, state.chain, state.tensor_ids, state.tiles
    return (*counted, state.backend, state.sampler, state.storage, state.noise, state.sums), tensors


def _cooled(state: State, scalars: Scalars) -> State:
    """The state, where less noise than it was begun with would be heated by stochastic rounding, split instead."""
    noise = scalars.lr * scalars.noise_level**2
    if state.storage != "sr" or state.rounded is None or noise >= state.rounded:
        return state
    remainders, notes = list(state.remainders), list(state.notes)
    for i, (name, w0) in enumerate(zip(state.names, state.anchors, strict=True)):
        if w0.dtype == torch.bfloat16 and remainders[i] is None:
            note = refusal(name, w0, find(state.sampler), scalars.lr, scalars.noise_level)
            if note is not None:
                remainders[i] = torch.zeros_like(w0, dtype=torch.int16)
                notes.append(note)
    return state._replace(remainders=tuple(remainders), notes=tuple(notes), rounded=noise)


def _plan(state: State, params: Sequence[Tensor]) -> Plan:
    plan = prepare(
        params,
        state.anchors,
        sampler=state.sampler,
        remainders=state.remainders,
        buffers=state.buffers,
        masks=state.masks,
        state=state.storage,
        noise=state.noise,
        thermostat=state.thermostat,
        sums=state.sums,
        tensor_ids=state.tensor_ids,
        tiles=state.tiles,
        seed=state.seed,
        chain=state.chain,
        backend=state.backend,
    )
    plan.origin = _origin(state)
    return plan


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
        if type(values) is dict and len(values) == len(names) and all(map(values.__contains__, names)):
            return [values[n] for n in names]
        plain = {plain_name(key): value for key, value in values.items()}
        absent = [n for n in names if n not in plain]
        if absent and not optional:
            raise ArgumentError(f"{name} has no {absent[0]!r}: give every parameter of the state")
        if plain and len(absent) == len(names):
            raise ArgumentError(
                f"{name} has {next(iter(plain))!r}, but nothing of the state's {names[0]!r}, ..."
            )
        return [plain.get(n) for n in names]
    values = as_list(name, values)
    if len(values) != len(names):
        raise ArgumentError(f"{name} has {len(values)} entries, the state {len(names)}: give one each")
    return values
