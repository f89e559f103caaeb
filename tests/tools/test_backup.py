"""`merklekv backup`: exact and whole, of a node under load too, and never half there or over something else."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest
from fixtures.engines import LATER_MS, checkpoint
from fixtures.node import NodeFactory, NodeProcess
from fixtures.support import wait_until
from fixtures.tools import TIMEOUT_S, address, contents, fails, fill, filled, opened, root_of, run, succeeds
from merklekv_tool import exit_codes
from merklekv_tool.formats import backup as backups

from merklekv.engine.format import OP_SET
from merklekv.engine.verify.check import check_directory
from merklekv.exit_codes import EXIT_CORRUPT, EXIT_FORMAT, EXIT_UNWRITABLE, EXIT_USAGE
from merklekv.net.client import Client

DESTINATIONS = ["backup", "backup.tar.gz", "backup.tgz"]


def backed_up(source: str | Path, target: Path) -> dict[str, Any]:
    """Makes a backup; returns the tool's summary."""
    told: dict[str, Any] = json.loads(succeeds("backup", source, target, "--json"))
    return told


def restored(backup: Path, target: Path) -> Path:
    succeeds("restore", backup, target)
    return target


# It copies, and then waits for the signal, which may come at any time before.
ENDLESS = """
import threading
import merklekv_tool.formats.backup
merklekv_tool.formats.backup.complete = lambda *_: threading.Event().wait()
from merklekv_tool.__main__ import main
main()
"""


def left_behind(directory: Path) -> list[str]:
    return [name for name in os.listdir(directory) if name.startswith(".")]


@pytest.mark.parametrize("name", DESTINATIONS)
@pytest.mark.parametrize("kind", ["closed", "open", "port"])
def test_all_of_it_is_there(kind: str, name: str, node_factory: NodeFactory, tmp_path: Path) -> None:
    """Keys of all sorts, tombstones, truncation version, GC horizon, metadata; in the base or only in the log."""
    data = tmp_path / "data"
    with opened(data) as engine:
        fill(engine)
        engine.put_metadata(b"fact", b"\x00\xff kept")
        engine.raise_gc_horizon(engine.clock.newest - 1)
        while engine.collect_tombstones():
            pass
        engine.set(b"last", b"one")
        metadata = engine.metadata
    held = contents(data)
    source = str(data)
    if kind != "closed":
        node = node_factory(directory=data)
        source = address(node) if kind == "port" else source
    told = backed_up(source, tmp_path / name)
    assert (bytes.fromhex(told["root"]), bytes.fromhex(told["truncation"]), told["keys"], told["tombstones"]) == held
    copy = restored(tmp_path / name, tmp_path / "restored")
    assert check_directory(copy) == []
    assert contents(copy) == held
    with opened(copy) as engine:
        assert engine.metadata.items() >= metadata.items()
        assert engine.get(b"last") == b"one"
    assert left_behind(tmp_path) == []


def test_many_keys_that_expire_together(tmp_path: Path) -> None:
    """Their list fills pages of its own in the base."""
    with opened(tmp_path / "data") as engine:
        for number in range(3_000):
            engine.set(b"key:%d" % number, b"v", LATER_MS)
        engine.commit()
        checkpoint(engine)
        root = engine.root()
    assert bytes.fromhex(backed_up(tmp_path / "data", tmp_path / "backup")["root"]) == root
    assert check_directory(restored(tmp_path / "backup", tmp_path / "copy")) == []


def test_a_directory_backup_is_a_data_directory(tmp_path: Path) -> None:
    filled(tmp_path / "data")
    succeeds("backup", tmp_path / "data", tmp_path / "backup")
    names = sorted(str(path.relative_to(tmp_path / "backup")) for path in (tmp_path / "backup").rglob("*"))
    assert [name for name in names if not name.endswith(".log")] == ["BACKUP", "FORMAT", "base", "base/data.mdb", "log"]
    succeeds("verify", tmp_path / "backup")
    assert succeeds("dump", tmp_path / "backup") == succeeds("dump", tmp_path / "data")


def test_what_the_description_says(node: NodeProcess, tmp_path: Path) -> None:
    with node.connect() as client:
        client.ask("SET key value")
    told = backed_up(address(node), tmp_path / "backup.tar.gz")
    with tarfile.open(tmp_path / "backup.tar.gz") as archive:
        assert archive.getnames()[0] == "BACKUP"
        file = archive.extractfile("BACKUP")
        assert file is not None
        description = json.loads(file.read())
    assert description.items() <= told.items()
    assert description["source"] == address(node)
    assert description["node_id"] == (node.directory / "node-id").read_text().strip()
    assert (description["keys"], description["tombstones"]) == (1, 0)
    assert told["bytes"] == (tmp_path / "backup.tar.gz").stat().st_size


class Writers:
    """Clients that write numbers, each to its own key, one after the other; `acknowledged` is the last of each."""

    def __init__(self, port: int, count: int = 4) -> None:
        self.acknowledged = [0] * count
        self._port = port
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(number,)) for number in range(count)]

    def _write(self, number: int) -> None:
        with Client("127.0.0.1", self._port) as client:
            value = 0
            while not self._stopping.is_set():
                value += 1
                filling = b"x" * 500
                client.call(b"MSET", b"counter:%d" % number, b"%d" % value, b"f:%d:%d" % (number, value), filling)
                client.call(b"DEL", b"f:%d:%d" % (number, value - 10))
                self.acknowledged[number] = value

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.parametrize("kind", ["open", "port"])
@pytest.mark.parametrize("memtable_size", ["64MiB", "256KiB"])
def test_under_load_it_is_one_moment(kind: str, memtable_size: str, node_factory: NodeFactory, tmp_path: Path) -> None:
    """It has every write acknowledged before, and of each client everything up to some write and nothing after it."""
    with opened(tmp_path / "data") as engine:
        fill(engine)
        engine.retention.subscribe()  # so that the log stays for a while, as where it is published
    node = node_factory("--set", f"memtable_size={memtable_size}", directory=tmp_path / "data")
    with Writers(node.port) as writers:
        wait_until(lambda: min(writers.acknowledged) > 50, what="writes")
        before = after = list(writers.acknowledged)
        while max(after) == max(before):  # a disk may hold up all writers for as long as a backup takes
            shutil.rmtree(tmp_path / "backup", ignore_errors=True)
            before = list(writers.acknowledged)
            backed_up(address(node) if kind == "port" else node.directory, tmp_path / "backup")
            after = list(writers.acknowledged)
    with opened(restored(tmp_path / "backup", tmp_path / "copy")) as engine:
        for number, acknowledged in enumerate(before):
            value = int(engine.get(b"counter:%d" % number) or b"0")
            assert acknowledged <= value <= after[number] + 1
            kept = [back for back in range(-1, 12) if engine.exists(b"f:%d:%d" % (number, value - back))]
            assert kept in (list(range(10)), list(range(11)))


def test_the_node_goes_on_as_before(node_factory: NodeFactory, tmp_path: Path) -> None:
    with opened(tmp_path / "data") as engine:
        fill(engine)
    node = node_factory(directory=tmp_path / "data")
    before = root_of(node)
    sources: tuple[Path | str, ...] = (node.directory, address(node))
    for number, source in enumerate(sources):
        succeeds("backup", source, tmp_path / f"backup-{number}")
    assert root_of(node) == before
    with node.connect() as client:
        assert client.ask("SET after 1") == "OK"
    assert node.stop() == 0
    assert check_directory(node.directory) == []


def test_a_closed_directory_is_not_touched(tmp_path: Path) -> None:
    """A torn tail is cut off in the copy only."""
    filled(tmp_path / "data")
    held = contents(tmp_path / "data")
    segment = max((tmp_path / "data" / "log").glob("*.log"))
    segment.write_bytes(segment.read_bytes() + b"MKVF torn")
    before = {path: path.read_bytes() for path in (tmp_path / "data").rglob("*.*") if path.name != "lock.mdb"}
    told = backed_up(tmp_path / "data", tmp_path / "backup")
    assert bytes.fromhex(told["root"]) == held[0]
    assert all(path.read_bytes() == data for path, data in before.items())


def test_a_damaged_directory_gives_no_backup(tmp_path: Path) -> None:
    with opened(tmp_path / "data") as engine:
        fill(engine)
        engine.set(b"unique key", b"unique value")
        engine.checkpoint_now()
    base = tmp_path / "data" / "base" / "data.mdb"
    base.write_bytes(base.read_bytes().replace(b"unique value", b"unique VALUE"))
    done = run("backup", tmp_path / "data", tmp_path / "backup")
    fails(EXIT_CORRUPT, "there is no backup", "unique key", done=done)
    assert sorted(os.listdir(tmp_path)) == ["data"]


def test_a_segment_that_is_missing(tmp_path: Path) -> None:
    with opened(tmp_path / "data") as engine:
        engine.retention.subscribe()
        for key in (b"a", b"b", b"c"):
            engine.merge([(OP_SET, key, b"")], b"x")
            engine.set(key, b"x")
            engine.commit()
            engine.checkpointer.freeze() if key != b"c" else None
    segments = sorted((tmp_path / "data" / "log").glob("*.log"))
    assert len(segments) == 3
    for missing in segments[:2]:
        data = missing.read_bytes()
        missing.unlink()
        done = run("backup", tmp_path / "data", tmp_path / "backup")
        fails(EXIT_CORRUPT, str(int(missing.stem)), "missing", done=done)
        missing.write_bytes(data)
    succeeds("backup", tmp_path / "data", tmp_path / "backup")


@pytest.mark.parametrize("name", DESTINATIONS)
@pytest.mark.parametrize("there", ["file", "directory", "link"])
def test_nothing_is_overwritten(there: str, name: str, tmp_path: Path) -> None:
    filled(tmp_path / "data")
    target = tmp_path / name
    if there == "file":
        target.write_bytes(b"mine")
    elif there == "directory":
        target.mkdir()
    else:
        target.symlink_to("nowhere")
    done = run("backup", tmp_path / "data", target)
    fails(exit_codes.EXIT_EXISTS, str(target), "nothing is ever overwritten", done=done)
    assert there != "file" or target.read_bytes() == b"mine"
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "number", "status"),
    [
        ("backup", signal.SIGINT, exit_codes.EXIT_INTERRUPTED),
        ("backup.tar.gz", signal.SIGINT, exit_codes.EXIT_INTERRUPTED),
        ("backup", signal.SIGTERM, exit_codes.EXIT_TERMINATED),
        ("backup", signal.SIGHUP, exit_codes.EXIT_TERMINATED),
        ("backup", signal.SIGQUIT, exit_codes.EXIT_TERMINATED),
    ],
)
def test_interrupted_it_leaves_nothing(name: str, number: signal.Signals, status: int, tmp_path: Path) -> None:
    with opened(tmp_path / "data") as engine:
        for start in range(0, 100_000, 1000):
            engine.mset([(b"key:%d" % number, b"x" * 100) for number in range(start, start + 1000)])
    words = ["backup", str(tmp_path / "data"), str(tmp_path / name)]
    with subprocess.Popen([sys.executable, "-c", ENDLESS, *words]) as process:
        wait_until(lambda: left_behind(tmp_path), what="the beginnings of a backup")
        process.send_signal(number)
        assert process.wait(TIMEOUT_S) == status
    assert os.listdir(tmp_path) == ["data"]


def test_two_backups_in_one_directory_have_a_draft_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two containers may have processes of one number."""
    target = tmp_path / "backup"
    with backups.drafted(target, "data") as first:
        with backups.drafted(target, "data") as second:
            assert {first.name, second.name} == {*left_behind(tmp_path)}
        assert left_behind(tmp_path) == [first.name]
        monkeypatch.setattr(backups, "draft_of", lambda path: first)
        with pytest.raises(FileExistsError), backups.drafted(target, "data"):
            pass
        assert left_behind(tmp_path) == [first.name]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", DESTINATIONS[:2])
def test_without_room_it_leaves_nothing(name: str, tmp_path: Path) -> None:
    filled(tmp_path / "data")
    done = run("backup", tmp_path / "data", tmp_path / name, file_size=100_000)
    assert done.returncode == EXIT_UNWRITABLE, done.stderr.decode()
    assert os.listdir(tmp_path) == ["data"]


def test_what_may_not_be_read(tmp_path: Path) -> None:
    """A directory without read permission is an error, and never taken for an empty one."""
    data = tmp_path / "data"
    filled(data)
    for part, mode, said in (
        ("base/lock.mdb", 0o444, "be the node's user"),
        ("base/data.mdb", 0o000, "no permission to use it; chmod"),
        ("log", 0o000, "log: no permission to use it; chmod"),
        (".", 0o000, "data: cannot be read: Permission denied"),
    ):
        before = (data / part).stat().st_mode
        (data / part).chmod(mode)
        done = run("backup", data, tmp_path / "backup", powers=False)
        (data / part).chmod(before)
        fails(EXIT_UNWRITABLE, said, done=done)
        assert os.listdir(tmp_path) == ["data"]


def test_wrong_places(tmp_path: Path) -> None:
    filled(tmp_path / "data")
    fails(EXIT_UNWRITABLE, "no such directory", done=run("backup", tmp_path / "data", tmp_path / "no" / "backup"))
    fails(EXIT_FORMAT, "neither a data directory nor", done=run("backup", tmp_path / "missing", tmp_path / "backup"))
    fails(exit_codes.EXIT_UNREACHABLE, "refused", done=run("backup", "127.0.0.1:1", tmp_path / "backup"))
    assert os.listdir(tmp_path) == ["data"]


@pytest.mark.parametrize("name", ["backup.tar", "backup.gz", "backup.tar.zst", "backup.zip"])
def test_a_name_that_promises_another_kind_of_file(name: str, tmp_path: Path) -> None:
    filled(tmp_path / "data")
    fails(EXIT_USAGE, name, "ends in .tar.gz or .tgz", done=run("backup", tmp_path / "data", tmp_path / name))
    assert os.listdir(tmp_path) == ["data"]


def test_within_what_is_backed_up(tmp_path: Path) -> None:
    data = tmp_path / "data"
    filled(data)
    before = sorted(os.listdir(data))
    for place in (data / "backup", data / "log" / "backup.tgz", data / ".." / "data" / "backup"):
        fails(EXIT_USAGE, str(place), f"is within {data}", done=run("backup", data, place))
    assert sorted(os.listdir(data)) == before


def test_a_backup_of_another_locale(tmp_path: Path) -> None:
    filled(tmp_path / "data")
    (tmp_path / "data" / "node-id").write_bytes("käse\n".encode())
    words = [sys.executable, "-m", "merklekv_tool", "backup", str(tmp_path / "data"), str(tmp_path / "backup")]
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run(words, env=os.environ | plain, timeout=TIMEOUT_S, capture_output=True, check=True)
    assert json.loads((tmp_path / "backup" / "BACKUP").read_bytes())["node_id"] == "käse"
    assert contents(restored(tmp_path / "backup", tmp_path / "restored")) == contents(tmp_path / "data")
