"""What may be opened as a data directory, and that one process has it at a time."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures import engines
from fixtures.support import WAIT_S, wait_until
from lmdb.verify import verify

from merklekv.engine import directory as directory_module
from merklekv.engine.directory import DataDirectory, give_to_owner, require_format
from merklekv.engine.engine import Engine
from merklekv.engine.lmdb_file import DAMAGE_SIGNALS
from merklekv.engine.log.segment import list_segments, segment_path
from merklekv.engine.put import get_each
from merklekv.engine.verify.check import check_directory
from merklekv.errors import (
    Corruption,
    DirectoryLocked,
    DirectoryUnwritable,
    FormatTooNew,
    InvalidArgument,
    NotADataDirectory,
    StorageFailed,
)

PAGE_SIZE = 4096  # of LMDB, and where a page says of what kind it is
PAGE_FLAGS_AT = 10
GONE = 2**22 + 1  # no process has this id


def test_a_new_directory_says_what_it_is(tmp_path: Path) -> None:
    engines.open_engine(tmp_path / "deep" / "down").close()
    assert (tmp_path / "deep" / "down" / "FORMAT").read_text() == "MerkleKV data format 3\n"


@pytest.mark.parametrize("kept", [(), ("lost+found",), ("LOCK",), ("FORMAT.new", "base", "log")])
def test_an_empty_directory_becomes_one(tmp_path: Path, kept: tuple[str, ...]) -> None:
    """Also one that a crash has left half made, or that is a disk of its own."""
    for name in kept:
        (tmp_path / name).touch() if name in ("LOCK", "FORMAT.new") else (tmp_path / name).mkdir()
    engines.open_engine(tmp_path).set(b"k", b"v")


def test_a_directory_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear Bob")
    with pytest.raises(NotADataDirectory, match=f"{tmp_path}: not a MerkleKV data directory"):
        engines.open_engine(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("text", ["", "MerkleKV data format", "MerkleKV data format one", "Something 1", "\xff" * 200])
def test_a_mark_that_is_not_ours(tmp_path: Path, text: str) -> None:
    (tmp_path / "FORMAT").write_text(text, encoding="latin-1")
    with pytest.raises(NotADataDirectory, match="not 'MerkleKV data format 3'"):
        engines.open_engine(tmp_path)


def test_a_directory_of_a_later_release(tmp_path: Path) -> None:
    (tmp_path / "FORMAT").write_text("MerkleKV data format 4\n")
    with pytest.raises(FormatTooNew, match="data format 4 is from a later release; this one reads 3: upgrade MerkleKV"):
        engines.open_engine(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["FORMAT"]


def test_a_directory_from_before_the_first_release_is_refused(tmp_path: Path) -> None:
    (tmp_path / "FORMAT").write_text("MerkleKV data format 1\n")
    with pytest.raises(NotADataDirectory, match="data format 1 is from before the first release"):
        DataDirectory(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["FORMAT"]


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DirectoryUnwritable, match=f"{path}: cannot use this as data directory"):
            engines.open_engine(path)


def lock(path: Path) -> int:
    """A descriptor that has the lock of a data directory."""
    fd = os.open(path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


def test_the_lock_of_a_process_that_is_gone_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint process of a killed server keeps it a moment longer."""
    engines.open_engine(tmp_path / "data").close()
    monkeypatch.setattr(directory_module, "_locking_process", lambda fd, path: str(GONE))
    held = lock(tmp_path / "data")
    release = threading.Timer(0.1, os.close, (held,))
    release.start()
    engines.open_engine(tmp_path / "data")
    release.join()


@pytest.mark.parametrize(
    ("text", "named"), [(f"{GONE}\n", str(GONE)), ("", "unknown"), ("who?\n", "who."), ("\u00b2\n", "\u00b2")]
)
def test_a_process_that_the_kernel_does_not_list_is_named_by_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, named: str
) -> None:
    """It may be in another container."""
    monkeypatch.setattr(directory_module, "ORPHAN_TIMEOUT_S", 0.05)
    monkeypatch.setattr(directory_module, "LOCK_LIST", tmp_path / "nothing")
    engines.open_engine(tmp_path / "data").close()
    held = lock(tmp_path / "data")
    (tmp_path / "data" / "LOCK").write_text(text)
    with pytest.raises(DirectoryLocked, match=rf"in use by process {named}; stop it first"):
        engines.open_engine(tmp_path / "data")
    os.close(held)
    DataDirectory(tmp_path / "data").release()


def _remove(file: Path) -> None:
    file.unlink()


def _replace(file: Path) -> None:
    file.with_name("another").write_text("1\n")
    file.with_name("another").replace(file)


def _make_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _make_link(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def _make_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _garble(file: Path) -> None:
    file.write_bytes(b"\xff" * 5000)


def _hide(file: Path) -> None:
    file.chmod(0)


SPOILED: list[Callable[[Path], None]] = [
    _remove,
    _replace,
    _make_directory,
    _make_link,
    _make_pipe,
    _garble,
    _hide,
]


@pytest.mark.parametrize("spoil", SPOILED)
def test_a_locked_directory_is_refused_whatever_became_of_its_lock_file(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    engine = engines.open_engine(tmp_path / "data")
    engine.set(b"k", b"v")
    spoil(engines.damaged(tmp_path / "data") / "LOCK")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    for path in (tmp_path / "data", tmp_path / "link"):
        with pytest.raises(DirectoryLocked, match=f"{path}: in use by process {os.getpid()}; stop it first"):
            engines.open_engine(path)
    engine.close()
    assert engine.directory.path == tmp_path / "data"


OPEN = """
import sys
from merklekv.engine.engine import Engine
Engine(sys.argv[1], checkpoint="manual", durability="never")
print("open", flush=True)
sys.stdin.read()
"""


def test_a_directory_that_another_process_has_open_is_refused_without_its_lock_file(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OPEN, str(tmp_path / "data")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        (tmp_path / "data" / "LOCK").unlink()
        for opened in (engines.open_engine, check_directory):
            with pytest.raises(DirectoryLocked, match=f"in use by process {holder.pid}; stop it first"):
                opened(tmp_path / "data")
        holder.kill()
    engines.open_engine(tmp_path / "data").close()


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(fd: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(DirectoryUnwritable, match="cannot be locked: No locks available; choose a directory"):
        engines.open_engine(tmp_path / "data")


@pytest.mark.parametrize("part", [".", "base", "log"])
def test_a_directory_that_is_replaced_while_it_is_open_stops_the_writer(tmp_path: Path, part: str) -> None:
    """Or it would write its next segment into the directory that has the name now."""
    engine = engines.open_engine(tmp_path / "data")
    engine.set(b"k", b"v")
    engine.commit()
    place = tmp_path / "data" / part
    place.rename(tmp_path / "moved")
    place.mkdir()
    with pytest.raises(StorageFailed, match=f"{place}: was moved or replaced while it was in use; put it back"):
        engine.checkpoint_now()
    assert list(place.iterdir()) == []
    engine.close()
    place.rmdir()
    (tmp_path / "moved").rename(place)
    with engines.engine_in(tmp_path / "data") as engine:
        assert engine.get(b"k") == b"v"


def test_a_start_that_fails_lets_the_directory_go(tmp_path: Path) -> None:
    engines.open_engine(tmp_path / "data").close()
    (tmp_path / "data" / "base" / "data.mdb").rename(tmp_path / "kept")
    (tmp_path / "data" / "base" / "data.mdb").mkdir()
    with pytest.raises(Corruption, match=r"data\.mdb: is a directory, not a file"):
        engines.open_engine(tmp_path / "data")
    (tmp_path / "data" / "base" / "data.mdb").rmdir()
    (tmp_path / "kept").rename(tmp_path / "data" / "base" / "data.mdb")
    engines.open_engine(tmp_path / "data").close()


# -- files that are none, or not whole ---------------------------------------------------------------------------------


def _directory(file: Path) -> None:
    file.mkdir()


def _pipe(file: Path) -> None:
    os.mkfifo(file)


def _dangling(file: Path) -> None:
    file.symlink_to("nowhere")


def _loop(file: Path) -> None:
    file.symlink_to(file.name)


def _socket(file: Path) -> None:
    place = os.open(file.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as listener:  # its path must be short
        listener.bind(f"/proc/self/fd/{place}/{file.name}")
    os.close(place)


def _device(file: Path) -> None:
    file.symlink_to("/dev/zero")


KINDS = [
    (_directory, "a directory"),
    (_pipe, "a pipe"),
    (_dangling, "a symbolic link"),
    (_loop, "a symbolic link"),
    (_socket, "a socket"),
    (_device, "a (device|symbolic link)"),
]
NAMES = (
    "FORMAT",
    "FORMAT.new",
    "LOCK",
    "node-id",
    "node-id.new",
    "outbox",
    "outbox.new",
    "base/data.mdb",
    "base/lock.mdb",
    "log/.next",
    f"log/{0:020d}.log",
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("make", "kind"), KINDS)
def test_what_is_no_file_is_refused_by_its_name(
    tmp_path: Path, name: str, make: Callable[[Path], None], kind: str
) -> None:
    """At once: opening a pipe would wait for ever, and a link leads elsewhere."""
    engines.open_engine(tmp_path / "data").close()
    file = engines.damaged(tmp_path / "data") / name
    file.unlink(missing_ok=True)
    make(file)
    with pytest.raises(Corruption, match=f"{file}: is {kind}, not a file; move it away"):
        engines.open_engine(tmp_path / "data")
    with pytest.raises(Corruption, match=f"{file}: is {kind}, not a file; move it away"):
        check_directory(tmp_path / "data")
    assert not (file.parent / "nowhere").exists()


@pytest.mark.parametrize("name", ["base", "log"])
def test_a_part_that_is_no_directory_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    engines.open_engine(tmp_path / "data").close()
    shutil.rmtree(engines.damaged(tmp_path / "data") / name)
    (tmp_path / "data" / name).touch()
    with pytest.raises(Corruption, match=f"{tmp_path / 'data' / name}: is a file, not a directory"):
        engines.open_engine(tmp_path / "data")


@pytest.mark.parametrize("name", ["5.log", "\u00b2.log", "x.log", f"{7:021d}.log", "00000000000000000000.log.old"])
def test_a_file_that_is_no_segment_is_left_alone(tmp_path: Path, name: str) -> None:
    engines.open_engine(tmp_path / "data").close()
    (tmp_path / "data" / "log" / name).write_text("mine")
    with engines.engine_in(tmp_path / "data"):
        pass
    assert (tmp_path / "data" / "log" / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["LOCK", "base/lock.mdb"])
@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 100_000])
def test_a_file_that_nothing_depends_on_may_contain_anything(tmp_path: Path, name: str, content: bytes) -> None:
    with engines.engine_in(tmp_path / "data") as engine:
        engine.set(b"k", b"v")
    (tmp_path / "data" / name).write_bytes(content)
    with engines.engine_in(tmp_path / "data") as engine:
        assert engine.get(b"k") == b"v"
    assert (tmp_path / "data" / "LOCK").read_text() == f"{os.getpid()}\n"


def test_a_huge_mark_is_not_read_whole(tmp_path: Path) -> None:
    with (tmp_path / "FORMAT").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(NotADataDirectory, match="holds '"):
        engines.open_engine(tmp_path)


def filled(path: Path) -> Path:
    """A directory whose base has many pages; the base's file."""
    with engines.engine_in(path) as engine:
        for number in range(500):
            engine.set(b"k%03d" % number, bytes(200))
        engine.commit()
        engines.checkpoint(engine)
        engine.set(b"not in the base", b"")
    return path / "base" / "data.mdb"


def refused_as(data: Path, said: str) -> None:
    """A start and a check refuse this base in one line."""
    path = data.parent.parent
    with pytest.raises(Corruption, match=f"{data}: {said}; keep the directory, and restore a backup"):
        engines.open_engine(path)
    assert check_directory(path) == [f"{data}: {said}, so nothing in it is checked"]


@pytest.mark.parametrize("pages", [2, 2.5, 3, 10, 20.001])
def test_a_base_that_was_cut_off_is_told_from_its_length(tmp_path: Path, pages: float) -> None:
    data = filled(tmp_path / "data")
    whole, size = data.stat().st_size, int(pages * 4096)
    engines.damaged(tmp_path / "data")
    os.truncate(data, size)
    refused_as(data, f"is {size} bytes long, expected {whole}: it was cut off")


@pytest.mark.parametrize("size", [1, 100, 200, 4096, 4200])
def test_a_base_without_its_meta_pages_is_told_from_its_length(tmp_path: Path, size: int) -> None:
    data = filled(tmp_path / "data")
    engines.damaged(tmp_path / "data")
    os.truncate(data, size)
    refused_as(data, f"is {size} bytes long and does not begin with the two meta pages of LMDB")


@pytest.mark.parametrize("missing", [True, False])
def test_a_base_that_is_missing_or_empty_is_refused_when_the_log_needs_it(tmp_path: Path, missing: bool) -> None:
    data = filled(tmp_path / "data")
    engines.damaged(tmp_path / "data")
    data.unlink() if missing else os.truncate(data, 0)
    begin = list_segments(tmp_path / "data" / "log")[0]
    said = f"{data}: is missing or empty, and the log begins at LSN {begin}, not at 0"
    for _ in range(2):
        with pytest.raises(Corruption, match=f"{said}; keep the directory, and restore a backup"):
            engines.open_engine(tmp_path / "data")
    assert check_directory(tmp_path / "data") == [said]


def test_zeros_in_place_of_the_meta_pages_are_damage(tmp_path: Path) -> None:
    data = filled(tmp_path / "data")
    engines.damaged(tmp_path / "data")
    with data.open("r+b") as file:
        file.write(bytes(8192))
    refused_as(data, f"is {data.stat().st_size} bytes long and does not begin with the two meta pages of LMDB")


def test_a_meta_page_of_no_known_version_is_damage(tmp_path: Path) -> None:
    data = filled(tmp_path / "data")
    engines.damaged(tmp_path / "data")
    engines.flip(data, 20)
    refused_as(data, f"is {data.stat().st_size} bytes long and does not begin with the two meta pages of LMDB")


def test_a_base_without_pages_that_are_free_is_whole(tmp_path: Path) -> None:
    """LMDB does not write pages that a transaction takes and gives back; what it needs is there."""
    data = filled(tmp_path / "data")
    with engines.engine_in(tmp_path / "data") as engine:
        engine.truncate()
        engine.commit()
        engines.checkpoint(engine)
        for number in range(3):  # until the last pages of the file are free, too
            engine.put_metadata(b"name", b"%d" % number)
            engines.checkpoint(engine)
    whole = data.read_bytes()
    size = len(whole)
    while not verify(str(data)):  # type: ignore[no-untyped-call]
        size -= 4096
        os.truncate(data, size)
    data.write_bytes(whole[: size + 4096])
    assert size + 4096 < len(whole)
    assert check_directory(tmp_path / "data") == []
    with engines.engine_in(tmp_path / "data") as engine:
        assert data.stat().st_size == len(whole)
        assert engine.live_count == 0
        engine.set(b"k", b"v")
        engines.checkpoint(engine)


@pytest.mark.parametrize("size", [0, 1, 47])
def test_a_segment_that_was_cut_off_is_refused_by_its_name(tmp_path: Path, size: int) -> None:
    with engines.engine_in(tmp_path / "data") as engine:
        engine.set(b"1", b"")
        engines.freeze(engine)
        engine.set(b"2", b"")
        engine.commit()
    first = segment_path(engines.damaged(tmp_path / "data") / "log", 0)
    os.truncate(first, size)
    with pytest.raises(Corruption, match=f"{first}: damaged at byte 0: the file is shorter than a segment's header"):
        engines.open_engine(tmp_path / "data")


def test_the_segment_where_the_base_ends_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    filled(tmp_path / "data")
    last = segment_path(tmp_path / "data" / "log", list_segments(engines.damaged(tmp_path / "data") / "log")[-1])
    os.truncate(last, 0)
    with pytest.raises(Corruption, match=f"{last}: damaged at byte 0: the file is shorter than a segment's header"):
        engines.open_engine(tmp_path / "data")
    assert last.exists()
    assert check_directory(tmp_path / "data") == [f"{last}: the segment where the base ends is missing"]


@pytest.mark.parametrize("number", DAMAGE_SIGNALS)
def test_a_checkpoint_process_that_the_base_kills_is_reported_at_once(tmp_path: Path, number: int) -> None:
    """The file is shorter than it was when the child began, the disk cannot read it, or LMDB gives up."""
    engine = engines.open_engine(tmp_path / "data", checkpoint="process")
    child = engine.checkpointer.child
    assert child is not None
    # It blocks these signals, but those of the kernel arrive anyway.
    die = f"import os, signal; signal.pthread_sigmask(signal.SIG_SETMASK, ()); os.kill(os.getpid(), {number:d})"
    child._command = [sys.executable, "-c", die]
    name = signal.Signals(number).name
    with pytest.raises(Corruption, match=rf"data.mdb: could not be read \({name}\): it is damaged, or the disk fails"):
        child.checkpoint(1, lambda share: None)
    engine.close()


def test_a_damaged_page_fails_only_the_reads_that_need_it(tmp_path: Path) -> None:
    """LMDB ends the transaction of a read that meets damage."""
    engine = engines.open_engine(tmp_path / "data")
    for number in range(1000):
        engine.set(b"k%03d" % number, b"v" * 100)
    engines.checkpoint(engine)
    data = engines.damaged(tmp_path / "data") / "base" / "data.mdb"
    contents = data.read_bytes()
    with data.open("r+b") as file:
        position = contents.find(b"k500")
        while position >= 0:  # every page that has the key: no leaf any more
            file.seek(position // PAGE_SIZE * PAGE_SIZE + PAGE_FLAGS_AT)
            file.write(b"\1")
            position = contents.find(b"k500", position + 1)
    for read in (engine.get, engine.table.read, lambda key: get_each(engine.table, [[b"GET", key]], 1 << 20)):
        with pytest.raises(Corruption, match=f"{tmp_path}/data/base: LMDB reports damage: .*; keep the directory"):
            read(b"k500")
        assert engine.get(b"k999") == b"v" * 100
    with pytest.raises(Corruption, match="LMDB reports damage"):
        engine.records_page(b"k5", b"k499")
    engine.close()


# -- who may read it ---------------------------------------------------------------------------------------------------


def modes(path: Path) -> dict[str, int]:
    """The permissions of a directory and all in it."""
    return {str(one.relative_to(path)): stat.S_IMODE(one.lstat().st_mode) for one in (path, *path.rglob("*"))}


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_only_its_user_can_read_what_an_engine_makes(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        engine = engines.open_engine(tmp_path / "data", checkpoint="process")
        engine.retention.subscribe()
        for number in range(200):
            engine.wait_for_room(WAIT_S)
            engine.set(b"k%03d" % number, bytes(1000))
            engine.commit()
        wait_until(lambda: engine.metrics().checkpoint_lsn, what="the first checkpoint")
        engine.close()
    finally:
        os.umask(before)
    found = modes(tmp_path / "data")
    assert {"LOCK", "FORMAT", "outbox", "base/data.mdb", "base/lock.mdb"} < set(found)
    directories = {".", "base", "log"}
    assert {name: found[name] for name in directories} == dict.fromkeys(directories, 0o700)
    assert {found[name] for name in found.keys() - directories} == {0o600}


def test_what_others_may_read_is_said_and_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "data"
    DataDirectory(path).release()
    for mode in (0o700, 0o750, 0o755, 0o701):
        path.chmod(mode)
        caplog.clear()
        directory = DataDirectory(path)
        directory.warn_of_readers()
        directory.release()
        said = [f"{path}: other users of this machine may read it: chmod -R go-rwx {path}"] if mode & 0o007 else []
        assert caplog.messages == said
        assert stat.S_IMODE(path.stat().st_mode) == mode


OTHER = 54_321  # a user and a group without a name


def test_what_root_makes_belongs_to_the_owner_of_the_directory(tmp_path: Path) -> None:
    """Only root can make files of other users, so there is nothing to see for others."""
    if os.geteuid() != 0:
        return
    path = tmp_path / "data"
    engines.open_engine(path).close()
    (tmp_path / "elsewhere").touch()
    os.link(tmp_path / "elsewhere", path / "log" / "link")  # may be a trap
    (path / "log" / "symbolic").symlink_to(tmp_path / "elsewhere")
    os.chown(path, OTHER, OTHER)
    with engines.engine_in(path) as engine:
        engine.set(b"k", b"v")
        engines.checkpoint(engine)
    owners = {str(one.relative_to(path)): (one.lstat().st_uid, one.lstat().st_gid) for one in (path, *path.rglob("*"))}
    assert owners.pop("log/link") == owners.pop("log/symbolic") == (0, 0)
    assert set(owners.values()) == {(OTHER, OTHER)}
    assert (tmp_path / "elsewhere").stat().st_uid == 0
    give_to_owner(tmp_path, (tmp_path / "elsewhere").stat())  # root's own: nothing to do
    assert (tmp_path / "elsewhere").stat().st_uid == 0


def test_a_path_that_is_no_text_is_refused_and_not_made(tmp_path: Path) -> None:
    """LMDB's binding cannot open it."""
    path = tmp_path / os.fsdecode(b"\xff")
    with pytest.raises(InvalidArgument, match=r"\\xff: a data directory's path must be text in the locale's encoding"):
        DataDirectory(path)
    with pytest.raises(InvalidArgument):
        require_format(path)
    assert not path.exists()


def test_the_files_of_a_running_engine_are_deleted(make_engine: Callable[..., Engine], tmp_path: Path) -> None:
    """It keeps them open, so it serves, and says what it has, until it stops."""
    engine = make_engine(durability="never")
    engine.set(b"k", b"v")
    shutil.rmtree(tmp_path / "data")
    engine.set(b"k", b"w")
    engine.commit()
    assert engine.get(b"k") == b"w"
    assert engine.metrics().base_bytes > engine.metrics().base_free_bytes
    engines.abandon(engine)


@pytest.mark.parametrize("name", ["base/data.mdb", "base/lock.mdb", "log/.next", "segment"])
def test_a_file_with_another_name_is_refused(tmp_path: Path, name: str) -> None:
    """As `cp -al` makes them: each of two nodes would change the data of the other."""
    with engines.engine_in(tmp_path / "data") as engine:
        engine.set(b"k", b"v")
        engine.checkpoint_now()
        engine.set(b"l", b"w")
        engine.commit()
        (segment,) = (tmp_path / "data" / "log").glob("*.log")
    (tmp_path / "data" / "log" / ".next").touch()
    file = segment if name == "segment" else tmp_path / "data" / name
    (tmp_path / "other").hardlink_to(file)
    with pytest.raises(DirectoryUnwritable, match=rf"{file}: has another name, too \(a hard link\)"):
        engines.open_engine(tmp_path / "data")
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    (tmp_path / "other").unlink()
    for directory in ("data", "copy"):
        with engines.engine_in(tmp_path / directory) as engine:
            assert engines.values(engine) == {b"k": b"v", b"l": b"w"}
