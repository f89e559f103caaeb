"""Damage to the files of a real node: what a crash can leave is repaired, everything else is refused and named.

A crash can cut the last frame of the log anywhere. It cannot change a byte in the middle of a segment that had been
synced, nor one of the base.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.crash_harness import SMALL_MEMTABLE, wait_until_merged
from fixtures.node import NodeFactory, clean_environment

from merklekv.engine.base.environment import DATA_FILE
from merklekv.engine.engine import Engine
from merklekv.engine.log.segment import Segment, list_segments, segment_path
from merklekv.engine.verify.check import check_directory
from merklekv.errors import Corruption
from merklekv.exit_codes import EXIT_CORRUPT, EXIT_STORAGE
from merklekv.net.client import Client, Unreachable

KEYS = 12
LAST = b"last"
ZEROS = 4096
FILLERS = 1000
META_PAGES = 8192  # bytes


@pytest.fixture
def made_by_a_node(node_factory: NodeFactory) -> Path:
    """A data directory with a commit for each key, `LAST` behind them, left by kill -9."""
    node = node_factory()
    with Client("127.0.0.1", node.port) as client:
        for number in range(KEYS):
            client.call(b"SET", b"key:%d" % number, b"value %d" % number)
        client.call(b"MSET", LAST, b"whole", b"and " + LAST, b"whole")
    node.kill()
    return node.directory


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Path]:
    """A path for copies, in memory where that is possible: hundreds of them are opened, and each open syncs."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as directory:
        yield Path(directory) / "copy"


def fresh(original: Path, copy: Path) -> Path:
    """Puts a copy there, in place of the one before; its log segment."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(original, copy)
    (lsn,) = list_segments(copy / "log")
    return segment_path(copy / "log", lsn)


def frames_of(segment: Path) -> list[tuple[int, int]]:
    """Where each frame begins and ends."""
    with Segment(segment) as opened:
        return [(frame.position, frame.end) for frame in opened.frames()]


@pytest.mark.parametrize("behind", [b"", bytes(ZEROS), b"\xa5" * 100], ids=["nothing", "reserved room", "garbage"])
def test_the_last_frame_cut_at_every_byte(behind: bytes, made_by_a_node: Path, copy: Path) -> None:
    """All or none of the last commit is there, everything before it is, and writing goes on."""
    begin, end = frames_of(fresh(made_by_a_node, copy))[-1]
    for cut in range(begin, end):
        segment = fresh(made_by_a_node, copy)
        with segment.open("r+b") as file:
            file.truncate(cut)
            file.seek(cut)
            file.write(behind)
        assert check_directory(copy) == [], cut
        for value in (b"once", b"twice"):
            engine = Engine(copy, checkpoint="manual")
            assert engine.get(LAST) is None, cut
            assert engine.get(b"and " + LAST) is None, cut
            assert all(engine.get(b"key:%d" % number) == b"value %d" % number for number in range(KEYS)), cut
            assert engine.live_count == KEYS + (value == b"twice"), cut
            engine.set(b"after", value)
            engine.commit()
            engine.close()
        assert check_directory(copy) == [], cut


def flip(file: Path, position: int) -> None:
    """Changes one bit."""
    with file.open("r+b") as opened:
        opened.seek(position)
        (byte,) = opened.read(1)
        opened.seek(position)
        opened.write(bytes((byte ^ 0x10,)))


def test_any_flipped_byte_in_the_middle_of_a_segment_is_refused(made_by_a_node: Path, copy: Path) -> None:
    begin, end = frames_of(fresh(made_by_a_node, copy))[KEYS // 2]
    for position in range(begin, end):
        segment = fresh(made_by_a_node, copy)
        flip(segment, position)
        before = segment.read_bytes()
        with pytest.raises(Corruption, match=f"{segment}.* byte {begin}\\b"):
            Engine(copy, checkpoint="manual")
        assert segment.read_bytes() == before, "a refused start changes nothing"
        assert any(str(segment) in problem for problem in check_directory(copy)), position


def test_a_node_says_where_the_log_is_damaged(made_by_a_node: Path, node_factory: NodeFactory) -> None:
    (lsn,) = list_segments(made_by_a_node / "log")
    segment = segment_path(made_by_a_node / "log", lsn)
    begin, end = frames_of(segment)[1]
    flip(segment, end - 1)
    node = node_factory(start=False, directory=made_by_a_node)
    node.launch()
    assert node.wait() == EXIT_CORRUPT
    (line,) = (line for line in node.output().splitlines() if line.startswith("merklekv: "))
    assert str(segment) in line
    assert f"byte {begin}" in line
    assert "merklekv verify" in line
    done = verify(made_by_a_node)
    assert done.returncode == 1
    assert str(segment) in done.stdout


def test_a_base_that_is_damaged_while_the_node_runs_ends_it(node_factory: NodeFactory) -> None:
    """The checkpoint process finds it: no write can be merged any more."""
    node = node_factory(*SMALL_MEMTABLE)
    base = node.directory / "base" / DATA_FILE
    with Client("127.0.0.1", node.port) as client:
        write_values(client, 200)
        wait_until_merged(node)  # or LMDB would write one of the two pages anew
        with base.open("r+b") as file:
            file.write(b"\xff" * META_PAGES)
        with pytest.raises(Unreachable):
            write_values(client, 10_000)
    assert node.wait() == EXIT_STORAGE
    assert f"{base}: " in node.output()
    assert "does not begin with the two meta pages of LMDB" in node.output()


def write_values(client: Client, count: int) -> None:
    for number in range(count):
        client.call(b"SET", b"key:%d" % number, b"v" * 1000)


def verify(directory: Path) -> subprocess.CompletedProcess[str]:
    """`merklekv verify`."""
    command = [sys.executable, "-m", "merklekv_tool", "verify", str(directory)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=clean_environment(), check=False)


def test_a_flipped_byte_in_a_record_of_the_base_is_found_and_named(node_factory: NodeFactory) -> None:
    node = node_factory(*SMALL_MEMTABLE)
    marked = b"a value that is found in the file"
    with Client("127.0.0.1", node.port) as client:
        client.call(b"SET", b"the key", marked)
        client.send([b"SET", b"key:%d" % number, bytes(100)] for number in range(FILLERS))
        for _ in range(FILLERS):
            client.receive()
    data = node.directory / "base" / "data.mdb"
    wait_until_merged(node)
    assert marked in data.read_bytes()
    assert node.stop() == 0
    assert verify(node.directory).returncode == 0
    contents = data.read_bytes()
    position = contents.find(marked)
    while position >= 0:  # every copy of the page: which of them LMDB uses is its own business
        flip(data, position)
        position = contents.find(marked, position + 1)
    done = verify(node.directory)
    assert done.returncode == 1, done.stderr
    assert "b'the key'" in done.stdout
    assert "digest" in done.stdout
