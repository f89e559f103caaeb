"""The power goes at any moment: what was committed is there, in order and whole, whatever the disk made of the rest.

kill -9 leaves the kernel alive with all that was ever written; here only what was synced is certain (`crash_disk`). One
client writes; at moments drawn by chance, also in the middle of a commit, a rotation or a checkpoint, the disk is laid
down as a power cut might leave it, and opened. What is found must be exactly what some first part of the writes makes,
and that part must reach at least to the last commit that had returned (`always`), or to the last sync (`everysec`),
also while the checkpoint process stands still.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest
from fixtures.crash_disk import PowerDisk
from fixtures.engines import abandon

from merklekv.engine.engine import Engine
from merklekv.engine.options import Durability
from merklekv.engine.verify.check import check_directory
from merklekv.errors import Stalled

WRITES: Final = 1000
COMMIT: Final = 0.5  # of the writes are followed by a commit
FLUSH: Final = 0.1  # of the commits are followed by a sync
STALL: Final = 0.05  # of the writes are followed by a standstill of the child, until writers have to wait for it
KILL: Final = 0.01  # of the writes are followed by the end of the process, and a start
CUT: Final = 0.05  # of the writes and syncs that the disk is asked for meet a power cut,
RARE_CUT: Final = 0.3  # and of what happens seldom: files that come, go, grow and shrink
CUTS_MIN: Final = 10
KEYS: Final = 80
VALUE_MAX: Final = 1500
MEMTABLE_SIZE: Final = 64 << 10

Model = dict[bytes, bytes]


class Outlet:
    """An engine, its disk, and the plug."""

    def __init__(self, directory: Path, durability: Durability, seed: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.history: list[Model] = [{}]  # what is there after each write
        self.committed = 0  # the last write that is covered by a commit that has returned
        self.cuts = 0
        self.failure: BaseException | None = None
        self._stalled: int | None = None
        self._directory = directory
        self._durability = durability
        (directory / "log").mkdir(parents=True)
        self._disk = PowerDisk(directory / "log", self._maybe_cut)
        self._disk.install(monkeypatch)
        self.start()

    def start(self) -> None:
        self._running = False
        self.engine = Engine(self._directory, durability=self._durability, memtable_size=MEMTABLE_SIZE)
        self._running = True

    def kill(self) -> None:
        """The process ends, and starts again: what it has written is in the kernel, synced or not, the rest is gone."""
        self._running = False
        self.resume()
        engine = self.engine
        abandon(engine)
        os.close(engine.log._fd)
        self.start()
        found = everything(self.engine)
        assert found in self.history[self.committed :], f"seed {self.seed}"
        self.history = [found]
        self.committed = 0

    def _maybe_cut(self, rare: bool) -> None:
        """Called before anything happens to the disk, on whichever thread does it."""
        if self._running and self.failure is None and self.chance.random() < (RARE_CUT if rare else CUT):
            try:
                self.cut()
            except BaseException as failure:
                self.failure = failure  # for the thread of the test
                raise

    def cut(self) -> None:
        """Lays down what a power cut would leave now, and looks at it."""
        with self._disk.lock:
            self._cut()

    def _cut(self) -> None:
        self.cuts += 1
        self.resume()  # it may be in a transaction, which a copy of the base has to wait for
        left = self._directory.parent / "left"
        shutil.rmtree(left, ignore_errors=True)
        for part in ("log", "base"):
            (left / part).mkdir(parents=True)
        shutil.copy(self._directory / "FORMAT", left)
        self.engine.table.base._env.copy(str(left / "base"))  # a snapshot: LMDB keeps its own promise
        self._disk.after_power_cut(left / "log", self.chance)
        where = f"seed {self.seed}, cut {self.cuts}, after write {len(self.history) - 1}, directory {left}"
        assert check_directory(left) == [], where
        found = contents(left)
        assert any(found == model for model in reversed(self.history[self.committed :])), where
        assert check_directory(left) == [], where

    def write(self) -> None:
        """One write of any kind."""
        chance, engine, model = self.chance, self.engine, dict(self.history[-1])
        key, value = b"%d" % chance.randrange(KEYS), chance.randbytes(chance.randrange(VALUE_MAX))
        kind = chance.choices(("set", "delete", "append", "mset", "truncate"), (60, 15, 10, 15, 0.3))[0]
        # What is in the log before the engine's call returns must be in the history by then.
        if kind == "set":
            model[key] = value
            self._do(model, lambda: engine.set(key, value))
        elif kind == "delete":
            model.pop(key, None)
            self._do(model, lambda: engine.delete(key))
        elif kind == "append":
            model[key] = (model.get(key, b"") + value)[-VALUE_MAX:]
            self._do(model, lambda: engine.set(key, model[key]))
        elif kind == "mset":
            pairs = [(b"%d" % chance.randrange(KEYS), value[: chance.randrange(100)]) for _ in range(5)]
            self._do(model | dict(pairs), lambda: engine.mset(pairs))
        else:
            self._do({}, engine.truncate)

    def _do(self, model: Model, call: Callable[[], object]) -> None:
        self.history.append(model)
        while True:
            try:
                call()
                return
            except Stalled:
                self.resume()
                self.engine.wait_for_room(1)

    def commit(self) -> None:
        self.engine.commit()
        if self.engine.durability == "always":
            self.committed = len(self.history) - 1
        elif self.chance.random() < FLUSH:  # as the syncing thread does
            self.engine.flush()
            self.committed = len(self.history) - 1

    def stall(self) -> None:
        """The child stands still."""
        process = self.engine.checkpointer.child
        if process is not None and (child := process.pid) is not None:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGSTOP)
                self._stalled = child

    def resume(self) -> None:
        """The child goes on."""
        if self._stalled is not None:
            with suppress(ProcessLookupError):
                os.kill(self._stalled, signal.SIGCONT)
            self._stalled = None


def everything(engine: Engine) -> Model:
    """All that an engine holds."""
    keys, following = engine.page(limit=2 * KEYS)
    assert following is None
    return {key: value for key in keys if (value := engine.get(key)) is not None}


def contents(directory: Path) -> Model:
    """What an engine finds there."""
    engine = Engine(directory, checkpoint="manual", durability="never")
    try:
        return everything(engine)
    finally:
        engine.close()


@pytest.mark.parametrize("durability", ["always", "everysec"])
def test_the_power_goes(
    durability: Durability, tmp_path: Path, crash_seed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outlet = Outlet(tmp_path / "data", durability, f"{crash_seed}-{durability}", monkeypatch)
    try:
        for _ in range(WRITES):
            outlet.write()
            if outlet.chance.random() < COMMIT:
                outlet.commit()
            if outlet.chance.random() < STALL:
                outlet.stall()
            if outlet.chance.random() < KILL:
                outlet.kill()
            if outlet.failure is not None:
                raise outlet.failure
        outlet.commit()
        outlet.cut()
    finally:
        outlet.resume()
        outlet.engine.close()
    assert outlet.failure is None
    assert outlet.cuts > CUTS_MIN
