"""`merklekv restore`: a backup comes back whole or not at all, and its node catches up and undoes nothing."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from fixtures.node import NodeFactory, NodeProcess
from fixtures.support import wait_until
from fixtures.tools import TIMEOUT_S, address, contents, fails, filled, opened, root_of, run, succeeds
from merklekv_tool import exit_codes
from merklekv_tool.formats.backup import is_archive

from merklekv.engine.verify.check import check_directory
from merklekv.exit_codes import EXIT_CORRUPT, EXIT_UNWRITABLE
from merklekv.net.client import Client, Reply

NAMES = ["backup", "backup.tar.gz"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and its backups; each test copies what it needs."""
    directory = tmp_path_factory.mktemp("made")
    filled(directory / "data")
    for name in NAMES:
        succeeds("backup", directory / "data", directory / name)
    return directory


# It unpacks, and then waits for the signal, which may come at any time before.
ENDLESS = """
import threading
import merklekv_tool.formats.backup
merklekv_tool.formats.backup.examine = lambda *_: threading.Event().wait()
from merklekv_tool.__main__ import main
main()
"""


def copy_file(source: Path, target: Path) -> Path:
    return Path(shutil.copy(source, target))


def copy_tree(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target))


@pytest.fixture
def data(made: Path, tmp_path: Path) -> Path:
    return copy_tree(made / "data", tmp_path / "data")


@pytest.fixture(params=NAMES)
def backup(request: pytest.FixtureRequest, made: Path, data: Path, tmp_path: Path) -> Path:
    """A backup of either kind."""
    if is_archive(request.param):
        return copy_file(made / request.param, tmp_path / request.param)
    return copy_tree(made / request.param, tmp_path / request.param)


@pytest.fixture
def archive(made: Path, tmp_path: Path) -> Path:
    return copy_file(made / "backup.tar.gz", tmp_path / "backup.tar.gz")


@pytest.fixture
def directory(made: Path, data: Path, tmp_path: Path) -> Path:
    return copy_tree(made / "backup", tmp_path / "backup")


def is_refused(backup: Path, tmp_path: Path, *words: str) -> None:
    """Asserts that nothing was created, and that one line says why."""
    before = sorted(os.listdir(tmp_path))
    fails(exit_codes.EXIT_DUMP, str(backup), *words, done=run("restore", backup, tmp_path / "restored"))
    assert sorted(os.listdir(tmp_path)) == before


def test_what_it_says(backup: Path, tmp_path: Path) -> None:
    told = json.loads(succeeds("restore", backup, tmp_path / "one", "--json"))
    root, _, live, dead = contents(tmp_path / "one")
    assert (told["directory"], told["backup"]) == (str(tmp_path / "one"), str(backup))
    assert (told["root"], told["keys"], told["tombstones"]) == (root.hex(), live, dead)
    assert f"{live:,} keys and {dead:,} deleted ones" in succeeds("restore", backup, tmp_path / "two").decode()
    assert check_directory(tmp_path / "two") == []


def test_into_a_directory_that_is_empty(backup: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    succeeds("restore", backup, tmp_path / "empty")
    assert contents(tmp_path / "empty") == contents(tmp_path / "data")


def test_where_no_directory_is_yet(backup: Path, tmp_path: Path) -> None:
    succeeds("restore", backup, tmp_path / "deep" / "down" / "data")
    assert check_directory(tmp_path / "deep" / "down" / "data") == []


def test_into_the_working_directory(backup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be another one afterwards, and the process in a directory that is gone."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    fails(EXIT_UNWRITABLE, ".: is the working directory", done=run("restore", backup, "."))
    fails(EXIT_UNWRITABLE, f"{place}: is the working directory", done=run("restore", backup, place))
    assert list(place.iterdir()) == []
    succeeds("restore", backup, "data")
    assert check_directory(place / "data") == []


def test_nothing_is_overwritten(backup: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_bytes(b"x")
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("data", "full", "file", "link"):
        done = run("restore", backup, tmp_path / name)
        fails(exit_codes.EXIT_EXISTS, str(tmp_path / name), "nothing is ever overwritten", done=done)
    assert os.listdir(tmp_path / "full") == ["mine"]


def test_a_backup_that_was_opened_since_is_as_good(directory: Path, tmp_path: Path) -> None:
    succeeds("dump", directory, "--output", tmp_path / "dump")
    succeeds("restore", directory, tmp_path / "restored")
    assert contents(tmp_path / "restored") == contents(tmp_path / "data")


def test_a_backup_that_was_written_to_since(directory: Path, tmp_path: Path) -> None:
    with opened(directory) as engine:
        engine.set(b"one", b"more")
    is_refused(directory, tmp_path, "other data than its description says")


def test_damage_in_a_directory(tmp_path: Path) -> None:
    with opened(tmp_path / "data") as engine:
        engine.set(b"unique key", b"unique value")
    succeeds("backup", tmp_path / "data", tmp_path / "backup")
    base = tmp_path / "backup" / "base" / "data.mdb"
    base.write_bytes(base.read_bytes().replace(b"unique value", b"unique VALUE"))
    is_refused(tmp_path / "backup", tmp_path, "damaged", "unique key")


def test_a_table_of_members_that_is_damaged_keeps_nobody_from_the_records(tmp_path: Path) -> None:
    with opened(tmp_path / "data") as engine:
        engine.set(b"a", b"1")
        engine.put_metadata(b"members", b"\xff")
    succeeds("backup", tmp_path / "data", tmp_path / "backup")
    done = run("restore", tmp_path / "backup", tmp_path / "restored")
    assert done.returncode == 0
    assert b"restored: the table of members cannot be read" in done.stderr
    assert b"all records are there" in done.stderr
    assert contents(tmp_path / "restored") == contents(tmp_path / "data")


@pytest.mark.parametrize("name", ["BACKUP", "FORMAT", "base/data.mdb"])
def test_a_pipe_in_the_place_of_a_file(name: str, directory: Path, tmp_path: Path) -> None:
    (directory / name).unlink()
    os.mkfifo(directory / name)
    is_refused(directory, tmp_path, f"{name} is no file")


@pytest.mark.parametrize("share", [0, 10, 50, 99])
def test_a_file_that_was_cut_short(share: int, archive: Path, tmp_path: Path) -> None:
    data = archive.read_bytes()
    archive.write_bytes(data[: len(data) * share // 100])
    is_refused(archive, tmp_path, "damaged, or cut short")


def with_one_byte_changed(data: bytes, at: int) -> bytes:
    """At this place or a little behind: in a run of zeros another distance may mean the same."""
    for place in range(at, len(data)):
        changed = data[:place] + bytes((data[place] ^ 0xFF,)) + data[place + 1 :]
        try:
            if gzip.decompress(changed) != gzip.decompress(data):
                return changed
        except (OSError, EOFError, zlib.error):
            return changed
    raise ValueError("nothing of it counts")


@pytest.mark.parametrize("share", [1, 20, 50, 80, 99])
def test_a_file_with_one_byte_changed(share: int, archive: Path, tmp_path: Path) -> None:
    data = archive.read_bytes()
    archive.write_bytes(with_one_byte_changed(data, len(data) * share // 100))
    is_refused(archive, tmp_path, "damaged")


@pytest.mark.parametrize("size", [1, 8])
def test_a_file_without_its_checksum(size: int, archive: Path, tmp_path: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:-size])
    is_refused(archive, tmp_path, "damaged, or cut short")


def repacked(archive: Path, **files: bytes) -> None:
    """Adds files to a compressed backup, or puts others in the place of what it has; empty: leaves them out."""
    names = {name.replace("__", "/"): data for name, data in files.items()}
    with tarfile.open(archive) as packed:
        there = {member.name: packed.extractfile(member).read() for member in packed}  # type: ignore[union-attr]
    with tarfile.open(archive, "w:gz") as packed:
        for name, data in (there | names).items():
            if data:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                packed.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "log/../../escaped", "outbox", "base/lock.mdb", "log"])
def test_files_that_have_no_business_in_it(name: str, archive: Path, tmp_path: Path) -> None:
    repacked(archive, **{name: b"x"})
    is_refused(archive, tmp_path, name, "no part of a backup")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE])
def test_headers_that_mean_gigabytes(kind: bytes, archive: Path, tmp_path: Path) -> None:
    """`tarfile` would take as much memory, or write as many zeros."""
    member = tarfile.TarInfo("base/data.mdb")
    member.type, member.size = kind, 4 << 30
    archive.write_bytes(gzip.compress(member.tobuf(tarfile.GNU_FORMAT) + bytes(100_000)))
    is_refused(archive, tmp_path)


def test_a_node_id_that_is_none(archive: Path, tmp_path: Path) -> None:
    """A node would not start on it; with another node id it would."""
    repacked(archive, **{"node-id": b"a/b\n"})
    done = run("restore", archive, tmp_path / "restored")
    fails(EXIT_CORRUPT, f"{archive}/node-id: contains 'a/b'", done=done)
    succeeds("restore", archive, tmp_path / "restored", "--new-node-id")


def test_a_link_in_the_place_of_a_file(archive: Path, tmp_path: Path) -> None:
    with tarfile.open(archive, "w:gz") as packed:
        member = tarfile.TarInfo("FORMAT")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        packed.addfile(member)
    is_refused(archive, tmp_path, "FORMAT", "no part of a backup")


def test_descriptions_that_are_none(archive: Path, tmp_path: Path) -> None:
    whole = archive.read_bytes()
    for description, said in (
        (b"", "has no BACKUP"),
        (b"no JSON", "description BACKUP is damaged"),
        (b"[]", "description BACKUP is damaged"),
        (b"[" * 50_000, "description BACKUP is damaged"),
        (b'{"merklekv_backup": 2}', "description BACKUP is damaged"),
        (b'{"merklekv_backup": 2, "root": ""}', "description BACKUP is damaged"),
        (b'{"merklekv_backup": 3, "root": ""}', "a backup of version 3: this release reads 2"),
    ):
        archive.write_bytes(whole)
        repacked(archive, BACKUP=description)
        is_refused(archive, tmp_path, said)


def test_what_is_no_backup(data: Path, tmp_path: Path) -> None:
    is_refused(data, tmp_path, "it has no BACKUP")
    (tmp_path / "some.gz").write_bytes(gzip.compress(b"something else"))
    is_refused(tmp_path / "some.gz", tmp_path, "no backup")
    (tmp_path / "text").write_text("something else")
    is_refused(tmp_path / "text", tmp_path, f"{tmp_path / 'text'}: no backup: no compressed file")
    missing = tmp_path / "missing"
    fails(EXIT_UNWRITABLE, f"{missing}: no such file", done=run("restore", missing, tmp_path / "restored"))


def test_a_place_where_nothing_can_be_made(backup: Path) -> None:
    done = run("restore", backup, "/proc/restored")
    assert done.stderr == b"merklekv-tool: /proc/restored: No such file or directory\n"
    assert done.returncode == EXIT_UNWRITABLE


def test_interrupted_it_leaves_nothing(tmp_path: Path) -> None:
    with opened(tmp_path / "data") as engine:
        for start in range(0, 100_000, 1000):
            engine.mset([(b"key:%d" % number, b"x" * 100) for number in range(start, start + 1000)])
    succeeds("backup", tmp_path / "data", tmp_path / "backup")
    shutil.rmtree(tmp_path / "data")
    words = ["restore", str(tmp_path / "backup"), str(tmp_path / "restored")]
    with subprocess.Popen([sys.executable, "-c", ENDLESS, *words]) as process:
        wait_until(lambda: len(os.listdir(tmp_path)) > 1, what="the beginnings of a directory")
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT_S) == exit_codes.EXIT_INTERRUPTED
    assert os.listdir(tmp_path) == ["backup"]


def test_without_room_it_leaves_nothing(backup: Path, tmp_path: Path) -> None:
    before = sorted(os.listdir(tmp_path))
    done = run("restore", backup, tmp_path / "restored", file_size=10_000)
    assert done.returncode == EXIT_UNWRITABLE, done.stderr.decode()
    assert sorted(os.listdir(tmp_path)) == before


def test_names_of_compressed_files() -> None:
    assert [name for name in ("a", "a.tar", "a.tar.gz", "a.tgz", "a.gz", "a.tar.gz/b") if is_archive(name)] == [
        "a.tar.gz",
        "a.tgz",
    ]


# -- what becomes of the node ------------------------------------------------------------------------------------------


def ask(node: NodeProcess, *words: str) -> Reply:
    with Client("127.0.0.1", node.port) as client:
        return client.call(*(word.encode() for word in words))


def statistics(node: NodeProcess) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(succeeds("stats", address(node), "--json"))
    return told


def exchange(one: NodeProcess, other: NodeProcess) -> None:
    """Exchanges in both directions until both nodes have collected what they can."""
    for _ in range(3):
        ask(one, "SYNC", "127.0.0.1", str(other.port))
        ask(other, "SYNC", "127.0.0.1", str(one.port))


@pytest.mark.parametrize(("kind", "name"), [("directory", "backup"), ("port", "backup.tar.gz")])
def test_it_catches_up_and_brings_nothing_back(kind: str, name: str, node_factory: NodeFactory, tmp_path: Path) -> None:
    """Not even what the cluster has deleted and collected in the meantime."""
    one, other = node_factory(), node_factory()
    for number in range(100):
        ask(one, "SET", f"key:{number}", "old")
    exchange(one, other)
    ask(one, "SET", "only in the backup", "x")  # only the lost node had it
    succeeds("backup", address(one) if kind == "port" else one.directory, tmp_path / name)
    exchange(one, other)
    for number in range(50):
        ask(other, "DEL", f"key:{number}")
    ask(other, "SET", "new", "y")
    exchange(one, other)
    wait_until(lambda: statistics(other)["db_tombstones"] == 0, what="the deleted keys to be collected")
    expected = root_of(other)
    one.kill()
    succeeds("restore", tmp_path / name, tmp_path / "restored")
    back = node_factory(directory=tmp_path / "restored")
    assert ask(back, "EXISTS", "key:0", "new", "only in the backup") == 2
    assert statistics(back)["node_id"] == (one.directory / "node-id").read_text().strip()
    exchange(back, other)
    assert ask(back, "EXISTS", "key:0", "new", "only in the backup", "key:99") == 3
    assert root_of(back) == root_of(other) == expected


def test_versions_are_never_made_twice(node_factory: NodeFactory, tmp_path: Path) -> None:
    node = node_factory()
    ask(node, "SET", "key", "1")
    succeeds("backup", address(node), tmp_path / "backup")
    ask(node, "SET", "later", "1")
    node.kill()
    succeeds("restore", tmp_path / "backup", tmp_path / "restored")
    back = node_factory(directory=tmp_path / "restored")
    ask(back, "SET", "later", "2")
    versions = [
        json.loads(line)["version"]
        for place in (node, back)
        for line in succeeds("log", place.directory, "--key", "later", "--json").splitlines()
    ]
    op_ids = [bytes.fromhex(version.split("-")[1]) for version in versions]
    assert len({op_id[:8] for op_id in op_ids}) == 1, "the data directory that wrote them"
    assert len({op_id[8:12] for op_id in op_ids}) == 2, "the run of its process"


def test_with_a_new_node_id(node_factory: NodeFactory, tmp_path: Path) -> None:
    node = node_factory()
    ask(node, "SET", "key", "1")
    succeeds("backup", address(node), tmp_path / "backup")
    succeeds("restore", tmp_path / "backup", tmp_path / "copy", "--new-node-id")
    copy = node_factory(directory=tmp_path / "copy")
    assert statistics(copy)["node_id"] != statistics(node)["node_id"]
    ask(copy, "SET", "more", "2")
    exchange(node, copy)
    assert ask(node, "GET", "more") == b"2"
    assert root_of(copy) == root_of(node)


def test_what_was_published_is_left_to_the_exchange(node_factory: NodeFactory, tmp_path: Path) -> None:
    with opened(tmp_path / "data") as engine:
        engine.set(b"key", b"x")
        engine.retention.subscribe()
        engine.set(b"not published", b"x")
    succeeds("backup", tmp_path / "data", tmp_path / "backup")
    succeeds("restore", tmp_path / "backup", tmp_path / "restored")
    with opened(tmp_path / "restored") as engine:
        assert engine.retention.cursor is None
        assert engine.retention.subscribe() == engine.retention.end
