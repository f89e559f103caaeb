"""`compact`: a directory becomes as small as it can be, with the same data; and what it refuses."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures import engines
from fixtures.node import NodeProcess, clean_environment
from fixtures.support import wait_until
from fixtures.tools import TOOL, address, fails, opened, run, succeeds
from merklekv_tool.exit_codes import EXIT_INTERRUPTED, EXIT_TERMINATED

from merklekv.engine.base.environment import DATA_FILE
from merklekv.engine.engine import Engine
from merklekv.engine.headroom import RESERVE_FILE
from merklekv.exit_codes import EXIT_FORMAT, EXIT_LOCKED, EXIT_USAGE

KEYS = 4000
SIGNALLED = """
import os
import sys

import merklekv_tool.cli
from merklekv.engine import failpoints

point, number = sys.argv[1], int(sys.argv[2])
failpoints.reached = lambda name: os.kill(os.getpid(), number) if name == point else None
sys.argv[1:] = sys.argv[3:]
merklekv_tool.cli.main()
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Half of its records are gone, here and there, which frees hardly a page; that they are is only in the log."""
    place = tmp_path / "data"
    engine = Engine(place, checkpoint="manual", durability="never")
    for number in range(KEYS):
        engine.set(b"%06d" % number, b"v" * 1000)
    engine.commit()
    engine.checkpoint_now()
    for number in random.Random(3).sample(range(KEYS), KEYS // 2):
        engine.delete(b"%06d" % number)
    engine.put_metadata(b"name", b"value")
    engine.close()
    return place


def contents(directory: Path) -> tuple[dict[bytes, bytes], bytes, bytes]:
    with opened(directory) as engine:
        return engines.everything(engine), engine.root(), engine.metadata[b"name"]


def test_compact_keeps_everything(directory: Path) -> None:
    before = contents(directory)
    size = (directory / "base" / DATA_FILE).stat().st_size
    reserve = directory / "log" / RESERVE_FILE  # of a node; the next one makes its own
    reserve.write_bytes(bytes(1 << 20))
    said = succeeds("compact", directory).decode()
    assert said.startswith(f"{directory}: takes ")
    assert " bytes on disk, before " in said
    assert (directory / "base" / DATA_FILE).stat().st_size < 0.7 * size
    assert not reserve.exists()
    assert sorted(os.listdir(directory)) == ["FORMAT", "LOCK", "base", "log"]
    assert succeeds("verify", directory).decode() == f"{directory}: no problems found\n"
    assert contents(directory) == before
    again = json.loads(succeeds("compact", directory, "--json"))
    assert abs(again["bytes"] - again["bytes_before"]) < 100_000
    assert contents(directory) == before


@pytest.mark.parametrize("point", ["part", "written", "moved", "swapped"])
def test_compact_killed_at_any_moment_loses_nothing(directory: Path, point: str) -> None:
    before = contents(directory)
    armed = clean_environment() | {"MERKLEKV_TEST_CRASH_AT": f"compaction.{point}"}
    done = subprocess.run([*TOOL, "compact", directory], env=armed, capture_output=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    left = {"part": "base.new", "written": "base.new", "moved": "base.new", "swapped": "base.old"}[point]
    checked = run("verify", directory)
    assert checked.returncode == 0
    assert f"{left}: left by a compaction that was cut off, a start tidies it up" in checked.stderr.decode()
    succeeds("backup", directory, directory.parent / "copy")
    assert contents(directory.parent / "copy") == before
    assert contents(directory) == before
    succeeds("compact", directory)
    assert contents(directory) == before


@pytest.mark.parametrize("point", ["part", "written", "moved", "swapped"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_at_any_point_leaves_the_old_base_or_the_new(
    directory: Path, point: str, number: signal.Signals
) -> None:
    before = contents(directory)
    inode = (directory / "base").stat().st_ino
    armed = [sys.executable, "-c", SIGNALLED, f"compaction.{point}", str(int(number)), "compact", str(directory)]
    done = subprocess.run(armed, capture_output=True, timeout=120, check=False)
    assert done.returncode == {signal.SIGTERM: EXIT_TERMINATED, signal.SIGINT: EXIT_INTERRUPTED}[number], done.stderr
    assert sorted(os.listdir(directory)) == ["FORMAT", "LOCK", "base", "log"]
    assert ((directory / "base").stat().st_ino == inode) == (point == "part")
    assert contents(directory) == before


def test_compact_that_is_interrupted_leaves_nothing(directory: Path) -> None:
    before = contents(directory)
    with subprocess.Popen([*TOOL, "compact", directory], stderr=subprocess.PIPE) as process:
        wait_until(lambda: (directory / "base.new").exists() or process.poll() is not None, what="the new base")
        process.send_signal(signal.SIGTERM)
    assert sorted(os.listdir(directory)) == ["FORMAT", "LOCK", "base", "log"]
    assert contents(directory) == before


def test_compact_refuses_what_is_no_closed_directory(node: NodeProcess, tmp_path: Path) -> None:
    fails(EXIT_LOCKED, f"in use by process {node.pid}; stop it first", done=run("compact", node.directory))
    assert "HOST:PORT" not in run("compact", node.directory).stderr.decode()
    fails(EXIT_USAGE, "give its directory when it is stopped", done=run("compact", address(node)))
    fails(EXIT_FORMAT, "there is no such directory", done=run("compact", tmp_path / "none"))
    assert not (tmp_path / "none").exists()
