"""Files to pools: what is read, where documents meet, which sequences are chosen, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llc_fast import data
from llc_fast.errors import DataError


class Bytes:
    """A tokenizer whose tokens are bytes plus 3; EOS is 2, BOS is 1 where texts start with it."""

    eos_token_id: int | None = 2
    bos_token_id: int | None = 1

    def __init__(self, *, starts: bool = False, ends: bool = True) -> None:
        self.starts = starts
        self.eos_token_id = 2 if ends else None

    def __call__(
        self, text: str | list[str], *, add_special_tokens: bool = True, verbose: bool = True
    ) -> Any:
        head = [1] if self.starts and add_special_tokens else []
        if isinstance(text, str):
            return {"input_ids": head + [b + 3 for b in text.encode()]}
        return {"input_ids": [head + [b + 3 for b in t.encode()] for t in text]}


def source(*files: Path) -> data.Source:
    return data.Source("x", files)


def text_file(folder: Path, *texts: str) -> Path:
    file = folder / "x.jsonl"
    file.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    return file


def as_text(sequences: torch.Tensor) -> set[str]:
    return {"".join("^$"[i - 1] if i < 3 else chr(i - 3) for i in row) for row in sequences.tolist()}


def test_documents_end_with_eos_and_run_on(tmp_path: Path) -> None:
    pool = data.make_pool(
        source(text_file(tmp_path, "abcde", "fg", "hij")), Bytes(), length=4, max_sequences=9
    )
    assert as_text(pool.sequences) == {"abcd", "e$fg", "$hij"}
    assert (pool.documents, pool.tokens, pool.available) == (3, 13, 3)


def test_no_eos_no_boundary(tmp_path: Path) -> None:
    pool = data.make_pool(
        source(text_file(tmp_path, "abc", "def")), Bytes(ends=False), length=3, max_sequences=9
    )
    assert as_text(pool.sequences) == {"abc", "def"}


def test_every_sequence_starts_with_bos_where_the_tokenizer_does(tmp_path: Path) -> None:
    pool = data.make_pool(source(text_file(tmp_path, "abcde")), Bytes(starts=True), length=4, max_sequences=9)
    assert as_text(pool.sequences) == {"^abc", "^de$"}


def test_choice_is_seeded_without_replacement_and_uniform(tmp_path: Path) -> None:
    """Each of 20 sequences is among 5 chosen with probability 1/4: a count of 400 seeds is within 5 sigma of 100."""
    file = text_file(tmp_path, "".join(chr(65 + i) * 4 for i in range(20)))
    tokenizer = Bytes(ends=False)
    counts = torch.zeros(20)
    firsts = torch.zeros(20)
    for seed in range(400):
        pool = data.make_pool(source(file), tokenizer, length=4, max_sequences=5, seed=seed)
        chosen = pool.sequences[:, 0] - 3 - 65
        assert len(set(chosen.tolist())) == 5
        counts[chosen] += 1
        firsts[chosen[0]] += 1
    sigma = (400 * 0.25 * 0.75) ** 0.5
    assert (counts - 100).abs().max() < 5 * sigma
    assert (firsts - 20).abs().max() < 5 * (400 * 0.05 * 0.95) ** 0.5
    again = data.make_pool(source(file), tokenizer, length=4, max_sequences=5, seed=399)
    assert torch.equal(again.sequences, pool.sequences)
    assert again.digest == pool.digest


def test_documents_tokenized_in_groups_are_the_same_stream(tmp_path: Path) -> None:
    """More documents than are tokenized together: no token is lost or doubled between groups."""
    texts = [chr(97 + i % 26) * (i % 7) for i in range(300)]
    pool = data.make_pool(source(text_file(tmp_path, *texts)), Bytes(), length=1, max_sequences=10**6)
    stream = "".join(t + "$" for t in texts if t)
    assert pool.tokens == len(stream)
    counts = torch.bincount(pool.sequences.flatten(), minlength=200)
    assert all(counts[ord(c) + 3] == stream.count(c) for c in "abcxyz")
    assert counts[2] == stream.count("$")


def test_batches_drop_what_is_left_over(tmp_path: Path) -> None:
    pool = data.make_pool(
        source(text_file(tmp_path, "a" * 43)), Bytes(ends=False), length=4, max_sequences=99
    )
    assert [len(b) for b in pool.batches(4)] == [4, 4]
    with pytest.raises(DataError, match="makes 10 sequences of 4 tokens, a batch needs 11"):
        pool.batches(11)


def test_too_short_and_beyond_vocabulary(tmp_path: Path) -> None:
    file = text_file(tmp_path, "ab")
    with pytest.raises(DataError, match="shorter than one sequence: 3 tokens in 1 documents"):
        data.make_pool(source(file), Bytes(), length=4, max_sequences=9)
    pool = data.make_pool(source(file), Bytes(), length=3, max_sequences=9)
    data.check_vocabulary(pool, 102)
    with pytest.raises(DataError, match="has token 101, the model's vocabulary ends at 100"):
        data.check_vocabulary(pool, 101)


@pytest.mark.parametrize(
    ("specs", "files"),
    [
        (["x=a.py,b.txt"], ["a.py", "b.txt"]),
        (["x=*.py"], ["a.py", "c.py"]),
        (["x=**/*.py"], ["a.py", "c.py", "in/d.py"]),
        (["x=in"], ["in/d.py", "in/deep/e.md"]),
        (["x=c.py", "x=a.py"], ["c.py", "a.py"]),
        (["x=one,two.txt"], ["one,two.txt"]),
        (["x=a.py,*.py,./a.py"], ["a.py", "c.py"]),
    ],
)
def test_which_files(
    specs: list[str], files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "a.py",
        "b.txt",
        "c.py",
        "one,two.txt",
        "in/d.py",
        "in/deep/e.md",
        "in/.hidden",
        "in/.git/f.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    (tmp_path / "in/empty.py").touch()
    (tmp_path / "in/picture.png").write_bytes(b"\x89PNG\0\0")
    monkeypatch.chdir(tmp_path)
    (found,) = data.parse(specs)
    assert found.name == "x"
    assert sorted(f.relative_to(tmp_path).as_posix() for f in found.files) == sorted(files)
    assert found.skipped == (2 if specs == ["x=in"] else 1 if "**" in specs[0] else 0)


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([], "no data: give --data"),
        (["x"], "'x' is not NAME=FILE"),
        (["=a.txt"], "is not NAME=FILE"),
        (["a/b=a.txt"], "is not NAME=FILE"),
        (["x="], "is not NAME=FILE"),
        (["x=nowhere.txt"], "data 'x': there is no file nowhere.txt"),
        (["x=*.nothing"], "data 'x': no file matches"),
        (["x=empty.txt"], r"empty\.txt is empty"),
        (["x=empty.*"], "no file with text"),
        (["x=void"], "no file with text"),
    ],
)
def test_refused_sources(
    specs: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "void").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        data.parse(specs)


def test_undecodable_text_names_the_place(tmp_path: Path) -> None:
    file = tmp_path / "latin.txt"
    file.write_bytes(b"line\nsecond caf" + b"\xe9 x")
    with pytest.raises(DataError, match=r"latin\.txt is not UTF-8 text: byte 0xe9 at position 15 \(line 2\)"):
        list(data.documents(file, "text"))
    lines = tmp_path / "latin.jsonl"
    lines.write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    with pytest.raises(DataError, match=r"byte 0xff at position 24 \(line 2\)"):
        list(data.documents(lines, "text"))


def test_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "bom.txt"
    file.write_bytes(b"\xef\xbb\xbftext")
    assert list(data.documents(file, "text")) == ["text"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ('{"body": "a"}', r"line 2 has no text under 'text' \(it has: 'body'\): give --text-field"),
        ('{"text": 3}', "line 2 has no text under 'text'"),
        ('["a"]', r"line 2 has no text under 'text' \(it has: list\)"),
    ],
)
def test_refused_json_lines(line: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text(f'{{"text": "fine"}}\n{line}\n')
    with pytest.raises(DataError, match=message):
        list(data.documents(file, "text"))


def test_json_lines_with_another_field_and_blank_lines(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"body": "a"}\n\n{"body": "b\\nc"}\n')
    assert list(data.documents(file, "body")) == ["a", "b\nc"]


def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": ["a", None, "b"], "n": [1, 2, 3]}), file, row_group_size=2)
    assert list(data.documents(file, "text")) == ["a", "b"]
    with pytest.raises(DataError, match=r"no column 'body' \(it has: 'text', 'n'\): give --text-field"):
        list(data.documents(file, "body"))
    with pytest.raises(DataError, match="column 'n' holds int64, not text"):
        list(data.documents(file, "n"))
    file.write_bytes(b"PAR1 but not really")
    with pytest.raises(DataError, match="not a readable parquet file"):
        list(data.documents(file, "text"))
