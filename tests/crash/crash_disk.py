"""A disk that can lose power: what of the log survives, if it happens now.

`PowerDisk` watches what an engine in this process does to the files of one directory, and knows of each what has been
synced. `after_power_cut` lays down what a disk may hold when the power goes at this moment: everything synced, and of
the rest any part. A write that was not synced may be there, or not, or any of its sectors may; a name that was not
synced may be there or not, though names come and go in order, as journals have it.

That is more than real disks and file systems do wrong, and just what POSIX lets them do.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

SECTOR: Final = 512


_Change = Callable[[bytearray, random.Random], None]


class _File:
    """A file: what was synced, and what has been done to it since, in order."""

    def __init__(self) -> None:
        self.synced = bytearray()
        self.since: list[_Change] = []

    def sync(self) -> None:
        for change in self.since:
            change(self.synced, _Always())
        self.since.clear()

    def survivor(self, chance: random.Random) -> bytes:
        content = bytearray(self.synced)
        for change in self.since:
            change(content, chance)
        return bytes(content)


class _Always(random.Random):
    """A chance that lets everything happen."""

    def random(self) -> float:
        return 0.0


def _write(position: int, data: bytes) -> _Change:
    def change(content: bytearray, chance: random.Random) -> None:
        at = position
        while at < position + len(data):
            end = min((at // SECTOR + 1) * SECTOR, position + len(data))
            if chance.random() < 0.5:
                _extend(content, end)
                content[at:end] = data[at - position : end - position]
            at = end

    return change


def _resize(size: int) -> _Change:
    def change(content: bytearray, chance: random.Random) -> None:
        if chance.random() < 0.5:
            _extend(content, size)
            del content[size:]

    return change


def _allocate(size: int) -> _Change:
    def change(content: bytearray, chance: random.Random) -> None:
        if chance.random() < 0.5:
            _extend(content, size)

    return change


def _extend(content: bytearray, size: int) -> None:
    if len(content) < size:
        content.extend(bytes(size - len(content)))


class PowerDisk:
    """Watches one directory, from `install` on.

    `before_each` is called before each thing that is done to it, with True for all but writes and syncs of files, which
    are the most.
    """

    def __init__(self, directory: Path, before_each: Callable[[bool], None]) -> None:
        self._directory = directory
        self._before_each = before_each
        self.lock = threading.RLock()  # what is done, and the note of it, are one step
        self._files: dict[str, _File] = {}
        self._synced_names: dict[str, _File] = {}
        self._names_since: list[tuple[str, _File | None]] = []

    def after_power_cut(self, target: Path, chance: random.Random) -> None:
        """Writes the files that are left to `target`."""
        with self.lock:
            names = dict(self._synced_names)
            for name, file in self._names_since[: chance.randint(0, len(self._names_since))]:
                if file is None:
                    names.pop(name, None)
                else:
                    names[name] = file
            for name, file in names.items():
                (target / name).write_bytes(file.survivor(chance))

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Begins to watch. The directory must be empty."""
        calls = ("open", "pwrite", "ftruncate", "truncate", "posix_fallocate", "unlink", "rename")
        real = {name: getattr(os, name) for name in calls}

        def opened(path: Any, flags: int, *rest: Any, **named: Any) -> int:
            with self.lock:
                name = self._name(os.fspath(path))
                creates = name is not None and flags & os.O_CREAT and name not in self._files
                if creates:
                    self._before_each(True)
                fd: int = real["open"](path, flags, *rest, **named)
                if creates and name is not None:
                    self._files[name] = _File()
                    self._names_since.append((name, self._files[name]))
                return fd

        def pwrite(fd: int, data: bytes, position: int) -> int:
            return int(self._step(fd, _write(position, bytes(data)), lambda: real["pwrite"](fd, data, position)))

        def ftruncate(fd: int, size: int) -> None:
            self._step(fd, _resize(size), lambda: real["ftruncate"](fd, size), True)

        def truncate(path: Any, size: int) -> None:
            fd = real["open"](path, os.O_RDWR)
            ftruncate(fd, size)
            os.close(fd)

        def fallocate(fd: int, offset: int, size: int) -> None:
            self._step(fd, _allocate(offset + size), lambda: real["posix_fallocate"](fd, offset, size), True)

        def unlink(path: Any, **named: Any) -> None:
            with self.lock:
                name = self._name(os.fspath(path))
                if name is not None and name in self._files:
                    self._before_each(True)
                    del self._files[name]
                    self._names_since.append((name, None))
                real["unlink"](path, **named)

        def rename(path: Any, target: Any, **named: Any) -> None:
            with self.lock:
                old, new = self._name(os.fspath(path)), self._name(os.fspath(target))
                if old is not None and new is not None:
                    self._before_each(True)
                    self._files[new] = self._files.pop(old)
                    self._names_since += [(new, self._files[new]), (old, None)]
                real["rename"](path, target, **named)

        owns = (opened, pwrite, ftruncate, truncate, fallocate, unlink, rename)
        for name, own in zip(calls, owns, strict=True):
            monkeypatch.setattr(os, name, own)
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, self._sync)

    def _step(self, fd: int, change: _Change, act: Callable[[], Any], rare: bool = False) -> Any:
        name = self._name(os.readlink(f"/proc/self/fd/{fd}"))
        if name is None:
            return act()
        with self.lock:
            self._before_each(rare)
            result = act()
            self._files[name].since.append(change)
            return result

    def _sync(self, fd: int) -> None:
        """Does not sync the real file: nobody will pull the plug of this machine."""
        path = os.readlink(f"/proc/self/fd/{fd}")
        with self.lock:
            if Path(path) == self._directory:
                self._before_each(True)
                for name, file in self._names_since:
                    if file is None:
                        self._synced_names.pop(name, None)
                    else:
                        self._synced_names[name] = file
                self._names_since.clear()
            elif (name := self._name(path)) is not None:
                self._before_each(False)
                self._files[name].sync()

    def _name(self, path: str) -> str | None:
        place = Path(path)
        return place.name if place.parent == self._directory else None
