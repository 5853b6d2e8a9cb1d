"""The Langevin step and its noise on the CPU; addresses are integers."""

openmp: bool

def isas() -> list[str]: ...
def samplers() -> list[str]: ...
def chain_key(seed: int, chain: int) -> int: ...
def philox4x32(c0: int, c1: int, c2: int, c3: int, k0: int, k1: int, /) -> tuple[int, int, int, int]: ...
def sgld_step(
    tiles: int,
    grads: int,
    n_tiles: int,
    scalars: int,
    sampler: int,
    storage: int,
    noise: int,
    terms: int,
    sums: int,
    threads: int,
    isa: str,
) -> None: ...
def normal(
    out: int,
    start: int,
    numel: int,
    kind: int,
    key: int,
    step: int,
    tensor_id: int,
    domain: int,
    threads: int,
    isa: str,
) -> None: ...
