"""The power goes at any moment of a compaction: a start finds the old base or the new one, whatever the disk did.

What the engine does with names and syncs is watched. Before and after each step the directory is laid down as a disk
may have it then: of the names that were not synced, any may have changed and any may not; a base that was not synced
whole, or whose deletion has begun, has any content.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from itertools import chain, combinations
from pathlib import Path
from typing import Any, Final

import pytest
from fixtures import engines

from merklekv.engine.base.environment import DATA_FILE
from merklekv.engine.engine import Engine
from merklekv.engine.verify.check import check_directory

PLACES: Final = ("base", "base.new", "base.old")

Names = dict[str, int]  # the inode that each name stands for
Change = Callable[[Names], object]


class Disk:
    """The bases of one data directory, what of them is durable, and what the disk may have of the rest."""

    def __init__(self, path: Path, look: Callable[[Names, set[int]], None]) -> None:
        self.path = path
        self._look = look
        self._synced = self._now()
        self._since: list[Change] = []
        self._contents = set(self._synced.values())  # inodes whose file is synced
        self._lists = set(self._synced.values())  # inodes whose names are synced

    def _now(self) -> Names:
        return {name: (self.path / name).stat().st_ino for name in PLACES if (self.path / name).exists()}

    def states(self) -> Iterator[Names]:
        """What the names may stand for after a power cut."""
        subsets = chain.from_iterable(combinations(self._since, size) for size in range(len(self._since) + 1))
        for subset in subsets:
            names = dict(self._synced)
            for change in subset:
                change(names)
            yield names

    def look(self) -> None:
        for names in self.states():
            self._look(names, self._contents & self._lists)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Watches this process from now on."""
        real = {name: getattr(os, name) for name in ("mkdir", "rename", "unlink", "rmdir", "fsync")}

        def mkdir(path: Any, *rest: Any, **named: Any) -> None:
            self.look()
            real["mkdir"](path, *rest, **named)
            if (name := self._name(path)) is not None:
                inode = os.stat(path).st_ino
                self._since.append(lambda names: names.update({name: inode}))
            self.look()

        def rename(old: Any, new: Any, **named: Any) -> None:
            self.look()
            real["rename"](old, new, **named)
            source, target = self._name(old), self._name(new)
            if source is not None and target is not None:
                inode = os.stat(new).st_ino

                def change(names: Names) -> None:  # the new name may be there without the loss of the old one
                    if names.get(source) == inode:
                        del names[source]
                    names[target] = inode

                self._since.append(change)
            self.look()

        def unlink(path: Any, *, dir_fd: int | None = None) -> None:
            self.look()
            if dir_fd is not None:
                self._contents.discard(os.fstat(dir_fd).st_ino)
            real["unlink"](path, dir_fd=dir_fd)
            self.look()

        def rmdir(path: Any, *, dir_fd: int | None = None) -> None:
            self.look()
            real["rmdir"](path, dir_fd=dir_fd)
            if Path(os.fspath(path)).name in PLACES:
                name = Path(os.fspath(path)).name
                self._since.append(lambda names: names.pop(name, None))
            self.look()

        def fsync(fd: int) -> None:
            self.look()
            real["fsync"](fd)
            place = Path(os.readlink(f"/proc/self/fd/{fd}"))
            if place == self.path:
                self._synced, self._since = self._now(), []
            elif place.parent == self.path:
                self._lists.add(os.fstat(fd).st_ino)
            elif place.name == DATA_FILE:
                self._contents.add(place.parent.stat().st_ino)
            self.look()

        for name, own in (("mkdir", mkdir), ("rename", rename), ("unlink", unlink), ("rmdir", rmdir), ("fsync", fsync)):
            patch.setattr(os, name, own)

    def _name(self, path: Any) -> str | None:
        place = Path(os.fspath(path))
        return place.name if place.parent == self.path and place.name in PLACES else None


def lay_down(source: Path, whole: Path, target: Path, names: Names, durable: set[int], remains: bytes | None) -> None:
    """A directory as the disk may hold it; `remains`: the content of a base that is not durable."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=lambda path, found: [*PLACES, "LOCK"] if Path(path) == source else [])
    for name, inode in names.items():
        if inode in durable:
            shutil.copytree(whole, target / name)
        else:
            (target / name).mkdir()
            if remains is not None:
                (target / name / DATA_FILE).write_bytes(remains)


def test_the_power_goes_in_a_compaction(tmp_path: Path) -> None:
    path, whole, left = tmp_path / "data", tmp_path / "whole", tmp_path / "left"
    with engines.engine_in(path) as engine:
        for number in range(50):
            engine.set(b"k%02d" % number, b"v" * number)
            engine.commit()
        engines.checkpoint(engine)
        engine.set(b"in the log", b"")
        engine.commit()
        engine.flush()
        expected, root = engines.everything(engine), engine.root()
        shutil.copytree(path / "base", whole)
        half = (whole / DATA_FILE).read_bytes()[:5000]
        seen: set[tuple[tuple[str, bool], ...]] = set()

        def look(names: Names, durable: set[int]) -> None:
            state = tuple(sorted((name, inode in durable) for name, inode in names.items()))
            if state in seen:
                return
            seen.add(state)
            for remains in (None, b"", half, bytes(len(half))):
                with pytest.MonkeyPatch.context() as quiet:
                    for name, function in real.items():
                        quiet.setattr(os, name, function)
                    lay_down(path, whole, left, names, durable, remains)
                    assert check_directory(left) == [], state
                    found = Engine(left, checkpoint="manual", durability="never")
                    assert (engines.everything(found), found.root()) == (expected, root), state
                    found.close()
                    assert sorted(os.listdir(left)) == ["FORMAT", "LOCK", "base", "log"]

        real = {name: getattr(os, name) for name in ("mkdir", "rename", "unlink", "rmdir", "fsync")}
        disk = Disk(path, look)
        with pytest.MonkeyPatch.context() as patch:
            disk.install(patch)
            for _ in range(2):  # the second time over what the first has left of names that are not synced
                engine.checkpointer.compact_base()
        assert engines.everything(engine) == expected
        states = {tuple(name for name, _ in state) for state in seen}
        assert states >= {("base",), ("base", "base.new"), ("base.new", "base.old"), ("base", "base.old")}
