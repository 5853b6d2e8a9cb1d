"""The demo: train a small language model, estimate the LLC of each of its heads on code and on prose, read it.

python examples/demo.py            # what `make demo` runs; everything goes to demo_out/
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

OUT = Path("demo_out")
SETTINGS = {
    "--components": "l*h*",
    "--nbeta": "30",
    "--lr": "0.001",
    "--localization": "300",
    "--chains": "4",
    "--draws": "160",
    "--burnin": "20",
    "--batch-size": "8",
    "--context": "64",
    "--max-sequences": "640",
    "--seed": "1",
    "--threads": "1",  # steps of a few ms are too short to be shared
}


def model() -> Path:
    """The trained model's directory: the one that is there if these scripts made it, or a new one."""
    made, here = OUT / "model_made_by.json", Path(__file__).parent
    by = {
        name: hashlib.sha256((here / name).read_bytes()).hexdigest()
        for name in ("train_tiny.py", "stdlib_text.py")
    }
    by["python"] = platform.python_version()
    try:
        if (
            json.loads(made.read_text(encoding="utf-8")) == by
            and (OUT / "model" / "model.safetensors").is_file()
        ):
            print(
                f"1. The model: {OUT / 'model'} is there from an earlier run (rm -r {OUT} to train it again)\n"
            )
            return OUT / "model"
    except (OSError, ValueError):
        pass
    print("1. The model: a 2-layer GPT-NeoX, trained here on Python's standard library")
    import train_tiny

    made.unlink(missing_ok=True)
    path = train_tiny.main(OUT)
    made.write_text(json.dumps(by, indent=1), encoding="utf-8")
    print()
    return path


def estimate(path: Path) -> dict[str, Any]:
    """What `llc-fast estimate` writes for all heads on both datasets."""
    command = ["llc-fast", "estimate", str(path)]
    for name in ("code", "prose"):
        command += ["--data", f"{name}={OUT / 'data' / f'{name}.train.jsonl'}"]
    command += [word for pair in SETTINGS.items() for word in pair] + [
        "--out",
        str(OUT / "result"),
        "--force",
    ]
    print(f"2. The LLC of every head on code and on prose:\n\n   {shlex.join(command)}\n", flush=True)
    command[0] = str(Path(sys.executable).with_name("llc-fast"))
    done = subprocess.run(command, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    result: dict[str, Any] = json.loads((OUT / "result" / "result.json").read_text(encoding="utf-8"))
    return result


def explain(result: dict[str, Any]) -> str:
    """How to read the numbers, with those that were found."""
    cells = {(c["component"], c["dataset"]): c for c in result["cells"] if c["llc_mean"] is not None}
    heads = list(dict.fromkeys(head for head, _ in cells))
    low, high = (pick(cells.values(), key=lambda c: c["llc_mean"]) for pick in (min, max))
    gap = {}
    for head in heads:
        code, prose = cells.get((head, "code")), cells.get((head, "prose"))
        if code and prose:
            gap[head] = code["llc_mean"] - prose["llc_mean"], math.hypot(code["mcse"], prose["mcse"])
    head = max(gap, key=lambda h: abs(gap[h][0]) / gap[h][1])
    difference, error = gap[head]
    more, less = ("code", "prose") if difference > 0 else ("prose", "code")
    marked = sum(bool(c["marks"]) for c in result["cells"])
    r_hats = [c["r_hat"] for c in cells.values() if c["r_hat"] is not None]
    step = float(SETTINGS["--lr"]) * float(SETTINGS["--localization"]) / 4
    chance = f"(R-hat is tested at a level of 1 %: of {2 * len(result['cells'])} tests one fails by chance at times.)"
    return f"""
3. How to read it

   An LLC says how many directions of a head's weights matter to the loss on a dataset. Chains wander around the
   trained weights, driven by noise and held by the loss (nbeta) and by a spring (localization), and
   LLC = nbeta * (mean loss along the chains - loss of the trained weights). A head that can be disturbed with
   little harm has a low LLC; the most that {low["weights"]:,} weights could have is half their number. The spring
   is stiff here: only directions with a curvature of about localization / nbeta or more count in full.

   In this run it goes from {low["llc_mean"]:.2f} ({low["component"]} on {low["dataset"]})
   to {high["llc_mean"]:.2f} ({high["component"]} on {high["dataset"]}).
   The clearest difference between the datasets is in {head}: {abs(difference):.2f} ± {error:.2f} more on {more},
   {abs(difference) / error:.0f} standard errors. {more.capitalize()} depends on this head more finely than {less}.

   Error bars are standard errors of the mean over the chains. Two values closer than about two of them (the root
   of both squared) are not told apart. They hold for these settings alone: at this step size every value is some
   {step:.0%} high or more, and another nbeta or localization gives other values. Rank heads by them; do not compare
   them with numbers from other settings.

   Are the chains healthy? R-hat near 1 says that they agree; of the loss it was at most {max(r_hats):.2f}. A value is
   marked where R-hat is above 1.05 and above what chance alone gives so few draws.
   {marked} of {len(result["cells"])} values carry a mark. {chance if marked else ""}

   The picture   {OUT / "result" / "heatmap.png"}: layers x heads on code, on prose, and the difference
   The numbers   {OUT / "result" / "result.json"}: every cell, every setting, versions, digests
   The traces    {OUT / "result" / "arrays.npz"}: numpy.load(...)["loss_trace"][component, dataset, chain, step]
"""


def main() -> None:
    # Before torch is imported: on a busy machine, threads that wait by spinning make small steps 50 times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    start = time.perf_counter()
    path = model()
    trained = time.perf_counter()
    result = estimate(path)
    print(explain(result))
    end = time.perf_counter()
    print(f"   Model: {trained - start:.0f} s. Estimates: {end - trained:.0f} s. All: {end - start:.0f} s.")


if __name__ == "__main__":
    main()
