"""Dumps for `merklekv load` and backups for `merklekv restore`: damaged, forged with checksums that fit, and bombs.

What cannot be read is refused with one line that names it. A load or a restore that fails leaves what was there.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import shutil
import tarfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import cbor2
from fixtures import engines
from merklekv_tool import exit_codes
from merklekv_tool.formats.dump import FORMATS
from merklekv_tool.formats.items import End, Head, checksum_of

from merklekv.engine.record import digest_of, make_record

from .file_path import FilePath
from .files_directory import DAMAGES, make_template, remove
from .input_path import Finding
from .mutate import damaged, structure
from .trial import require_clean

BOMB: Final = 300 << 20  # bytes that a small file turns into
KEYS: Final = (b"k", b"k01", b"", b"k" * 511, b"k" * 512, b"\xff", b"\0", b"\x1b[31m", "\u202e".encode())
VERSIONS: Final = (bytes(24), b"\xff" * 24, b"\x7f" + b"\xff" * 23, engines.version(engines.NOON), b"\1" * 24)


def hostile_record(chance: random.Random, key: bytes) -> bytes:
    version = chance.choice(VERSIONS)
    return chance.choice(
        (
            make_record(key, version, b"forged"),
            make_record(key, version, b"", tombstone=True),
            make_record(key, version, b"f", expiry=chance.choice((1, (1 << 63) - 1))),
            make_record(key, version, b"v" * (17 << 20)) if chance.random() < 0.1 else make_record(key, version, b""),
            make_record(b"another", version, b"v"),
        )
    )


def forged_dump(chance: random.Random) -> bytes:
    """A dump that is whole by its checksum."""
    form = FORMATS[chance.choice(("jsonl", "cbor"))]
    head = Head(chance.choice((b"", b"k", b"\xff" * 600)))
    keys = sorted(chance.choice(KEYS) for _ in range(chance.choice((0, 1, 3))))
    if chance.random() < 0.3:
        chance.shuffle(keys)
    pairs = [(key, hostile_record(chance, key)) for key in keys]
    truncation = chance.choice((None, *VERSIONS))
    checksum = checksum_of(head)
    checksum.update(b"".join(digest_of(record) for _, record in pairs) + (truncation or b""))
    count = len(pairs) + chance.choice((0, 0, 0, 1, 1 << 64))
    end = End(count, truncation, checksum.digest())
    return b"".join((form.head(head), *(form.record(key, record) for key, record in pairs), form.end(end)))


def items_changed(chance: random.Random, dump: bytes) -> bytes:
    """A dump with its items changed as items, and encoded again."""
    if dump.startswith(b"{"):
        lines: list[Any] = [json.loads(line) for line in dump.splitlines()]
        lines = structure(chance, lines)
        lines = lines if isinstance(lines, list) else [lines]
        return b"".join(json.dumps(line, default=repr).encode() + b"\n" for line in lines)
    stream = io.BytesIO(dump)
    items = []
    while stream.tell() < len(dump):
        items.append(cbor2.load(stream))
    changed = structure(chance, items)
    try:
        return b"".join(cbor2.dumps(item) for item in (changed if isinstance(changed, list) else [changed]))
    except (cbor2.CBOREncodeError, OverflowError, TypeError):
        return cbor2.dumps(repr(changed))


def bomb(chance: random.Random) -> bytes:
    """A small dump that means much, or has no end."""
    head = b"\xd9\xd9\xf7\xa2mmerklekv_dump\x03fprefix@"
    line = b'{"merklekv_dump":3,"prefix":""}\n'
    return chance.choice(
        (
            head + b"\x9b" + b"\xff" * 8,
            head + b"\x9a\x7f\xff\xff\xff" + b"\xa0" * 100_000,
            head + b"\x5b\x00\x00\x00\x7f\xff\xff\xff\xff" + b"x" * 1000,
            head + b"\x9f" * 500_000,
            head + b"\xd8\x1c" * 300_000,
            head + b"\xc1" * 300_000,
            head + b"\xbf" + b"\x61a\x01" * 200_000,
            head + b"\x85" + b"\xc2\x5a\x04\x00\x00\x00" + b"\xff" * (64 << 20),
            line + b"{" * 200_000,
            line + b'{"key":"' + b"k" * (90 << 20),
            line + b"[" * (20 << 20),
            line + b'{"a":' * 100_000,
            line + b"9" * 200_000 + b"\n",
            line + b'{"key":"k","exp":' + b"9" * 200_000 + b"}\n",
            line + b'{"' + b'":0,"'.join(b"%d" % number for number in range(300_000)) + b'":0}\n',
            b"\xef\xbb\xbf" + line,
            line.decode().encode("utf-16"),
            gzip.compress(line),
            b"",
        )
    )


class DumpPath(FilePath):
    """`merklekv load` of a dump, from a file or from a pipe, into a new directory or one with data."""

    name = "dump"

    @cached_property
    def _dumps(self) -> list[bytes]:
        made = make_template(self.root / "stopped")
        form = ("jsonl", "cbor")
        return [self.trials.run("merklekv_tool", "dump", made.path, "--format", name).stdout for name in form]

    def one(self, chance: random.Random) -> None:
        dumps = self._dumps
        kinds: tuple[Callable[[], bytes], ...] = (
            lambda: damaged(chance, chance.choice(dumps)),
            lambda: items_changed(chance, chance.choice(dumps)),
            lambda: forged_dump(chance),
            lambda: forged_dump(chance),
            lambda: bomb(chance),
        )
        dump = chance.choice(kinds)()
        target = self.root / "target"
        remove(target)
        is_new = chance.random() < 0.3
        if not is_new:
            shutil.copytree(self.root / "stopped", target)
        options = chance.choice(((), (), ("--anew",)))
        if chance.random() < 0.2:
            done = self.trials.run("merklekv_tool", "load", "-", target, *options, stdin=dump)
            named = b""
        else:
            file = self.root / "dump"
            file.write_bytes(dump)
            done = self.trials.run("merklekv_tool", "load", file, target, *options)
            named = os.fsencode(file)
        what = f"load {dump[:60]!r}, {len(dump)} bytes, {options}"
        require_clean(done, "merklekv-tool", exit_codes.MEANINGS, what)
        if done.status not in (0, exit_codes.EXIT_REFUSED) and named not in done.stderr:
            raise Finding(f"{what}: names no file\n{done}")
        if not target.exists():
            return
        checked = self.trials.run("merklekv_tool", "verify", target)
        if checked.status:
            raise Finding(f"{what}: the directory is damaged\n{done}\n{checked}")
        if not is_new:
            self._require_kept(what, target)

    def _require_kept(self, what: str, target: Path) -> None:
        """A load deletes nothing that is newer than what it brings."""
        after = self.trials.run("tests.hostile.use_directory", target)
        if after.status:
            raise Finding(f"{what}: a start refuses what it has written\n{after}")


class BackupPath(FilePath):
    """`merklekv restore` of a backup of either kind, with other files, other names, other contents."""

    name = "backup"

    @cached_property
    def _backup(self) -> Path:
        made = make_template(self.root / "stopped")
        done = self.trials.run("merklekv_tool", "backup", made.path, self.root / "made")
        if done.status:
            raise Finding(f"no backup of a sound directory\n{done}")
        return self.root / "made"

    def one(self, chance: random.Random) -> None:
        backup = self._backup
        if chance.random() < 0.4:
            copy = self.root / "copy"
            remove(copy)
            shutil.copytree(backup, copy)
            templates = {name: make_template_once(self.root / "others" / name) for name in ("stopped", "killed")}
            templates |= {"young": templates["killed"], "member": templates["stopped"]}
            damage = chance.choice(
                [one for one in DAMAGES if one.__name__ not in ("forbid", "forge_cursor", "forge_pages")]
            )
            what = damage(chance, copy, templates).what
            if chance.random() < 0.3:
                what += self._description(chance, copy)
        else:
            copy = self.root / "copy.tar.gz"
            what = self._archive(chance, backup, copy)
        target = self.root / "target"
        remove(target)
        exists = chance.random() < 0.2
        if exists:
            target.mkdir()
            (target / "mine").write_text("mine")
        before = sorted(self.root.iterdir())
        done = self.trials.run("merklekv_tool", "restore", copy, target)
        what = f"restore {what}"
        require_clean(done, "merklekv-tool", exit_codes.MEANINGS, what)
        if exists and ((target / "mine").read_text() != "mine" or not done.status):
            raise Finding(f"{what}: changes what was there\n{done}")
        after = sorted(self.root.iterdir())
        if done.status:
            if after != before:
                raise Finding(f"{what}: leaves {set(after) ^ set(before)}\n{done}")
            if os.fsencode(copy) not in done.stderr and os.fsencode(target) not in done.stderr:
                raise Finding(f"{what}: names no file\n{done}")
            return
        if not {one.name for one in target.iterdir()} <= {"FORMAT", "LOCK", "base", "log", "node-id"}:
            raise Finding(f"{what}: brings {sorted(target.iterdir())}\n{done}")
        checked = self.trials.run("merklekv_tool", "verify", target)
        used = self.trials.run("tests.hostile.use_directory", target)
        if (checked.status and b"all records are there" not in done.stderr) or used.status:
            raise Finding(f"{what}: restores what is damaged\n{checked}\n{used}")

    def _description(self, chance: random.Random, copy: Path) -> str:
        file = copy / "BACKUP"
        if not file.is_file():
            return ""
        text = json.dumps(structure(chance, json.loads((self._backup / "BACKUP").read_text())), default=repr)
        file.write_text(chance.choice((text, text, "[" * 100_000, "9" * 100_000, "", "null", "\0")))
        return f", description {file.read_text()[:100]!r}"

    def _archive(self, chance: random.Random, backup: Path, target: Path) -> str:
        names = ["BACKUP", "FORMAT", "node-id", "base/data.mdb"]
        names += [f"log/{one.name}" for one in sorted((backup / "log").iterdir())]
        kind = chance.choice(
            ("bytes", "inner", "member", "member", "twice", "order", "header", "header", "bomb", "sparse", "long")
        )
        raw = io.BytesIO()
        with tarfile.open(
            fileobj=raw, mode="w", format=chance.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))
        ) as made:
            if kind == "order":
                chance.shuffle(names)
            for name in names * (2 if kind == "twice" else 1):
                made.add(backup / name, name)
            what = kind
            if kind == "member":
                what = self._member(chance, made)
            elif kind == "long":
                made.addfile(tarfile.TarInfo("log/" + "n" * (1 << 20)))
        data = raw.getvalue()
        if kind == "inner":
            data = damaged(chance, data)
        elif kind in ("header", "sparse"):
            header = bytearray(chance.choice((b"x", b"g", b"L", b"K", b"S")))
            block = bytearray(tarfile.TarInfo("base/data.mdb").tobuf(tarfile.GNU_FORMAT))
            block[124:136] = b"%011o\0" % chance.choice((511, BOMB, BOMB, (1 << 33) - 1))
            block[156:157] = header
            block[148:156] = b"%06o\0 " % (sum(block[:148]) + 8 * 32 + sum(block[156:]))
            data = bytes(block) + bytes(BOMB) + data
            what = f"{kind} {bytes(header)!r}"
        elif kind == "bomb":
            data += bytes(BOMB)
        packed = gzip.compress(data, 1)
        if kind == "bytes":
            packed = damaged(chance, packed)
        target.write_bytes(packed)
        return f"archive: {what}"

    def _member(self, chance: random.Random, made: tarfile.TarFile) -> str:
        names = ("../evil", "/tmp/evil", "log/../../evil", "log/\x1b[31m.log", "base", "log", "", ".", "LOCK", "outbox")
        member = tarfile.TarInfo(
            chance.choice((*names, f"log/{1:020d}.log", "base/data.mdb", "BACKUP", "base/lock.mdb"))
        )
        types = (tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE)
        member.type = chance.choice((*types, tarfile.REGTYPE, b"Z"))
        member.linkname = chance.choice(("/etc/passwd", "FORMAT", "../../x", "\udcff"))
        member.pax_headers = chance.choice(
            ({}, {"path": "../evil"}, {"size": "-1"}, {"size": "9" * 400}, {"mtime": "nan"})
        )
        data = b"evil" if member.isreg() else b""
        member.size = len(data)
        made.addfile(member, io.BytesIO(data))
        return f"member {member.name!r} of type {member.type!r}, {member.pax_headers}"


def make_template_once(path: Path) -> Any:
    """A directory of that kind; made at the first call."""
    from .files_directory import Template

    if path.exists():
        return Template(path, {}, frozenset())
    path.parent.mkdir(exist_ok=True)
    return make_template(path)


PATHS = (DumpPath, BackupPath)
