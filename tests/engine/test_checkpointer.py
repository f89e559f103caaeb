"""Checkpoints by a real child process: they happen, they survive the child's death, and they end with the engine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from fixtures import engines
from fixtures.crash_harness import is_gone
from fixtures.support import WAIT_S, wait_until

from merklekv.engine.checkpoint import checkpointer as checkpointer_module
from merklekv.engine.checkpoint.checkpointer import FROZEN_TABLES_MAX
from merklekv.engine.checkpoint.child import CheckpointProcess, Progress
from merklekv.engine.engine import Engine
from merklekv.engine.log.segment import list_segments
from merklekv.engine.verify.check import check_directory
from merklekv.errors import DirectoryLocked, Stalled, StorageFailed


def child_pid(engine: Engine) -> int:
    """The checkpoint process; there is one once there was something to move into the base."""
    child = engine.checkpointer.child
    assert child is not None
    return wait_until(lambda: child.pid, what="the child") or 0


def write(engine: Engine, count: int, first: int = 0) -> None:
    for number in range(first, first + count):
        try:
            engine.set(b"k%06d" % number, b"v" * 1000)
        except Stalled:
            assert engine.wait_for_room(WAIT_S)
            engine.set(b"k%06d" % number, b"v" * 1000)
        engine.commit()


def wait_until_merged(engine: Engine) -> None:
    wait_until(lambda: not engine.table.frozen, what="the checkpoint")


def test_full_memtables_go_to_the_base(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(checkpoint="process")
    write(engine, 500)

    def is_merged() -> bool:
        with engine.lock:  # a memtable that fills up while three are frozen is frozen when these are merged
            return not engine.table.frozen and engine.table.active.charged < engine.checkpointer.memtable_size

    wait_until(is_merged, what="the checkpoints")
    assert engine.live_count == 500
    assert engine.table.base.live > 300
    assert engine.table.base.checkpoint_lsn == engine.table.active.lsn
    wait_until(lambda: list_segments(engine.directory.log) == [engine.table.active.lsn], what="the old segments to go")
    assert len(engines.values(engine)) == 500
    assert engine.metrics().frozen_memtables == 0


def test_an_idle_engine_empties_its_log(make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    """But for what is left of it below a MiB."""
    monkeypatch.setattr(checkpointer_module, "IDLE_S", 0.05)
    engine = make_engine(checkpoint="process", memtable_size=64 << 20)
    write(engine, 1500)
    wait_until(lambda: engine.log.position < 1 << 20 and not engine.table.frozen, what="the checkpoint")
    assert engine.table.base.live > 900
    wait_until(lambda: list_segments(engine.directory.log) == [engine.table.active.lsn], what="the old segment to go")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_that_dies_is_started_again(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    monkeypatch.setattr(checkpointer_module, "RETRY_S", 0.01)
    engine = make_engine(checkpoint="process")
    write(engine, 100)
    killed = set()
    for number in range(3):
        pid = child_pid(engine)
        os.kill(pid, how)
        killed.add(pid)
        write(engine, 150, 100 + 150 * number)
        wait_until(lambda: child_pid(engine) not in killed, what="another child")
    wait_until_merged(engine)
    assert len(engines.values(engine)) == 550


def test_a_signal_to_the_whole_group_leaves_the_child_at_work(make_engine: Callable[..., Engine]) -> None:
    """Such as Ctrl-C, or a terminal that closes: the parent decides what it means, also while the child starts."""
    engine = make_engine(checkpoint="process")
    write(engine, 100)
    pid = child_pid(engine)
    fatal = {signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM}
    for number in range(3):
        for other in signal.valid_signals() - fatal:
            os.kill(pid, other)
        write(engine, 150, 100 + 150 * number)
        wait_until_merged(engine)
    assert child_pid(engine) == pid


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (
            [sys.executable, "-c", "raise SystemExit(3)"],
            "the checkpoint process died 5 times in a row, last: exit status 3",
        ),
        (["/nowhere/python"], "cannot start the checkpoint process: .*/nowhere/python"),
    ],
    ids=["dies", "does not start"],
)
def test_a_child_that_cannot_live_is_no_failed_disk(
    command: list[str],
    words: str,
    make_engine: Callable[..., Engine],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Such as one whose files were removed under a running node. Writes go on while memory lasts."""
    monkeypatch.setattr(checkpointer_module, "RETRY_S", 0.01)
    engine = make_engine(checkpoint="process")
    child = engine.checkpointer.child
    assert child is not None
    own, child._command = child._command, command
    write(engine, 100)
    wait_until(lambda: re.search(f"{words}.*; writes go on while memory lasts", caplog.text), what="the message")
    assert engine.gate.failure is None
    write(engine, 1, 100)
    child._command = own
    wait_until_merged(engine)
    assert len(engines.values(engine)) == 101


def test_a_defect_in_the_checkpointer_is_no_failed_disk(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(checkpointer_module, "RETRY_S", 0.01)
    engine = make_engine(checkpoint="process")
    with monkeypatch.context() as patch:
        patch.setattr(engine.table, "take_over_base", lambda: 1 // 0)
        write(engine, 100)
        wait_until(lambda: "the checkpointer failed: ZeroDivisionError" in caplog.text, what="the message")
    wait_until_merged(engine)
    assert engine.gate.failure is None
    assert len(engines.values(engine)) == 100


def test_what_is_damaged_under_the_child_stops_the_node(make_engine: Callable[..., Engine], tmp_path: Path) -> None:
    """Its error arrives with its class and its words."""
    engine = make_engine(checkpoint="process")
    engines.damaged(tmp_path / "data")
    with engine.lock:  # the checkpointer asks the child, and waits for this lock before it asks again
        for number in range(100):
            engine.set(b"k%d" % number, b"v" * 1000)
        engines.flip(tmp_path / "data" / "log" / f"{0:020d}.log", 3)
    engine.commit()
    wait_until(lambda: engine.gate.failure is not None, what="the failure")
    with pytest.raises(StorageFailed, match=r"00000.log: damaged at byte 0: the segment's header"):
        engine.commit()


def test_an_error_while_progress_is_told_leaves_no_answer_for_the_next_job(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpointer_module, "RETRY_S", 0.01)
    engine = make_engine(checkpoint="process")
    real = engine.table.base.refresh
    errors = [MemoryError()]

    def refresh() -> None:  # at the first progress that is reported
        if errors:
            raise errors.pop()
        real()

    monkeypatch.setattr(engine.table.base, "refresh", refresh)
    for number in range(3):
        engine.set(b"k%d" % number, b"v")
        engines.freeze(engine)
        wait_until_merged(engine)
        assert engine.table.base.checkpoint_lsn == engine.table.active.lsn
    assert not errors


def test_closing_during_a_checkpoint_loses_nothing(make_engine: Callable[..., Engine], tmp_path: Path) -> None:
    for number in range(4):
        engine = make_engine(checkpoint="process")
        write(engine, 200, 200 * number)
        child = engine.checkpointer.child
        assert child is not None
        engine.close()
        assert child.pid is None or not psutil.pid_exists(child.pid)
        assert check_directory(tmp_path / "data") == []
    assert len(engines.values(make_engine())) == 800


def test_writers_that_outran_a_checkpoint_go_on(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They filled the memtable while no more could be frozen, and wait: no commit comes that would freeze it."""
    engine = make_engine(checkpoint="manual")
    for first in range(0, 192, 64):
        engine.mset([(b"k%06d" % number, b"v" * 1000) for number in range(first, first + 64)])
        engine.commit()
    assert len(engine.table.frozen) == FROZEN_TABLES_MAX
    engine.close()
    checkpoint = CheckpointProcess.checkpoint
    checkpoint_lsn, outrun = threading.Event(), threading.Event()

    def checkpoint_and_wait(self: CheckpointProcess, upto: int, progress: Progress) -> None:
        checkpoint(self, upto, progress)
        checkpoint_lsn.set()
        outrun.wait()

    monkeypatch.setattr(CheckpointProcess, "checkpoint", checkpoint_and_wait)
    engine = make_engine(checkpoint="process")
    assert checkpoint_lsn.wait(WAIT_S)
    number = 192
    while not engine.gate.stalled:
        engine.set(b"k%06d" % number, b"v" * 1000)
        engine.commit()
        number += 1
    outrun.set()
    assert engine.wait_for_room(WAIT_S)
    write(engine, 200, number)


def test_a_child_whose_server_was_killed_ends_and_lets_the_next_one_in(
    make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    """The lock is held until it has ended; the next start waits for that."""
    code = f"""
import os, signal, sys, time
from merklekv.engine.engine import Engine
engine = Engine({str(tmp_path / "data")!r}, memtable_size=1 << 16)
for number in range(100):
    engine.set(b"k%d" % number, b"v" * 1000)
engine.commit()
while engine.checkpointer.child.pid is None:
    time.sleep(0.001)
print(engine.checkpointer.child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
    server = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, check=False, env=os.environ | paths, timeout=60
    )
    assert server.returncode == -signal.SIGKILL
    engine = make_engine(wall_clock=lambda: engines.NOON)
    assert len(engines.values(engine)) == 100
    assert is_gone(int(server.stdout))


def test_two_processes_never_share_a_directory(make_engine: Callable[..., Engine], tmp_path: Path) -> None:
    make_engine(checkpoint="process")
    code = f"from merklekv.engine.engine import Engine\nEngine({str(tmp_path / 'data')!r})"
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
    other = subprocess.run(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, check=False, env=os.environ | paths, timeout=60, text=True
    )
    assert f"in use by process {os.getpid()}; stop it first" in other.stderr
    with pytest.raises(DirectoryLocked, match=f"in use by process {os.getpid()}"):
        make_engine()


def test_a_start_checkpoints_what_the_last_one_left(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    write_count = 0
    while len(engine.table.frozen) < 2:
        engine.set(b"k%d" % write_count, b"v" * 1000)
        engine.commit()
        write_count += 1
    engine.close()
    engine = make_engine(checkpoint="process")
    wait_until_merged(engine)
    assert engine.table.base.live > 100
    assert len(engines.values(engine)) == write_count


def test_waiting_for_room_ends_when_there_is_some(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(checkpoint="process")
    child = engine.checkpointer.child
    assert child is not None
    go_on = threading.Event()
    real = child.checkpoint

    def checkpoint(upto: int, progress: Callable[[float], None]) -> None:
        assert go_on.wait(WAIT_S)
        real(upto, progress)

    child.checkpoint = checkpoint  # type: ignore[method-assign]
    number = 0
    while not engine.gate.stalled:
        engine.set(b"k%d" % number, b"v" * 1000)
        engine.commit()
        number += 1
    with pytest.raises(Stalled):
        engine.set(b"k", b"")
    assert not engine.wait_for_room(0.01)
    go_on.set()
    assert engine.wait_for_room(WAIT_S)
    engine.set(b"k", b"")
