"""Python's standard library as two datasets: its code, and the prose that people wrote around it.

The code is every module without docstrings and comments. The prose is these docstrings and comments,
the language reference that pydoc carries, and the licence. Both are written as .jsonl, one document a line,
split by module into a training and a held-out part.
"""

from __future__ import annotations

import ast
import inspect
import io
import json
import re
import sysconfig
import tokenize
import zlib
from collections.abc import Iterator
from pathlib import Path

# Tests, vendored packages, generated tables and other languages' grammars are not what people read.
SKIP = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "ensurepip", "turtledemo"}
SKIP |= {"encodings", "pydoc_data", "__pycache__", "__phello__", "_vendor"}
HELD_OUT = 10  # one module in this many


def modules() -> Iterator[tuple[str, str]]:
    """(name, source) of the standard library's modules in a fixed order."""
    top = Path(sysconfig.get_paths()["stdlib"])
    for file in sorted(top.rglob("*.py")):
        name = file.relative_to(top)
        if SKIP.isdisjoint(name.parts) and not name.parts[0].startswith(("config-", "_sysconfigdata")):
            try:
                yield name.as_posix(), file.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def split(source: str) -> tuple[str, str]:
    """The code and the prose of a module."""
    lines = source.splitlines()
    drop: set[int] = set()  # lines, counted from 0
    prose = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text:
                prose.append((node.body[0].lineno, _readable(inspect.cleandoc(text))))
                if len(node.body) > 1 or isinstance(node, ast.Module):
                    drop.update(range(node.body[0].lineno - 1, node.body[0].end_lineno or 0))
    comments: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            if lines[row - 1][:column].strip():
                lines[row - 1] = lines[row - 1][:column].rstrip()
            else:
                comments[row] = token.string.lstrip("#!: ").strip()
                drop.add(row - 1)
    for row in sorted(comments):
        if row - 1 not in comments:
            last = row
            while last + 1 in comments:
                last += 1
            block = _readable("\n".join(comments[i] for i in range(row, last + 1)))
            if len(block) >= 80:
                prose.append((row, block))
    code = "\n".join(line for i, line in enumerate(lines) if i not in drop)
    code = re.sub(r"\n\s*\n\s*\n+", "\n\n", code).strip()
    return code, "\n\n".join(text for _, text in sorted(prose) if text)


def _readable(text: str) -> str:
    """Without interactive sessions and rulers."""
    kept = [line for line in text.splitlines() if not re.match(r"\s*(>>>|\.\.\.|[-=~*#_+^]{3,}\s*$)", line)]
    return re.sub(r"\n\s*\n\s*\n+", "\n\n", "\n".join(kept)).strip()


def documents() -> Iterator[tuple[str, str, str]]:
    """(dataset, name, text) of every document."""
    for name, source in modules():
        try:
            code, prose = split(source)
        except (SyntaxError, tokenize.TokenError):
            continue
        if len(code) > 200:
            yield "code", name, code
        if len(prose) > 200:
            yield "prose", name, prose
    try:
        from pydoc_data.topics import topics
    except ImportError:
        topics = {}
    for name in sorted(topics):
        yield "prose", f"topic {name}", _readable(topics[name])
    licence = Path(sysconfig.get_paths()["stdlib"], "LICENSE.txt")
    if licence.is_file():
        yield "prose", licence.name, licence.read_text(encoding="utf-8")


def write(folder: Path) -> dict[str, Path]:
    """Write {code,prose}.{train,heldout}.jsonl; the files by "code.train" and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[str]] = {f"{d}.{s}": [] for d in ("code", "prose") for s in ("train", "heldout")}
    for dataset, name, text in documents():
        part = "heldout" if zlib.crc32(name.encode()) % HELD_OUT == 0 else "train"
        found[f"{dataset}.{part}"].append(json.dumps({"text": text, "source": name}))
    files = {}
    for name, lines in found.items():
        files[name] = folder / f"{name}.jsonl"
        files[name].write_text("\n".join(lines) + "\n", encoding="utf-8")
    return files


if __name__ == "__main__":
    for name, file in write(Path("demo_out/data")).items():
        print(f"{name:14} {file.stat().st_size / 1e6:5.2f} MB  {file}")
