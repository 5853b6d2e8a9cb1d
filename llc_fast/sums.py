"""Sums over the elements of a step, and what follows from them: norms, dot products, the virial."""

from __future__ import annotations

import torch
from torch import Tensor

from .samplers import Element
from .scalars import WEIGHT_DECAY, Scalars

# Columns of a table of sums, in the order of `llcf_update.h`. g: loss gradient, d = w - w0 and w before the step,
# z: noise, v: velocity after the step, G: preconditioner (columns of it are 0 where there is none).
NAMES = (
    "n",
    "g2",
    "d2",
    "z2",
    "gd",
    "gz",
    "dz",
    "w2",  # those with w are 0 without weight decay
    "gw",
    "wz",
    "dw",
    "v2",
    "G",
    "G_g2",  # (G g)^2, and so on: G g and G d and G w, and G^.5 z
    "G_d2",
    "G_gd",
    "G_z2",
    "G_gz",
    "G_dz",
    "G_w2",
    "G_gw",
    "G_wz",
    "half_dz",  # d G^.5 z
)
COLUMNS = 24
INDEX = {name: i for i, name in enumerate(NAMES)}


def observe(e: Element, s: Scalars, v: Tensor | None, G: Tensor | None) -> Tensor:
    """The sums of one step over the elements given, fp64 (24,); v: the velocity after it; G: the preconditioner."""
    w, g = e.w.double(), e.g.double()
    assert e.w0 is not None
    d = w - e.w0.double() if e.w.dtype == torch.float64 else (e.w - e.w0).double()
    z = torch.zeros_like(w) if e.z is None else e.z.double()
    rows: dict[str, Tensor] = {"n": torch.tensor(float(w.numel()), dtype=torch.float64, device=w.device)}
    rows |= {"g2": g * g, "d2": d * d, "z2": z * z, "gd": g * d, "gz": g * z, "dz": d * z}
    decays = bool(s.terms & WEIGHT_DECAY)
    if decays:
        rows |= {"w2": w * w, "gw": g * w, "wz": w * z, "dw": d * w}
    if v is not None:
        rows["v2"] = v.double() ** 2
    if G is not None:
        G = G.double()
        y, Gg, Gd, Gw = G.sqrt() * z, G * g, G * d, G * w
        rows |= {"G": G, "G_g2": Gg * Gg, "G_d2": Gd * Gd, "G_gd": Gg * Gd, "G_z2": y * y, "G_gz": Gg * y}
        rows |= {"G_dz": Gd * y, "half_dz": d * y}
        if decays:
            rows |= {"G_w2": Gw * Gw, "G_gw": Gg * Gw, "G_wz": Gw * y}
    out = torch.zeros(COLUMNS, dtype=torch.float64, device=w.device)
    for name, values in rows.items():
        out[INDEX[name]] = values.sum()
    return out
