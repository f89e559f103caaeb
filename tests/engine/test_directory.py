"""What may be opened as a data directory, and that one process has it at a time."""

from __future__ import annotations

import fcntl
import threading
from pathlib import Path

import engine_support as support
import pytest

from merklekv.engine import directory as directory_module
from merklekv.engine.directory import DataDirectory
from merklekv.errors import DirectoryLocked, DirectoryUnwritable, FormatTooNew, NotADataDirectory

GONE = 2**22 + 1  # no process has this id


def test_a_new_directory_says_what_it_is(tmp_path: Path) -> None:
    support.open_engine(tmp_path / "deep" / "down").close()
    assert (tmp_path / "deep" / "down" / "FORMAT").read_text() == "MerkleKV data format 1\n"


@pytest.mark.parametrize("kept", [(), ("lost+found",), ("LOCK",), ("FORMAT.new", "base", "log")])
def test_an_empty_directory_becomes_one(tmp_path: Path, kept: tuple[str, ...]) -> None:
    """Also one that a crash has left half made, or that is a disk of its own."""
    for name in kept:
        (tmp_path / name).touch() if name in ("LOCK", "FORMAT.new") else (tmp_path / name).mkdir()
    support.open_engine(tmp_path).set(b"k", b"v")


def test_somebody_elses_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear Bob")
    with pytest.raises(NotADataDirectory, match=f"{tmp_path}: not a MerkleKV data directory"):
        support.open_engine(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("text", ["", "MerkleKV data format", "MerkleKV data format one", "Something 1", "\xff" * 200])
def test_a_mark_that_is_not_ours(tmp_path: Path, text: str) -> None:
    (tmp_path / "FORMAT").write_text(text, encoding="latin-1")
    with pytest.raises(NotADataDirectory, match="not 'MerkleKV data format 1'"):
        support.open_engine(tmp_path)


def test_a_directory_of_a_later_release(tmp_path: Path) -> None:
    (tmp_path / "FORMAT").write_text("MerkleKV data format 2\n")
    with pytest.raises(FormatTooNew, match="data format 2 is from a later release; this one reads 1: upgrade MerkleKV"):
        support.open_engine(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["FORMAT"]


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DirectoryUnwritable, match=f"{path}: cannot use this as data directory"):
            support.open_engine(path)


def test_the_lock_of_a_process_that_is_gone_is_waited_for(tmp_path: Path) -> None:
    """The absorbing child of a killed server holds it a moment longer."""
    support.open_engine(tmp_path / "data").close()
    lock = tmp_path / "data" / "LOCK"
    lock.write_text(f"{GONE}\n")
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        release = threading.Timer(0.1, fcntl.flock, (held, fcntl.LOCK_UN))
        release.start()
        support.open_engine(tmp_path / "data")
        release.join()


def test_the_lock_of_a_process_that_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_module, "ORPHAN_TIMEOUT_S", 0.05)
    support.open_engine(tmp_path / "data").close()
    lock = tmp_path / "data" / "LOCK"
    for holder, named in ((f"{GONE}\n", str(GONE)), ("", "unknown"), ("who?\n", "who?")):
        lock.write_text(holder)
        with lock.open() as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            with pytest.raises(DirectoryLocked, match=rf"in use by process {named.replace('?', '.')}; stop it first"):
                support.open_engine(tmp_path / "data")
    DataDirectory(tmp_path / "data").release()


def test_a_start_that_fails_lets_the_directory_go(tmp_path: Path) -> None:
    support.open_engine(tmp_path / "data").close()
    (tmp_path / "data" / "outbox").mkdir()  # cannot be read as a file
    with pytest.raises(OSError, match="outbox"):
        support.open_engine(tmp_path / "data")
    (tmp_path / "data" / "outbox").rmdir()
    support.open_engine(tmp_path / "data").close()
