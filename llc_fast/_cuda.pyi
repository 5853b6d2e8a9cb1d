archs: str
runtime_version: int

class CudaError(RuntimeError): ...

def device_count() -> int: ...
def problem() -> str: ...
def samplers() -> list[str]: ...
def resident_blocks(
    device: int, sampler: int, storage: int, noise: int, terms: int, masked: bool, sums: bool
) -> int: ...
def plan(rows: int, n_tiles: int, storage: int, resident: int, n_slots: int) -> tuple[bytearray, int]: ...
def sgld_step(
    device: int,
    stream: int,
    table: int,
    n_tiles: int,
    n_chunks: int,
    grads: int,
    scalars: int,
    sampler: int,
    storage: int,
    noise: int,
    terms: int,
    masked: bool,
    partials: int,
    sums: int,
    n_slots: int,
) -> None: ...
def normal(
    device: int,
    stream: int,
    out: int,
    start: int,
    numel: int,
    kind: int,
    key: int,
    step: int,
    tensor_id: int,
    domain: int,
) -> None: ...
def advance_step(device: int, stream: int, scalars: int) -> None: ...
