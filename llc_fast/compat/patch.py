"""Our `sample` in the place of devinterp 2.0.1's."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

from ..errors import BackendError

KNOWN = "2.0."


@dataclass
class _State:
    """The two functions, and how many patches hold ours in place."""

    held: int = 0
    pair: list[Callable[..., Any]] = field(default_factory=list)  # theirs, ours


_STATE = _State()


class Patch:
    """A patch in place until `undo`, or until the end of a with block."""

    def __init__(self) -> None:
        self.active = True

    def undo(self) -> None:
        """Put devinterp's own function back, unless another patch is still active. A second call does nothing."""
        if not self.active:
            return
        self.active = False
        _STATE.held -= 1
        if not _STATE.held:
            theirs, ours = _STATE.pair
            _replace(ours, theirs)
            _STATE.pair.clear()

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()


def patch_devinterp() -> Patch:
    """Let `devinterp.slt.sampling.sample` of devinterp 2.0.1 be `llc_fast.sample`.

    It is replaced wherever a loaded module has it by any name: in `devinterp.slt` (`llc`, `bif` and `susceptibilities`
    call it) and in modules of your own that imported it. Arguments and what it returns stay devinterp's. Only sampling
    changes: its optimizers, masks and analysis stay, so that `devinterp.slt.llc.compute_llc` still averages over
    burn-in (`llc_fast.compute_llc` does not). Safe to call twice. Raises BackendError where devinterp is missing, does
    not import, or is another version.

    with patch_devinterp():
        result = devinterp.slt.llc.llc(model, dataset, observables, lr=1e-3, n_beta=30.0)
    """
    if not _STATE.held:
        theirs = _theirs()
        ours = _ours(theirs)
        _STATE.pair[:] = [theirs, ours]
        _replace(theirs, ours)
    _STATE.held += 1
    return Patch()


def _theirs() -> Callable[..., Any]:
    """devinterp's `sample`, if it is the one that is known here."""
    try:
        found = version("devinterp")
    except PackageNotFoundError as e:
        raise BackendError(
            "devinterp is not installed: pip install 'devinterp==2.0.1', or call llc_fast.sample"
        ) from e
    if not found.startswith(KNOWN):
        older = found.partition(".")[0] in ("0", "1")
        instead = "llc_fast.estimate_learning_coeff" if older else "llc_fast.sample"
        raise BackendError(f"devinterp is {found}, the patch is for 2.0.1: install that, or call {instead}")
    try:
        sample: Callable[..., Any] = import_module("devinterp.slt.sampling").sample
    except Exception as e:  # of the many packages that it imports
        name = str(getattr(e, "name", None) or "")
        why = "it takes internals of zarr that zarr 3.2 moved: pip install 'zarr<3.2' (for Python 3.11), or "
        raise BackendError(
            f"devinterp {found} does not import ({type(e).__name__}: {e}); {why if name.startswith('zarr') else ''}"
            "call llc_fast.sample, which does not need devinterp"
        ) from e
    for module in ("llc", "bif", "susceptibilities"):
        import_module(f"devinterp.slt.{module}")
    return sample


def _ours(theirs: Callable[..., Any]) -> Callable[..., Any]:
    """Our function behind devinterp's signature."""
    from .. import dropin

    signature = inspect.signature(theirs)
    unknown = signature.parameters.keys() - inspect.signature(dropin.sample).parameters.keys()
    if unknown:
        raise BackendError(
            f"devinterp's sample has the arguments {', '.join(sorted(unknown))}, which are not known here: install "
            "devinterp==2.0.1"
        )

    @wraps(theirs)
    def sample(*args: Any, **kwargs: Any) -> Any:
        return dropin.sample(**signature.bind(*args, **kwargs).arguments)

    return sample


def _replace(old: object, new: object) -> None:
    """Wherever a module has the one, it gets the other."""
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType):
            space = vars(module)
            for name in [name for name, value in list(space.items()) if value is old]:
                space[name] = new
