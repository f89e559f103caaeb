"""The simulated disk: what of a node's directory is left when it crashes at any moment.

The engine's files are real; this watches what the log and the outbox's cursor do to them, and knows of each file which
part was synced.  At a crash it makes an `Image` of the directory: everything synced, and of the rest, when the power
went, any part (any sector of a write, any first part of the names); when only the process died, all of it.  LMDB
stands at its last commit.

Before and after each thing that is done, `happen` is called with a word for it, and at the engine's own crash points:
there the world may let a node crash.

Real syncs are left out: this machine keeps its power.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple
from unittest import mock

from merklekv.engine import failpoints, recovery
from merklekv.engine.base import writer as base_writer
from merklekv.engine.checkpoint import child
from merklekv.engine.log import segment, writer
from merklekv.engine.log.retention import Retention

SECTOR: Final = 512
NO_SECTOR_SURVIVES: Final = 0.4
ALL_SECTORS_SURVIVE: Final = 0.3


class Image(NamedTuple):
    """A directory, as bytes: what is synced, and what else is there, by relative name."""

    synced: dict[str, bytes]
    present: dict[str, bytes]

    def lay_down(self, directory: Path) -> None:
        for name, content in self.present.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


class Crash(BaseException):
    """The node ends here, and `image` is what is left.  No `Exception`, so that nothing survives it."""

    def __init__(self, image: Image) -> None:
        super().__init__()
        self.image = image


class _File:
    """A file: what was synced, and what was done to it since."""

    def __init__(self, synced: bytes = b"") -> None:
        self.synced = bytearray(synced)
        self.since: list[tuple[int, bytes]] = []

    def sync(self) -> None:
        for position, data in self.since:
            _apply(self.synced, position, data)
        self.since.clear()

    def survivor(self, chance: random.Random) -> bytes:
        """What a power cut leaves."""
        content = bytearray(self.synced)
        luck = chance.random()
        share = 0.0 if luck < NO_SECTOR_SURVIVES else 1.0 if luck < NO_SECTOR_SURVIVES + ALL_SECTORS_SURVIVE else 0.5
        for position, data in self.since:
            if position < 0:
                if chance.random() < share:
                    _apply(content, position, data)
                continue
            for at in range(0, len(data), SECTOR):
                if chance.random() < share:
                    _apply(content, position + at, data[at : at + SECTOR])
        return bytes(content)

    def whole(self) -> bytes:
        """What the kernel has."""
        content = bytearray(self.synced)
        for position, data in self.since:
            _apply(content, position, data)
        return bytes(content)


def _apply(content: bytearray, position: int, data: bytes) -> None:
    if position < 0:
        size = int.from_bytes(data, "big")
        del content[size:]
        content.extend(bytes(size - len(content)))
        return
    if len(content) < position:
        content.extend(bytes(position - len(content)))
    content[position : position + len(data)] = data


def _resize(size: int) -> tuple[int, bytes]:
    return -1, size.to_bytes(8, "big")


class _Folder:
    """The names of one directory: the synced ones, and what was done to them since, in order."""

    def __init__(self) -> None:
        self.synced: dict[str, _File] = {}
        self.now: dict[str, _File] = {}
        self.since: list[dict[str, _File | None]] = []  # each of them happens as a whole

    def add(self, name: str, file: _File) -> None:
        self.now[name] = file
        self.since.append({name: file})

    def rename(self, old: str, new: str) -> None:
        self.now[new] = self.now.pop(old)
        self.since.append({old: None, new: self.now[new]})

    def notice_deleted(self, path: Path) -> None:
        for name in [name for name in self.now if not (path / name).exists()]:
            del self.now[name]
            self.since.append({name: None})

    def sync(self) -> None:
        self.synced = self.after(len(self.since))
        self.since.clear()

    def after(self, count: int) -> dict[str, _File]:
        names = dict(self.synced)
        for change in self.since[:count]:
            names |= {name: file for name, file in change.items() if file is not None}
            for name in [name for name, file in change.items() if file is None]:
                names.pop(name, None)
        return names


class Disk:
    """All nodes' disks.  Stands in for the module `os` in the engine's log."""

    def __init__(self, happen: Callable[[str], None]) -> None:
        self._happen = happen
        self._folders: dict[str, _Folder] = {}
        self._fds: dict[int, str] = {}

    # -- as the world uses it ------------------------------------------------------------------------------------------

    def adopt(self, directory: Path, image: Image | None) -> None:
        """Begins to watch a directory: a new one, or one just laid down from an image."""
        for folder, path in (("log", directory / "log"), ("", directory)):
            watched = self._folders[str(path)] = _Folder()
            for name, content in (image.present if image else {}).items():
                if name.rpartition("/")[0] == folder and name != "FORMAT":
                    assert image is not None
                    file = watched.now[name.rpartition("/")[2]] = _File(image.synced.get(name, b""))
                    if image.synced.get(name) != content:
                        file.since = [_resize(len(content)), (0, content)]
                    watched.synced[name.rpartition("/")[2]] = file

    def image(self, directory: Path, chance: random.Random | None) -> Image:
        """What is left there after a power cut now; without a chance, after the end of the process alone."""
        present: dict[str, bytes] = {}
        synced: dict[str, bytes] = {}
        for prefix, path in (("log/", directory / "log"), ("", directory)):
            folder = self._folders[str(path)]
            folder.notice_deleted(path)
            count = len(folder.since) if chance is None else chance.randint(0, len(folder.since))
            for name, file in folder.after(count).items():
                present[prefix + name] = file.whole() if chance is None else file.survivor(chance)
                synced[prefix + name] = bytes(file.synced) if chance is None else present[prefix + name]
        for name in ("FORMAT", "base/data.mdb"):
            if (directory / name).exists():
                present[name] = synced[name] = (directory / name).read_bytes()
        return Image(synced, present)

    def forget(self, directory: Path) -> None:
        """Lets a directory go, with every file of it that a crash has left open."""
        for fd in [fd for fd, path in self._fds.items() if path.startswith(f"{directory}/")]:
            del self._fds[fd]
            os.close(fd)
        for path in (directory / "log", directory):
            self._folders.pop(str(path), None)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """The engine works on this disk."""
        saved, committing = Retention._save, base_writer.BaseWriter._transaction

        def save(retention: Retention, cursor: Any) -> None:
            self._happen("place")
            saved(retention, cursor)
            path = retention._path
            folder = self._folders.get(str(path.parent))
            if folder is not None:
                file = _File()
                file.since = [(0, path.read_bytes())]
                folder.add(path.name, file)

        @contextmanager
        def transaction(writer: base_writer.BaseWriter) -> Iterator[Any]:
            with committing(writer) as txn:
                yield txn
                self._happen("base")
            self._happen("based")

        with ExitStack() as stack:
            for target, name, own in (
                (segment, "os", self),
                (recovery, "os", self),
                (writer, "os", self),
                (writer, "RESERVE_STEP", 8192),
                (Retention, "_save", save),
                (base_writer.BaseWriter, "_transaction", transaction),
                (failpoints, "reached", self._happen),
                (child, "TRANSACTION_KEYS", 4),
                (base_writer, "TRANSACTION_KEYS", 4),
            ):
                stack.enter_context(mock.patch.object(target, name, own))
            yield

    # -- as the log uses it --------------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        text = os.fspath(path)
        folder = self._folders.get(os.path.dirname(text))
        name = os.path.basename(text)
        creates = folder is not None and flags & os.O_CREAT and name not in folder.now
        if creates:
            self._happen("create")
        fd = os.open(path, flags, mode)
        self._fds[fd] = text
        if creates and folder is not None:
            folder.add(name, _File())
        return fd

    def rename(self, path: Any, target: Any) -> None:
        old, new = os.fspath(path), os.fspath(target)
        folder = self._folders.get(os.path.dirname(old))
        self._happen("create")
        os.rename(old, new)
        if folder is not None:
            folder.rename(os.path.basename(old), os.path.basename(new))
        self._fds |= {fd: new for fd, opened in self._fds.items() if opened == old}

    def close(self, fd: int) -> None:
        self._fds.pop(fd, None)
        os.close(fd)

    def pwrite(self, fd: int, data: bytes, position: int) -> int:
        self._happen("write")
        done = os.pwrite(fd, data, position)
        self._change(fd, (position, bytes(data[:done])))
        self._happen("written")
        return done

    def posix_fallocate(self, fd: int, offset: int, size: int) -> None:
        self._happen("reserve")
        os.posix_fallocate(fd, offset, size)
        file = self._file(fd)
        if file is not None and len(file.whole()) < offset + size:
            file.since.append(_resize(offset + size))

    def ftruncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)
        self._change(fd, _resize(size))

    def truncate(self, path: Any, size: int) -> None:
        fd = self.open(path, os.O_RDWR)
        self.ftruncate(fd, size)
        self.close(fd)

    def fdatasync(self, fd: int) -> None:
        self._happen("sync")
        path = self._fds[fd]
        if path in self._folders:
            self._folders[path].notice_deleted(Path(path))
            self._folders[path].sync()
        elif (file := self._file(fd)) is not None:
            file.sync()
        self._happen("synced")

    fsync = fdatasync

    def _file(self, fd: int) -> _File | None:
        path = self._fds[fd]
        folder = self._folders.get(os.path.dirname(path))
        return folder.now.get(os.path.basename(path)) if folder else None

    def _change(self, fd: int, change: tuple[int, bytes]) -> None:
        file = self._file(fd)
        if file is not None:
            file.since.append(change)
