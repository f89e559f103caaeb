"""A node in this process: what its start leaves behind when a part of it fails."""

from __future__ import annotations

import itertools
import os
import threading
from pathlib import Path

import pytest
from fixtures.support import free_port, wait_until

from merklekv.node import Node
from merklekv.settings import ReplicationSettings, Settings


def test_a_start_for_which_the_threads_run_out_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it fails: at a second worker, in the middle of the replicator, or at the last part."""
    replication = ReplicationSettings(enabled=True, mqtt_broker="127.0.0.1", mqtt_port=free_port(), client_id="a")
    settings = Settings(port=0, storage_path=tmp_path / "data", threads=2, replication=replication)
    start = threading.Thread.start
    failed: list[str] = []
    allowed: list[None] = []

    def start_if_allowed(thread: threading.Thread) -> None:
        if threading.current_thread() is threading.main_thread():
            if not allowed:
                failed.append(thread.name)
                raise RuntimeError("can't start new thread")
            allowed.pop()
        start(thread)

    wait_until(lambda: all(thread.name != "child-log" for thread in threading.enumerate()), what="earlier children")
    monkeypatch.setattr(threading.Thread, "start", start_if_allowed)
    for count in itertools.count():
        allowed[:] = [None] * count
        node = Node(settings)
        threads, files = set(threading.enumerate()), open_files()
        try:
            node.start()
        except RuntimeError:
            wait_until(lambda threads=threads: set(threading.enumerate()) <= threads, what="the end of its threads")
            # No more than before; those of earlier tests may end meanwhile.
            wait_until(lambda files=files: open_files() <= files, what=f"the end of its files, {failed[-1]}")
        else:
            node.stop()
            break
    assert {"merklekv-worker-0", "merklekv-worker-1", "replication-watchdog", "scrub"} <= set(failed), failed


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))
