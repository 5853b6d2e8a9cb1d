"""The one writer of a store. Every method can be killed at any point; the next process goes on from the checkpoint."""

from __future__ import annotations

import errno
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import ArgumentError, LlcFastError, OutputError
from . import folder, place, state
from .book import Book, dead_attributes
from .files import flush, room, sweep, system_error
from .folder import Run
from .lock import Lock
from .plain import plain
from .reading import needed, require
from .rows import Ledger
from .spec import DEAD, Spec, checked
from .tree import Tree, heal

METADATA = 2**20  # bytes that the metadata of a store may take


class Writer:
    """Writes the arrays of a run. Make one with `create`; use it as a context, or call `close`.

    store: what `open_tree` opens. finished: the store is complete; there is nothing to write. state: what the
    last checkpoint held, for a run that is continued, else None.
    """

    def __init__(self, store: Any, run: Run | None, lock: Lock | None, book: Book | None) -> None:
        self.store = store
        self.finished = book is None
        self.state: Any = None
        self._run, self._lock, self._book = run, lock, book
        self._finishing = False
        self._pid = os.getpid()

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str] | None,
        specs: Iterable[Spec],
        *,
        attrs: Mapping[str, Any],
        identity: Mapping[str, Any],
        resume: bool = False,
        checkpoint_bytes: int = 0,
    ) -> Writer:
        """A writer for a new run, for one that is continued, or a `finished` one for a run that is complete.

        path: the store's; None: in memory, without lock and checkpoints. specs: the arrays. attrs: of the root.
        identity: what makes two runs the same; kept in attrs["llc_fast"]. resume: continue a killed run.
        checkpoint_bytes: size of a checkpoint's state, for which there must be room. Raises OutputError.
        """
        require()
        specs = checked(specs)
        identity = plain(identity, "identity")
        attrs = plain({**attrs, "llc_fast": {**attrs.get("llc_fast", {}), "identity": identity}})
        if path is None:
            store = needed("zarr.storage").MemoryStore()
            tree = Tree.build(store, specs, attrs)
            return cls(store, None, None, Book(tree, specs, Ledger(), durable=False))
        with _explained(lambda cause: f"{path} cannot be written ({cause.strerror}): choose another path"):
            where, run = place.at(path)
            if (made := place.finished(where, identity)) is not None:
                return cls._complete(where, run, made)
            folder.check(run)
            if not place.absent(where) and not run.folder.exists():
                place.check_unfinished(where, run, identity, specs, resume)
            where.parent.mkdir(parents=True, exist_ok=True)
            room(where, METADATA + checkpoint_bytes)
            lock = Lock(run.folder, where)
            try:
                made = place.finished(where, identity)
                if made is not None:  # since another process has ended
                    lock.release()
                    return cls._complete(where, run, made)
                if place.absent(where):
                    return cls._begin(where, run, lock, specs, attrs, identity)
                note = place.check_unfinished(where, run, identity, specs, resume)
                return cls._continue(where, run, lock, specs, note["attrs"])
            except BaseException:
                if place.absent(where):
                    folder.remove(run)
                lock.release()
                raise

    @classmethod
    def _begin(
        cls, where: Path, run: Run, lock: Lock, specs: tuple[Spec, ...], attrs: Any, identity: Any
    ) -> Writer:
        folder.empty(run)  # of a store that was deleted without it
        run.describe(specs, attrs, identity)
        Tree.build(run.tree, specs, attrs)
        os.replace(run.tree, where)  # there with all its metadata or not at all
        flush(where.parent)
        return cls(where, run, lock, Book(Tree(where, specs), specs, Ledger(), durable=True))

    @classmethod
    def _continue(cls, where: Path, run: Run, lock: Lock, specs: tuple[Spec, ...], attrs: Any) -> Writer:
        saved = place.last_checkpoint(where, run) or {"state": None, "finish": None, "ledger": None}
        ledger = Ledger.load(saved["ledger"], {s.name: s for s in specs}) if saved["ledger"] else Ledger()
        dead = [spec.of_dead(len(ledger.dead)) for spec in specs if spec.chained and ledger.dead]
        shutil.rmtree(run.tree, ignore_errors=True)
        skeleton = Tree.build(run.tree, (*specs, *dead), attrs)
        if dead:
            skeleton.attributes(dead_attributes(ledger.dead), DEAD)
        heal(where, run.tree, specs, ledger, moved=run.journal() is not None)
        book = Book(Tree(where, (*specs, *dead)), specs, ledger, durable=True)
        writer = cls(where, run, lock, book)
        if saved["finish"]:
            writer._finishing = True
            with writer._explained("finishing the store"):
                writer._end(saved["finish"])
        else:
            book.settle()
            book.show()
            writer.state = saved["state"]
        return writer

    @classmethod
    def _complete(cls, where: Path, run: Run, made: str) -> Writer:
        """Of a finished store; what its writer could not remove any more is removed if that can be.

        made: how differently.
        """
        if run.folder.exists():
            with suppress(OSError):
                folder.check(run)
                lock = Lock(run.folder, where)
                folder.remove(run)
                lock.release()
        if made:
            warnings.warn(
                f"{where} holds this run, finished, and is returned, though it was made differently:{made}",
                stacklevel=5,  # who called sample()
            )
        return cls(where, None, None, None)

    @property
    def slots(self) -> tuple[int, ...]:
        """The slots that hold something."""
        return tuple(sorted(self._open().ledger.used))

    @property
    def dead(self) -> dict[int, str]:
        """Why each buried chain died."""
        return dict(self._open().ledger.dead)

    def put(self, name: str, slot: int | Sequence[int], row: int, data: Any) -> None:
        """Append row `row` of a slot, or of several, of which `data` then has one each.

        Rows reach the store in whole chunks. One that the disk had no room for waits in memory.
        """
        with self._explained(f"writing {name}"):
            self._open().put(name, slot, row, data)

    def write(self, name: str, data: Any, **index: int | slice) -> None:
        """Write an array, or the whole chunks of it that an index by dimension names, such as `chain=3`."""
        with self._explained(f"writing {name}"):
            self._open().write(name, data, index)

    def bury(self, slot: int, chain: int, reason: str) -> None:
        """Move a dead chain's rows to /dead and free its slot.

        What the next chain puts there stays in memory until the next checkpoint, so let one follow soon.
        """
        with self._explained(f"moving chain {chain} to /dead"):
            self._open().bury(slot, chain, reason)

    def checkpoint(self, state: Any) -> None:
        """Keep the state and all rows so far, so that another process can go on from here. Nothing in memory.

        state: nested dicts, lists, tuples, numbers, strings, None, arrays and tensors.
        """
        book = self._open()
        if self._run is None:
            return
        with self._explained("writing a checkpoint"):
            book.show()
            book.tree.sync()
            self._save(state, None)
            book.settle()

    def finish(self, attrs: Mapping[str, Any], slots: Sequence[int] | None = None) -> None:
        """Complete the store: all rows written, the chain dimension cut to its slots, `completed` set last.

        attrs: more attributes of the root; those in "llc_fast" are merged. slots: those to keep, ascending;
        None: those that hold something.
        """
        book = self._open()
        keep = [*self.slots] if slots is None else [int(s) for s in slots]
        if keep != sorted({*keep}) or any(s < 0 for s in keep):
            raise ArgumentError(f"slots must ascend, got {keep}")
        finish = {"slots": keep, "attrs": plain(attrs)}
        with self._explained("finishing the store"):
            if self._run is not None and not self._finishing:
                book.tree.sync()
                self._save(None, finish)
                self._finishing = True
            self._end(finish)

    def close(self) -> None:
        """Let another process write. What resuming needs is left; a run without a checkpoint is removed."""
        if self._lock is None or self._run is None or self._pid != os.getpid():
            return
        if not self.finished and not self._run.checkpoint.exists():
            shutil.rmtree(self.store, ignore_errors=True)
            folder.remove(self._run)
        self._lock.release()
        self._lock, self._book = None, None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _save(self, given: Any, finish: Any) -> None:
        if self._run is not None:
            saved = {"state": given, "finish": finish, "ledger": self._open().ledger.save()}
            state.dump(self._run.checkpoint, saved)

    def _end(self, finish: Mapping[str, Any]) -> None:
        book = self._open()
        old = book.tree.attrs
        merged = {**old.get("llc_fast", {}), **finish["attrs"].get("llc_fast", {})}
        attrs = {**finish["attrs"], "llc_fast": plain(merged), "completed": 1}
        book.complete(finish["slots"], attrs, self._run)
        if self._run is not None and self._lock is not None:
            sweep(self.store)
            flush(self.store / "zarr.json")
            folder.remove(self._run)
            self._lock.release()
        self.finished, self._book, self._lock = True, None, None

    def _open(self) -> Book:
        if self._pid != os.getpid():
            raise OutputError(f"{self.store} is written by process {self._pid}, of which this is a fork")
        if self._book is None:
            raise OutputError(f"{self.store}: its writer is {'finished' if self.finished else 'closed'}")
        return self._book

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        with _explained(lambda cause: self._failure(doing, cause)):
            yield

    def _failure(self, doing: str, cause: OSError) -> str:
        if self._run is None:
            return f"{doing} failed ({cause.strerror})"
        if self._finishing:
            safe = "all rows are safe"
        elif self._run.checkpoint.exists():
            safe = "all up to the last checkpoint is safe"
        else:
            safe = "no checkpoint had been written yet"
        full = cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "free space" if full else f"see to {self.store.parent}"
        return (
            f"{doing} to {self.store} failed ({cause.strerror}): {safe}; {remedy}, then resume=True continues"
        )


@contextmanager
def _explained(message: Any) -> Iterator[None]:
    """Turn the system's errors into an OutputError that says what to do."""
    try:
        yield
    except LlcFastError:
        raise
    except Exception as e:
        cause = system_error(e)
        if cause is None:
            raise
        error = OutputError(message(cause))
        error.errno = cause.errno
        raise error from e
