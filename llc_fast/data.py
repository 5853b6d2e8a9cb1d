"""Text, .jsonl and .parquet files as pools of fixed-length token sequences."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import DataError

_BINARY_PROBE = 8192
_ENCODE_TOGETHER = 64  # documents per call of the tokenizer


@dataclass(frozen=True)
class Source:
    """A named dataset: its files in reading order; skipped counts the empty and binary ones left out."""

    name: str
    files: tuple[Path, ...]
    skipped: int = 0


@dataclass(frozen=True)
class Pool:
    """Token sequences of one dataset, int64 of shape (sequences, length).

    documents, tokens: how much was read; available: full sequences it made, of which the pool is a seeded
    choice in random order. digest: SHA-256 of the pool's tokens.
    """

    source: Source
    sequences: Tensor
    documents: int
    tokens: int
    available: int
    digest: str

    def batches(self, size: int) -> list[Tensor]:
        """The pool cut into batches of `size` sequences; fewer left over at the end are not used."""
        n = len(self.sequences)
        if n < size:
            raise DataError(
                f"data {self.source.name!r} makes {n} sequences of {self.sequences.shape[1]} tokens, a batch "
                f"needs {size}: give more text, or lower --batch-size or --context"
            )
        return list(self.sequences[: n - n % size].split(size))


def parse(specs: Iterable[str]) -> list[Source]:
    """Sources from `NAME=FILE[,FILE...]`, where a FILE is a path, a glob or a directory.

    The same name again adds to it. A directory stands for every file in it, at any depth, except hidden ones
    and binary ones. Empty files are left out unless named. Raises DataError.
    """
    wanted: dict[str, list[str]] = {}
    for spec in specs:
        name, equals, files = spec.partition("=")
        if not equals or not re.fullmatch(r"[\w.+-]+", name) or not files.strip():
            raise DataError(f"data {spec!r} is not NAME=FILE[,FILE...]: give for example code=src/main.py")
        parts = [files] if Path(files).expanduser().exists() else files.split(",")
        wanted.setdefault(name, []).extend(p.strip() for p in parts if p.strip())
    if not wanted:
        raise DataError("no data: give --data NAME=FILE[,FILE...] at least once")
    return [_source(name, patterns) for name, patterns in wanted.items()]


def _source(name: str, patterns: Sequence[str]) -> Source:
    files: dict[Path, None] = {}
    skipped = 0
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            found, named = sorted(_walk(path)), False
        elif path.exists():
            found, named = [path], True
        elif glob.has_magic(pattern):
            matches = (Path(p) for p in glob.glob(str(path), recursive=True))
            found, named = sorted(p for p in matches if p.is_file()), False
            if not found:
                raise DataError(f"data {name!r}: no file matches {pattern}")
        else:
            raise DataError(f"data {name!r}: there is no file {pattern}")
        for file in found:
            file = file.resolve()
            try:
                with file.open("rb") as f:
                    head = f.read(_BINARY_PROBE)
            except OSError as e:
                raise DataError(f"data {name!r}: {file} cannot be read: {e.strerror}") from e
            if named and not head:
                raise DataError(f"data {name!r}: {file} is empty")
            if not head or (not named and path.is_dir() and b"\0" in head and file.suffix != ".parquet"):
                skipped += 1
            else:
                files[file] = None
    if not files:
        raise DataError(f"data {name!r}: no file with text in {', '.join(patterns)}")
    return Source(name, tuple(files), skipped)


def _walk(top: Path) -> Iterator[Path]:
    for folder, inner, names in os.walk(top):
        inner[:] = [n for n in inner if not n.startswith(".")]
        yield from (Path(folder, n) for n in names if not n.startswith(".") and Path(folder, n).is_file())


def documents(file: Path, field: str) -> Iterator[str]:
    """The texts of a file: one a line of .jsonl, one a row of .parquet, the whole of any other.

    field: the key or column that holds the text. Raises DataError naming the place.
    """
    if file.suffix == ".jsonl":
        yield from _jsonl(file, field)
    elif file.suffix == ".parquet":
        yield from _parquet(file, field)
    else:
        yield _decode(file, file.read_bytes())


def _decode(file: Path, data: bytes, *, start: int = 0, line: int = 1) -> str:
    try:
        return data.decode("utf-8-sig" if start == 0 else "utf-8")
    except UnicodeDecodeError as e:
        line += data.count(b"\n", 0, e.start)
        raise DataError(
            f"{file} is not UTF-8 text: byte 0x{data[e.start]:02x} at position {start + e.start} (line {line}); "
            "convert it (iconv -t UTF-8) or leave it out"
        ) from e


def _jsonl(file: Path, field: str) -> Iterator[str]:
    start = 0
    with file.open("rb") as f:
        for number, data in enumerate(f, 1):
            line = _decode(file, data, start=start, line=number)
            start += len(data)
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as e:
                raise DataError(f"{file}, line {number} is not JSON: {e}") from e
            if not isinstance(record, dict) or not isinstance(record.get(field), str):
                have = ", ".join(map(repr, record)) if isinstance(record, dict) else type(record).__name__
                raise DataError(
                    f"{file}, line {number} has no text under {field!r} (it has: {have}): give --text-field"
                )
            yield record[field]


def _parquet(file: Path, field: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            if field not in table.schema_arrow.names:
                have = ", ".join(map(repr, table.schema_arrow.names))
                raise DataError(f"{file} has no column {field!r} (it has: {have}): give --text-field")
            kind = table.schema_arrow.field(field).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise DataError(f"{file}: column {field!r} holds {kind}, not text: give --text-field")
            for batch in table.iter_batches(columns=[field]):
                yield from (text for text in batch.column(0).to_pylist() if text is not None)
    except (pa.ArrowException, OSError) as e:
        raise DataError(f"{file} is not a readable parquet file: {e}") from e


def make_pool(
    source: Source, tokenizer: Any, *, length: int, max_sequences: int, seed: int = 0, field: str = "text"
) -> Pool:
    """A pool of at most max_sequences sequences of `length` tokens.

    Documents are tokenized without special tokens, each is ended by the tokenizer's EOS if it has one, and
    the stream of all of them is cut every `length` tokens: a sequence may hold the end of one document and
    the start of the next, and attends across. What is left at the end is dropped. Where the tokenizer itself
    starts a text with BOS, every sequence starts with BOS, which counts towards its length. The pool is a
    choice without replacement, in an order that depends only on `seed`.
    """
    random = np.random.default_rng(seed)
    head = _prefix(tokenizer)
    body = length - len(head)
    kept: list[np.ndarray[Any, Any]] = []
    counts = {"documents": 0, "tokens": 0}
    available = 0
    for row in _rows(source, tokenizer, body, field, counts):
        available += 1
        if len(kept) < max_sequences:
            kept.append(row)
        elif (place := int(random.integers(available))) < max_sequences:
            kept[place] = row
    if not kept:
        raise DataError(
            f"data {source.name!r} is shorter than one sequence: {counts['tokens']} tokens in "
            f"{counts['documents']} documents, a sequence needs {body}; give more text or lower --context"
        )
    tokens = np.stack([kept[i] for i in random.permutation(len(kept))])
    tokens = np.concatenate([np.tile(np.array(head, dtype=np.int64), (len(tokens), 1)), tokens], axis=1)
    digest = hashlib.sha256(tokens.astype("<i8").tobytes()).hexdigest()
    return Pool(source, torch.from_numpy(tokens), counts["documents"], counts["tokens"], available, digest)


def _prefix(tokenizer: Any) -> list[int]:
    """[BOS] if the tokenizer starts a text with it."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []


def _rows(
    source: Source, tokenizer: Any, length: int, field: str, counts: dict[str, int]
) -> Iterator[np.ndarray[Any, Any]]:
    """Consecutive stretches of `length` tokens of all documents, counting what was read."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    texts = (text for file in source.files for text in documents(file, field) if text)
    rest = np.empty(0, dtype=np.int64)
    while together := list(islice(texts, _ENCODE_TOGETHER)):
        encoded = tokenizer(together, add_special_tokens=False, verbose=False)["input_ids"]
        stream = np.array([i for ids in encoded for i in (*ids, *end)], dtype=np.int64)
        counts["documents"] += len(together)
        counts["tokens"] += len(stream)
        stream = np.concatenate([rest, stream])
        whole = len(stream) - len(stream) % length
        yield from stream[:whole].reshape(-1, length)
        rest = stream[whole:]


def check_vocabulary(pool: Pool, size: int) -> None:
    """Raise DataError if a token has no row in an embedding of `size`."""
    worst = int(pool.sequences.max())
    if worst >= size:
        raise DataError(
            f"data {pool.source.name!r} has token {worst}, the model's vocabulary ends at {size - 1}: the "
            "tokenizer in the directory is not this model's"
        )
