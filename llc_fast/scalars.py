"""The numbers of a step: checked, computed in float64, rounded once to fp32 for every backend alike."""

from __future__ import annotations

import math
import numbers
import struct
from dataclasses import dataclass
from functools import cached_property

from .errors import ArgumentError, ArgumentTypeError

WEIGHT_DECAY, LOCALIZATION, NOISE, BOX = 1, 2, 4, 8  # terms of a step, as kernels take them
_STEP, _REST = struct.Struct("<I"), struct.Struct("<12I12x")
_SMALLEST_NORMAL = 2.0**-126
MAX_STEP = 2**32 - 1
SCALARS = 64  # bytes of the kernels' struct, whose first word is the step number


def check_scalar(name: str, value: object, *, minimum: float = 0.0) -> float:
    """`value` as a finite float >= minimum, or an error that names the argument."""
    if isinstance(value, (bool, str, bytes)) or value is None:
        raise ArgumentTypeError(f"{name} is {value!r}: give a number")
    try:
        number = float(value)  # type: ignore[arg-type]
    except OverflowError as e:
        raise ArgumentError(f"{name} is too large for a float: give a finite number") from e
    except (TypeError, ValueError, RuntimeError) as e:
        raise ArgumentTypeError(f"{name} is a {type(value).__name__}: give a number") from e
    if not math.isfinite(number):
        raise ArgumentError(f"{name} is {number}: give a finite number")
    if number < minimum:
        raise ArgumentError(f"{name} is {number}: give a number >= {minimum:g}")
    return number


def check_integer(name: str, value: object, *, minimum: int = 0, maximum: int | None = None) -> int:
    """`value` as an int within bounds, or an error that names the argument."""
    if type(value) is int and minimum <= value and (maximum is None or value <= maximum):
        return value  # what nearly all are, without asking for their abstract base class
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ArgumentTypeError(f"{name} is {value!r}: give an integer")
    number = int(value)
    if number < minimum or (maximum is not None and number > maximum):
        upper = "" if maximum is None else f" and <= {maximum}"
        raise ArgumentError(f"{name} is {number}: give an integer >= {minimum}{upper}")
    return number


def check_stream(*, seed: object, chain: object, step: object = 0) -> tuple[int, int, int]:
    """The three integers that count the noise: seed and chain are uint64, step is uint32."""
    return (
        check_integer("seed", seed, maximum=2**64 - 1),
        check_integer("chain", chain, maximum=2**64 - 1),
        check_integer("step", step, maximum=MAX_STEP),
    )


def to_float32(x: float) -> float:
    """x rounded to the nearest fp32, ties to even, also where the caller flushes fp32 subnormals to zero."""
    if abs(x) < _SMALLEST_NORMAL:
        return math.copysign(round(x * 2.0**149) * 2.0**-149, x)
    return float(struct.unpack("<f", struct.pack("<f", x))[0])


def _bits(x: float) -> int:
    """The bits of `to_float32(x)`."""
    if abs(x) < _SMALLEST_NORMAL:
        return round(abs(x) * 2.0**149) | (math.copysign(1.0, x) < 0) << 31
    return int(struct.unpack("<I", struct.pack("<f", x))[0])


@dataclass(frozen=True)
class Scalars:
    """What a step multiplies by: float64 here, fp32 in the kernels' struct.

    Terms whose fp32 scalar is exactly 0 are left out of the step. alpha, eps: decay and offset of RMSprop.
    friction: of samplers with a velocity, which also scales their noise; None for those without.
    """

    lr: float
    nbeta: float
    localization: float = 0.0
    weight_decay: float = 0.0
    noise_level: float = 1.0
    box: float | None = None
    alpha: float = 0.0
    eps: float = 0.0
    friction: float | None = None

    @classmethod
    def check(
        cls,
        *,
        lr: object,
        nbeta: object,
        localization: object = 0.0,
        weight_decay: object = 0.0,
        noise_level: object = 1.0,
        box: object = None,
        alpha: object = None,
        eps: object = None,
        friction: object = None,
        box_name: str = "box",
        friction_name: str = "friction",
    ) -> Scalars:
        """Checked scalars; raises ArgumentError or ArgumentTypeError naming the one at fault."""
        scalars = cls(
            lr=check_scalar("lr", lr),
            nbeta=check_scalar("nbeta", nbeta),
            localization=check_scalar("localization", localization),
            weight_decay=check_scalar("weight_decay", weight_decay),
            noise_level=check_scalar("noise_level", noise_level),
            box=None if box is None else check_scalar(box_name, box),
            alpha=0.0 if alpha is None else check_scalar("alpha", alpha),
            eps=0.0 if eps is None else check_scalar("eps", eps),
            friction=None if friction is None else check_scalar(friction_name, friction),
        )
        if scalars.alpha >= 1.0 or to_float32(scalars.alpha) == 1.0:
            raise ArgumentError(f"alpha is {scalars.alpha}: give a number in [0, 1), a running mean's decay")
        if eps is not None and to_float32(scalars.eps) < _SMALLEST_NORMAL:
            raise ArgumentError(f"eps is {scalars.eps}: give a number > 0, which bounds the preconditioner")
        if scalars.friction is not None and scalars.friction >= 2.0:
            raise ArgumentError(
                f"{friction_name} is {scalars.friction}: give a number < 2, beyond it the velocity grows"
            )
        for name, value in (
            ("nbeta", scalars.nbeta),
            ("localization", scalars.localization),
            ("weight_decay", scalars.weight_decay),
            ("lr", scalars.lr),
            ("sqrt(lr) * noise_level", scalars.c2),
            ("sqrt(2 * friction * lr) * noise_level", scalars.c3),
            ("eps", scalars.eps),
            (box_name, scalars.box or 0.0),
        ):
            if value > 3.4e38:
                raise ArgumentError(f"{name} is {value}: too large for fp32")
        return scalars

    @property
    def c1(self) -> float:
        """Factor of the drift, -lr/2."""
        return -self.lr / 2

    @property
    def c2(self) -> float:
        """Factor of the noise, sqrt(lr) * noise_level."""
        return math.sqrt(self.lr) * self.noise_level

    @property
    def c3(self) -> float:
        """Factor of the noise of a velocity, sqrt(2 * friction * lr) * noise_level."""
        return math.sqrt(2 * (self.friction or 0.0) * self.lr) * self.noise_level

    @property
    def beta(self) -> float:
        """1 - alpha."""
        return 1.0 - self.alpha

    @cached_property
    def terms(self) -> int:
        """Bit set of the terms that are present."""
        noise = self.c2 if self.friction is None else self.c3
        return (
            (WEIGHT_DECAY if to_float32(self.weight_decay) != 0.0 else 0)
            | (LOCALIZATION if to_float32(self.localization) != 0.0 else 0)
            | (NOISE if to_float32(noise) != 0.0 else 0)
            | (BOX if self.box is not None else 0)
        )

    @cached_property
    def needs_anchor(self) -> bool:
        return bool(self.terms & (LOCALIZATION | BOX))

    def pack(self, step: int) -> bytes:
        """The kernels' struct: sixteen 32-bit words."""
        return _STEP.pack(step) + self._rest

    @cached_property
    def _rest(self) -> bytes:
        """The struct without its first word."""
        box = 0.0 if self.box is None else self.box
        return _REST.pack(
            _bits(self.nbeta),
            _bits(self.weight_decay),
            _bits(self.localization),
            _bits(self.c1),
            _bits(self.c2),
            _bits(self.alpha),
            _bits(self.beta),
            _bits(self.eps),
            _bits(box),
            _bits(self.lr),
            _bits(self.friction or 0.0),
            _bits(self.c3),
        )
