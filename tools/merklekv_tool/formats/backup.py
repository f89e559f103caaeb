"""A backup: a data directory with a description, as a directory or as one compressed file.

    FORMAT, base/data.mdb, log/*.log, node-id     as in any data directory (merklekv/engine/format.py)
    BACKUP                                        a JSON object: what was backed up, when, and what it contains

A compressed file (.tar.gz, .tgz) has the same files, the description first. Files of a running process (LOCK, LMDB's
lock file) and its published position (`outbox`) are left out: a node that starts on a restored directory publishes from
the end of its log on, and leaves older writes to the exchange with other nodes.

`complete` finishes a backup: it opens the copy as a start would, merges the log into the base, and checks every
invariant. `examine` checks again before a restore, and compares the Merkle root with the description. A backup and a
restored directory appear under their names whole and on disk, or not at all.
"""

from __future__ import annotations

import contextlib
import datetime
import gzip
import json
import os
import re
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, Self

from xxhash import xxh3_128

import merklekv
from merklekv.engine.directory import give_to_owner, sync_way_to
from merklekv.engine.engine import Engine
from merklekv.engine.verify.check import check_directory
from merklekv.errors import Corruption, FormatTooNew, InvalidArgument, MerkleKVError, shown
from merklekv.node_id import NODE_ID_FILE
from merklekv.output import counted
from merklekv_tool.errors import BackupError, Exists, FileError
from merklekv_tool.files import draft_of, file_error
from merklekv_tool.output import Update

BACKUP_VERSION: Final = 2
DESCRIPTION: Final = "BACKUP"
MARK: Final = "merklekv_backup"
ARCHIVES: Final = (".tar.gz", ".tgz")
NOT_OURS: Final = (".tar", ".gz", ".bz2", ".xz", ".zst", ".zip", ".7z")  # of a file that a user expects
FIELDS: Final = {"root": str, "source": str, "made": str, "keys": int, "tombstones": int}  # that a restore needs
DESCRIPTION_SIZE_MAX: Final = 1 << 16
PRIVATE_UMASK: Final = 0o077
LEVEL: Final = 1  # of gzip: half as large, and three times as fast as the usual 6
COPY_BYTES: Final = 1 << 20

_PARTS: Final = ("FORMAT", NODE_ID_FILE, "base/data.mdb", "log/*.log")
_NAME: Final = re.compile(r"BACKUP|FORMAT|node-id|base/data\.mdb|log/[0-9]{20}\.log")


def contents(description: dict[str, Any]) -> str:
    """The size of a backup, in words."""
    return f"{counted(description['keys'], 'key')} and {counted(description['tombstones'], 'deleted one')}"


def is_archive(name: str) -> bool:
    """Whether a backup of this name is one compressed file."""
    return name.endswith(ARCHIVES)


def require_name(destination: str, source: str) -> None:
    """Raises InvalidArgument for a name that a backup must not have."""
    if destination.endswith(NOT_OURS) and not is_archive(destination):
        raise InvalidArgument(f"{destination}: a compressed backup ends in {' or '.join(ARCHIVES)}, and no other does")
    if Path(source).is_dir() and Path(source).resolve() in Path(destination).resolve().parents:
        raise InvalidArgument(f"{destination}: is within {source}, and would be lost with it: choose another place")


@contextlib.contextmanager
def path_errors(name: str) -> Iterator[None]:
    """Turns an OSError in the block into DiskFull or FileError for the path `name`."""
    try:
        yield
    except OSError as error:
        raise file_error(error, error.filename or name) from error


@contextlib.contextmanager
def drafted(target: Path, source: str) -> Iterator[Path]:
    """An empty directory beside `target`, removed when the block ends. Only the user can read files made in it.

    An error in the block does not name it: damage in it is damage of `source`, anything else concerns `target`.
    """
    umask = os.umask(PRIVATE_UMASK)
    draft, is_ours = draft_of(target.absolute()), True
    try:
        try:
            draft.mkdir()  # within the try, or a signal right after it would leave the directory
        except OSError as error:
            is_ours = False
            error.filename = str(target)  # the name that the user gave
            raise
        yield draft
    except MerkleKVError as error:
        shown = source if isinstance(error, Corruption | BackupError | FormatTooNew) else str(target)
        error.args = (str(error).replace(str(draft), shown),)
        raise
    except OSError as error:
        if error.filename is not None:
            error.filename = os.fsdecode(error.filename).replace(str(draft), str(target))
        raise
    finally:
        os.umask(umask)
        if is_ours:
            shutil.rmtree(draft, ignore_errors=True)


def require_absent(target: Path, empty: bool = False) -> None:
    """Raises Exists if `target` exists; with `empty`, an empty directory may."""
    if not os.path.lexists(target):
        return
    if not (empty and target.is_dir() and not target.is_symlink() and not any(target.iterdir())):
        raise Exists(
            f"{target}: is there already, and nothing is ever overwritten: choose another name or move it away"
        )


def require_movable(target: Path) -> None:
    """Raises FileError if a finished directory cannot take the place of this empty one."""
    if target.is_dir():
        found = "the working directory" if target.samefile(os.curdir) else "a mount point" if target.is_mount() else ""
        if found:
            raise FileError(f"{target}: is {found}, which nothing can take the place of: choose a new directory in it")


def complete(draft: Path, update: Update) -> dict[str, Any]:
    """Merges a copy's log into its base, checks the copy, and returns what it contains. Raises Corruption."""
    with _opened(draft) as engine:
        engine.checkpoint_now()
        contained = {
            "root": engine.root().hex(),
            "keys": engine.live_count,
            "tombstones": engine.tombstone_count,
            "truncation": engine.truncation.hex(),
            "gc_horizon_ns": engine.gc_horizon,
            "lsn": engine.metrics().log_lsn,
        }
    problems = check_directory(draft, update)
    if problems:
        raise Corruption(f"the copy does not hold together, so there is no backup: {problems[0]}")
    return contained


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[Engine]:
    """An engine on a copy, which leaves none of its process's files behind."""
    with contextlib.closing(Engine(directory, checkpoint="manual", durability="never")) as engine:
        yield engine
    for name in ("LOCK", "base/lock.mdb"):
        (directory / name).unlink(missing_ok=True)


def describe(draft: Path, source: str, contained: dict[str, Any]) -> dict[str, Any]:
    """Writes the description, and returns it."""
    node_id = draft / NODE_ID_FILE
    description = {
        MARK: BACKUP_VERSION,
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "source": source,
        "node_id": node_id.read_bytes().decode(errors="replace").strip() if node_id.exists() else None,
        "software": merklekv.__version__,
        **contained,
    }
    (draft / DESCRIPTION).write_bytes(json.dumps(description, indent=2, ensure_ascii=False).encode() + b"\n")
    return description


def description_of(data: bytes, name: str) -> dict[str, Any]:
    """A description from its bytes. Raises BackupError."""
    try:
        description = json.loads(data)
        version = description[MARK]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BackupError(f"{name}: not a backup: its description {DESCRIPTION} is damaged") from error
    if version != BACKUP_VERSION:
        raise BackupError(f"{name}: a backup of version {shown(version)}: this release reads {BACKUP_VERSION}")
    if not all(isinstance(description.get(field), kind) for field, kind in FIELDS.items()):
        raise BackupError(f"{name}: not a backup: its description {DESCRIPTION} is damaged")
    return description  # type: ignore[no-any-return]


def examine(draft: Path, description: dict[str, Any], name: str, update: Update) -> dict[bytes, bytes]:
    """Checks a copy of a backup, and compares it with its description. Returns its metadata. Raises BackupError."""
    problems = check_directory(draft, update)
    if problems:
        raise BackupError(f"{name}: damaged: {problems[0]}")
    with _opened(draft) as engine:
        found, metadata = engine.root().hex(), dict(engine.metadata)
    if found != description["root"]:
        raise BackupError(f"{name}: holds other data than its description says: its root is {found}")
    return metadata


def files(directory: Path) -> list[str]:
    """The names of a backup's files, relative to its directory, the description first."""
    found = [str(path.relative_to(directory)) for part in _PARTS for path in sorted(directory.glob(part))]
    return [DESCRIPTION, *found]


def size_of(directory: Path) -> int:
    """Bytes of a backup's files."""
    return sum((directory / name).stat().st_size for name in files(directory))


def publish(draft: Path, target: Path) -> None:
    """Syncs a finished directory and gives it its name, and the owner of an empty directory of that name.

    Raises Exists.
    """
    if target.is_dir():
        give_to_owner(draft, target.stat())
    for path in sorted(draft.rglob("*"), reverse=True):
        _sync(path)
    _sync(draft)
    require_absent(target, empty=True)
    draft.rename(target)  # fails if the target exists by now, unless it is an empty directory
    sync_way_to(target)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def pack(directory: Path, draft: Path, target: Path, update: Update) -> None:
    """Writes a backup as a compressed file, reads it back, and gives it its name. Raises Exists, BackupError."""
    counter = _Counter(update, 2 * size_of(directory))

    def compare(name: str, member: IO[bytes]) -> None:
        with (directory / name).open("rb") as file:
            if _digest(_Counted(member, counter)) != _digest(file):
                raise BackupError(f"{target}: {name} reads back other than it was written: look at the disk")

    with draft.open("xb") as raw:
        with (
            gzip.GzipFile("", "wb", LEVEL, raw) as packed,
            tarfile.open(mode="w|", fileobj=packed, format=tarfile.PAX_FORMAT) as archive,
        ):
            for name in files(directory):
                entry = archive.gettarinfo(str(directory / name), name)
                with (directory / name).open("rb") as file:
                    archive.addfile(entry, _Counted(file, counter))
        raw.flush()
        os.fsync(raw.fileno())
    each_member(draft, str(target), compare)
    try:
        os.link(draft, target)  # unlike a rename, it replaces nothing
    except FileExistsError:
        require_absent(target)
    except OSError:  # a file system without links
        require_absent(target)
        draft.rename(target)
    _sync(target.absolute().parent)


@dataclass
class _Counter:
    """Reports the bytes of several files."""

    update: Update
    total: int
    done: int = 0


class _Counted(NamedTuple):
    """A file whose reads a counter reports."""

    file: IO[bytes]
    counter: _Counter

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.counter.done += len(data)
        self.counter.update(self.counter.done, self.counter.total)
        return data


def _digest(file: IO[bytes] | _Counted) -> bytes:
    digest = xxh3_128()
    while data := file.read(COPY_BYTES):
        digest.update(data)
    return digest.digest()


class _Member(tarfile.TarInfo):
    """A member of an archive. One that only describes the next is bounded: `tarfile` keeps all of it in memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        made = super().frombuf(buf, encoding, errors)
        if not made.isreg() and made.size > DESCRIPTION_SIZE_MAX:
            raise tarfile.ReadError(f"a header of {made.size} bytes")
        return made


def each_member(archive: Path, name: str, take: Callable[[str, IO[bytes]], None]) -> None:
    """Calls `take` with each file of a compressed backup, which it reads before it returns. Raises BackupError."""
    try:
        with gzip.open(archive) as unpacked:  # checks a checksum at the end; tarfile alone would not
            with tarfile.open(fileobj=unpacked, mode="r|", tarinfo=_Member) as packed:
                for member in packed:
                    file = packed.extractfile(member) if member.isreg() and not member.issparse() else None
                    if file is None or not _NAME.fullmatch(member.name):
                        raise BackupError(f"{name}: holds {member.name!r}, which is no part of a backup")
                    take(member.name, file)
            while unpacked.read(COPY_BYTES):
                pass
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        foreign = str(error).startswith("Not a gzipped file")
        what = "no backup: no compressed file" if foreign else f"no backup, damaged, or cut short: {error}"
        raise BackupError(f"{name}: {what}") from error


def unpack(source: Path, draft: Path, update: Update) -> dict[str, Any]:
    """Copies a backup of either kind into the empty directory `draft`. Returns its description. Raises BackupError."""
    (draft / "base").mkdir()
    (draft / "log").mkdir()
    description = b""
    counter = _Counter(update, 0)

    def take(name: str, file: IO[bytes]) -> None:
        nonlocal description
        if name == DESCRIPTION:
            description = file.read(DESCRIPTION_SIZE_MAX)
        else:
            with (draft / name).open("xb") as out:
                shutil.copyfileobj(_Counted(file, counter), out, COPY_BYTES)

    if source.is_file():
        each_member(source, str(source), take)
    elif (source / DESCRIPTION).exists():
        counter.total = size_of(source)
        for name in files(source):
            if not (source / name).is_file():  # a pipe has no end
                raise BackupError(f"{source}: damaged: {name} is no file")
            with (source / name).open("rb") as file:
                take(name, file)
    if not description:
        raise BackupError(f"{source}: not a backup: it has no {DESCRIPTION}")
    return description_of(description, str(source))
