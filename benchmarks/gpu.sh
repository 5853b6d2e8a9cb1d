#!/usr/bin/env bash
# The benchmarks and tests that need a GPU, in one command.
#
#     bash benchmarks/gpu.sh OUT [PART]
#
# OUT   folder for the results: at most 8 files, 16 MiB: gpu.json, gpu.md, curves.png, roofline.png, summary.txt, and
#       logs. PART then adds its tables to those that are there.
# PART  build, tests, bandwidth, peers, noise, launches, graph, chain or sanitize; without it all but sanitize, most
#       important first, in less than 8 minutes on an H200 with 16 cores. What there was no time left for is said in the
#       summary. The roofline is drawn from the bandwidth.
#
# A part alone ends within 10 minutes, and takes as many of them as it needs. All of them one by one:
#
#     for p in build tests bandwidth peers noise launches graph chain sanitize; do bash benchmarks/gpu.sh OUT $p; done
#
# Where there is a GPU it builds for that card, in a folder of its own ($TMPDIR/llc_fast_gpu_<uid>, kept for the next
# part); the checkout and Python's own packages are left alone. Exit status 1: a test failed, or a part broke off.
# Without a GPU it says so, compiles every kernel for sm_90 where there is nvcc, runs every table's code on tiny sizes
# on the CPU and in Triton's interpreter, and collects the tests.
#
# PYTHON=...  the interpreter with torch (else .venv of the checkout, or python3, whichever sees a GPU)
# WHEELS=...  a folder of wheels for what that Python lacks; nothing is fetched, nor are their dependencies looked for.
#             devinterp's optimizer needs devinterp; posteriors needs posteriors, optree, tensordict, torchopt, pyvers
#             and graphviz; devinterp's llc(), in the chain, also datasets, dill, multiprocess, zarr, numcodecs, donfig,
#             google-crc32c, pydantic, pydantic-core and annotated-types
# COMMIT=...  the checkout's commit, where there is no .git to ask

set -euo pipefail

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
PARTS="build tests bandwidth peers noise launches graph chain sanitize"
WHOLE_SECONDS=455 # of a whole run, the build included
PART_SECONDS=545  # of one part; one that has to be stopped, and the summary, take up to 30 more

say() { printf 'gpu.sh: %s\n' "$*"; }
die() {
  say "$1" >&2
  exit "${2:-1}"
}

# The absolute path of an interpreter: a link stays a link, by which a virtual environment is known.
absolute() {
  local found
  found=$(command -v -- "$1") || return 1
  case $found in
    */*) printf '%s/%s\n' "$(cd -- "$(dirname -- "$found")" && pwd)" "$(basename -- "$found")" ;;
    *) return 1 ;;
  esac
}

# Sets PY to the first interpreter whose torch sees a GPU, else to the first with torch; CARD to the capability, or "".
choose_python() {
  local candidate found answer candidates
  PY="" CARD=""
  candidates=("$ROOT/.venv/bin/python" python3)
  if [[ -n ${PYTHON:-} ]]; then
    candidates=("$PYTHON")
  fi
  for candidate in "${candidates[@]}"; do
    found=$(absolute "$candidate") || continue
    answer=$(cd / && "$found" -c '
import torch
if torch.cuda.is_available():
    print("%d%d" % torch.cuda.get_device_capability())
else:
    print("none")
' 2>/dev/null) || continue
    answer=${answer##*$'\n'}
    if [[ $answer != none ]]; then
      PY=$found CARD=$answer
      return
    fi
    PY=${PY:-$found}
  done
}

# What a build depends on, as one word. Of wheels their names and sizes: a copy of them is the same.
digest() {
  {
    cd -- "$ROOT"
    find csrc kernels llc_fast benchmarks pyproject.toml CMakeLists.txt -type f ! -name '*.pyc' ! -path '*/results/*' \
      -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
    printf '%s %s\n' "$PY" "$CARD"
    if [[ -n $WHEELS ]]; then
      find "$WHEELS" -maxdepth 1 -name '*.whl' -printf '%f %s\n' | LC_ALL=C sort
    fi
  } | sha256sum | cut -c1-16
}

# An environment in PREFIX that sees the packages of PY, but neither its import hooks nor PYTHONPATH: an editable
# llc_fast there does not hide what is built here.
make_prefix() {
  "$PY" -m venv --without-pip "$PREFIX"
  SITE=$("$PREFIX/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  (cd / && "$PY" - "$ROOT" >"$SITE/borrowed.pth") <<'PYTHON'
import os, sys, sysconfig
own = {os.path.realpath(p) for p in (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), sys.argv[1], "/")}
own |= {os.path.join(p, "lib-dynload") for p in own}
for path in sys.path:
    if path and os.path.isdir(path) and os.path.realpath(path) not in own:
        print(os.path.realpath(path))
PYTHON
}

# Installs the checkout into PREFIX; arguments are added to the environment.
install_checkout() {
  (
    cd -- "$PREFIX"
    env "PATH=$(dirname -- "$PY"):$PATH:/usr/local/cuda/bin" PIP_DISABLE_PIP_VERSION_CHECK=1 "$@" \
      "$PY" -m pip install --no-input --no-index --no-cache-dir --no-build-isolation --no-deps --upgrade \
      --target "$SITE" "--config-settings=build-dir=$PREFIX/build" "$ROOT"
  )
}

# Wheels one by one: one that does not fit here leaves the others.
install_wheels() {
  local wheel
  [[ -n $WHEELS ]] || return 0
  for wheel in "$WHEELS"/*.whl; do
    [[ -e $wheel ]] || continue
    if ! "$PY" -m pip install -q --no-input --no-index --no-deps --no-compile --no-cache-dir --upgrade \
      --target "$SITE" "$wheel" >>"$OUT/run.log" 2>&1; then
      say "left out $(basename -- "$wheel"), which pip does not install here: see run.log"
    fi
  done
}

# Builds for the card, unless that has been done; BUILT says how it went.
build() {
  local base
  BUILT=well
  base=${TMPDIR:-/tmp}/llc_fast_gpu_$(id -u)
  mkdir -p -m 700 -- "$base"
  [[ -O $base ]] || die "$base belongs to somebody else: set TMPDIR"
  PREFIX=$base/$(digest)
  if [[ -e $PREFIX/ready ]]; then
    say "built before, in $PREFIX"
    return
  fi
  rm -rf -- "$PREFIX"
  say "building for compute capability ${CARD%?}.${CARD: -1} in $PREFIX"
  make_prefix
  printf '##### build\n' >>"$OUT/run.log"
  install_wheels
  if ! install_checkout LLC_FAST_CUDA=ON "LLC_FAST_CUDA_ARCHS=$CARD-real" >>"$OUT/run.log" 2>&1; then
    tail -n 15 -- "$OUT/run.log"
    say "the CUDA extension did not build: going on without it"
    BUILT=badly
    install_checkout LLC_FAST_CUDA=OFF >>"$OUT/run.log" 2>&1 || {
      tail -n 15 -- "$OUT/run.log"
      die "the rest did not build either, see $OUT/run.log"
    }
  fi
  (cd / && "$PREFIX/bin/python" - "$PREFIX" <<'PYTHON') || die "what was built does not load"
import sys
import llc_fast
from llc_fast import backends
assert llc_fast.__file__.startswith(sys.argv[1]), f"llc_fast comes from {llc_fast.__file__}"
for name in ("cuda", "triton", "cpu"):
    print(f"gpu.sh: backend {name}: {backends.missing(name) or 'ready'}")
PYTHON
  if [[ $BUILT == well ]]; then touch -- "$PREFIX/ready"; fi
}

main() {
  BEGAN=$(date +%s)
  case ${1:-} in
    "" | -h | --help)
      sed -n '2,/^$/s/^# \{0,1\}//p' -- "$ROOT/benchmarks/gpu.sh"
      exit $(($# == 0 ? 2 : 0))
      ;;
  esac
  [[ $# -le 2 ]] || die "too many arguments: bash benchmarks/gpu.sh OUT [PART]" 2
  PART=${2:-all}
  [[ $PART == all || " $PARTS " == *" $PART "* ]] || die "unknown part '$PART': one of $PARTS" 2
  WHEELS=${WHEELS:-}
  if [[ -n $WHEELS ]]; then
    WHEELS=$(cd -- "$WHEELS" 2>/dev/null && pwd) || die "WHEELS is no folder" 2
  fi
  { mkdir -p -- "$1" && OUT=$(cd -- "$1" && pwd) && : >>"$OUT/run.log"; } 2>/dev/null || die "cannot write to $1" 2
  if [[ $PART == all ]]; then : >"$OUT/run.log"; fi
  COMMIT=${COMMIT:-$(git -C "$ROOT" describe --always --abbrev=12 --exclude '*' --dirty=+ 2>/dev/null || true)}

  choose_python
  unset PYTHONPATH PYTHONHOME
  [[ -n $PY ]] || die "no Python with torch: set PYTHON to one"
  local run=(-m llc_fast.benchmarks.gpu "$PART" --out "$OUT" --source "$ROOT" --commit "$COMMIT" --began "$BEGAN")
  run+=(--command "bash benchmarks/gpu.sh OUT${2:+ $2}")
  local status=0
  if [[ -z $CARD ]]; then
    if command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU '; then
      die "there is a GPU, but the torch of $PY does not see it: set PYTHON to one that does"
    fi
    say "no GPU: a dry run with $PY; nothing below says how fast a GPU is"
    (cd / && "$PY" -c 'import llc_fast.benchmarks.gpu') 2>/dev/null ||
      die "llc_fast is not installed for $PY: make install, or set PYTHON"
    (cd / && env "PATH=$(dirname -- "$PY"):$PATH" "$PY" "${run[@]}" --dry) || status=$?
    exit "$status"
  fi
  build
  export TRITON_CACHE_DIR=$PREFIX/triton HYPOTHESIS_STORAGE_DIRECTORY=$PREFIX/hypothesis
  export TORCHINDUCTOR_CACHE_DIR=$PREFIX/inductor MPLCONFIGDIR=$PREFIX/matplotlib PYTHONDONTWRITEBYTECODE=1
  if [[ $PART == all ]]; then
    run+=(--until $((BEGAN + WHOLE_SECONDS)))
  else
    run+=(--until $((BEGAN + PART_SECONDS)))
  fi
  if [[ $BUILT == badly ]]; then
    run+=(--build-failed --lost "cuda=the extension did not build, see run.log")
  fi
  (cd -- "$PREFIX" && "$PREFIX/bin/python" "${run[@]}") || status=$?
  exit "$status"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
  main "$@"
fi
