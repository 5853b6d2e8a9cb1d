"""What FSDP2 (`fully_shard`) would let go wrong without a word, told from the state that it keeps of its parameters."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from ..errors import ArgumentError, ArgumentTypeError, ModelError

_LOADED = "torch.distributed.fsdp._fully_shard._fsdp_state"
_FLAT = "whose parameters have no shape to count noise in: use fully_shard (FSDP2)"
# Attributes of gradients, of which weak references would keep model.to() from working.
_USED, _STALE = "_llc_fast_used", "_llc_fast_stale"


def reshard(model: nn.Module) -> None:
    """Give the parameters of FSDP2 modules back their sharded form; without effect on others.

    A forward pass of the root leaves it unsharded until the next backward pass. What a pass that an exception ended
    has left behind is dropped.
    """
    for module in fsdp_modules(model):
        state = module._get_fsdp_state()
        context = state._state_ctx
        broken = context.iter_forward_root is not None or context.post_backward_final_callback_queued
        if state._is_root and broken and hasattr(module, "reset_iter_state"):
            module.reset_iter_state()
        module.reshard()


def refuse_flat(model: nn.Module) -> None:
    """Raise for a model sharded with FSDP1."""
    for path, module in model.named_modules():
        kinds = {kind.__name__ for kind in type(module).__mro__}
        strategy = getattr(getattr(module, "sharding_strategy", None), "name", None)
        if "FullyShardedDataParallel" in kinds and strategy != "NO_SHARD":
            raise ModelError(f"module {path!r} is FSDP1, {_FLAT}")


def settle(model: nn.Module) -> None:
    """Let FSDP2 look at a model now, as it would at the first forward pass: whether parameters require gradients."""
    for module in fsdp_modules(model):
        state = module._get_fsdp_state()
        if state._is_root is None:
            state._lazy_init()


def fsdp_modules(model: nn.Module) -> list[Any]:
    """The modules that `fully_shard` was applied to."""
    if _LOADED not in sys.modules:
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _managed() -> Iterator[Any]:
    """FSDP2's records of all parameters that it manages in this process."""
    if _LOADED not in sys.modules:
        return
    from torch.distributed._composable_state import _module_state_mapping

    seen = set()
    for reference in list(_module_state_mapping.values()):
        state = reference()
        if state is None or id(state) in seen:
            continue
        seen.add(id(state))
        groups = getattr(state, "_fsdp_param_groups", None) or [getattr(state, "_fsdp_param_group", None)]
        for group in groups:
            yield from getattr(group, "fsdp_params", ())


def _name(record: Any) -> str:
    return str(record._param_fqn or record._module_info.param_name)


def refuse_unsharded(params: Sequence[Tensor]) -> None:
    """Raise for parameters that FSDP2 has unsharded for a pass: what is written to them is lost when it reshards."""
    wanted = {id(p): i for i, p in enumerate(params)}
    for i, p in enumerate(params):
        if getattr(p, "_is_flat_param", False):
            raise ArgumentTypeError(f"params[{i}] is a flat parameter of FSDP1, {_FLAT}")
    for record in _managed():
        for name in ("_unsharded_param", "_sharded_post_forward_param"):
            t = getattr(record, name, None)
            if t is not None and id(t) in wanted:
                raise ArgumentError(
                    f"params[{wanted[id(t)]}] is the unsharded form of {_name(record)!r}, whose updates are lost when "
                    "FSDP reshards it: call module.reshard() on each FSDP module, and then take its parameters"
                )


class Guard:
    """Watches parameters under FSDP2 from step to step.

    check: before a step; stepped: after it. In between, a gradient that a backward pass has added to although it
    still held the last step's is noted: `module.zero_grad()` after a forward pass clears the unsharded gradients,
    not the sharded ones.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        refuse_unsharded(params)
        wanted = {id(p): p for p in params}
        found = [(record, wanted.get(id(record.sharded_param))) for record in _managed()]
        self.records = [(record, p) for record, p in found if p is not None]
        self._handles: list[Any] = []

    def check(self) -> None:
        """Raise if a step now would be lost, or be made with a gradient that is not the last backward pass's."""
        for record, p in self.records:
            if record.sharded_param is not p:
                raise ArgumentError(
                    f"{_name(record)!r} was replaced in its module (model.to(), load_state_dict(assign=True)): make "
                    "the sampler again from the module's present parameters"
                )
            if record.sharded_state.name != "SHARDED":
                raise ArgumentError(
                    f"{_name(record)!r} is unsharded, and a forward pass would not see its update: call "
                    "module.reshard() on each FSDP module (or fully_shard with reshard_after_forward=True, and "
                    "set_reshard_after_backward(True)) before a step"
                )
            whole = getattr(record, "_unsharded_param", None)
            if getattr(record, "unsharded_accumulated_grad", None) is not None or (
                whole is not None and whole.grad is not None
            ):
                raise ArgumentError(
                    f"{_name(record)!r} has gradients that were not reduced over the ranks: make the last backward "
                    "pass before a step with set_requires_gradient_sync(True)"
                )
            if getattr(p.grad, _STALE, False):
                raise ArgumentError(
                    f"the gradient of {_name(record)!r} still held that of the last step when the backward pass "
                    "added to it: call zero_grad() before the forward pass, or that of the sampler "
                    "(model.zero_grad() after a forward pass does not reach FSDP's sharded gradients)"
                )

    def stepped(self) -> None:
        """Mark the gradients of this step."""
        if not self._handles:
            self._handles = [
                p.register_post_accumulate_grad_hook(_accumulated) for _, p in self.records if p.requires_grad
            ]
        for _, p in self.records:
            if p.grad is not None:
                setattr(p.grad, _USED, p.grad._version)

    def __del__(self) -> None:
        for handle in getattr(self, "_handles", ()):
            handle.remove()


def _accumulated(p: Tensor) -> None:
    """After a backward pass: note whether it has added to a gradient that a step has used."""
    used = getattr(p.grad, _USED, None)
    if p.grad is None or used is None:
        return
    # FSDP adds to the local tensor, which is not counted; what sets a gradient to zero is.
    if used == p.grad._version:
        setattr(p.grad, _STALE, True)
    else:
        for name in (_USED, _STALE):
            p.grad.__dict__.pop(name, None)
