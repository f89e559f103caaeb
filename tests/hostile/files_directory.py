"""Data directories of real nodes, with something wrong in them: the files themselves, and what their checksums protect.

A start serves what it can prove, or says what is wrong and how to go on. `merklekv verify` reports all that a start
refuses. What a start accepts and writes, the next one reads.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

import lmdb
from fixtures import engines
from merklekv_tool import exit_codes as tool_codes
from xxhash import xxh3_64_digest

from merklekv import exit_codes
from merklekv.engine.base.environment import DATABASES, open_database
from merklekv.engine.engine import Engine
from merklekv.engine.log.segment import Segment, list_segments, segment_path
from merklekv.engine.record import make_record

from .file_path import FilePath
from .input_path import Finding
from .mutate import damaged
from .trial import NOBODY, Outcome, require_clean

USE: Final = "tests.hostile.use_directory"
SIZES: Final = (0, 1, 7, 8, 23, 24, 25, 40, 47, 48, 49, 255, 4095, 4096, 4097, 8191, 8192, 8193)
NUMBERS: Final = (0, 1, 2, 3, 40, 48, 255, 256, 65_535, 65_536, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32)
LARGE: Final = (*NUMBERS, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
PAGE: Final = 4096
READERS: Final = ("dump", "log", "backup", "tree", "members", "restamp", "compact")
TEMPLATES: Final = ("stopped", "killed", "young", "member")
ADVICE: Final = b"empty data directory"
"""What no message may advise: the directory may have the only copy."""


class Input(NamedTuple):
    """What was done to a directory."""

    what: str
    forged: bool = False  # with checksums that fit: other data than before is no fault
    shifts: bool = False  # what follows is not in its place any more, or gone: a start takes it for a torn tail
    user: int = 0
    pages: bool = False  # of LMDB, which ends a process that reads some of them


class Template(NamedTuple):
    """A directory of a node, and the live keys that it has, with hashes of their values."""

    path: Path
    values: dict[str, str]
    last: frozenset[str]  # the keys of the last commit, which a torn tail may take


def value_hash(value: bytes) -> str:
    return sha256(value).hexdigest()[:16]


class DirectoryPath(FilePath):
    """Each input is a copy of a directory, damaged in one way, and what programs make of it."""

    name = "directory"

    def one(self, chance: random.Random) -> None:
        template = self._templates[chance.choice(TEMPLATES)]
        copy = self.root / "copy"
        remove(copy)
        shutil.copytree(template.path, copy, symlinks=True)
        done = chance.choice(DAMAGES)(chance, copy, self._templates)
        done = done._replace(what=f"{template.path.name}: {done.what}")
        second = self.root / "second"
        remove(second)
        clone(copy, second)
        self._judge(chance, done, template, copy, second)

    def _judge(self, chance: random.Random, done: Input, template: Template, copy: Path, second: Path) -> None:
        if done.user:
            os.chmod(self.root, 0o755)
        checked = self.trials.run("merklekv_tool", "verify", copy, user=done.user)
        require_clean(checked, "merklekv-tool", tool_codes.MEANINGS, f"{done.what}: verify")
        used = self.trials.run(USE, copy, user=done.user, may_die=done.pages)
        if used.status < 0 and not checked.status:
            raise Finding(f"{done.what}: verify finds nothing, but a start dies: {used}")
        if used.status < 0:
            return
        require_clean(used, "use", exit_codes.MEANINGS, f"{done.what}: start")
        self._require_advice(done, used, copy)
        if used.status and not checked.status and not done.user:  # who may read it need not be who may write it
            raise Finding(f"{done.what}: verify finds nothing, but a start refuses it: {used}")
        if not used.status:
            self._require_values(done, template, used, checked)
        verb = chance.choice(READERS)
        target = self.root / "target"
        remove(target)
        words = {"backup": (second, target), "dump": (second, "-o", target)}.get(verb, (second,))
        read = self.trials.run("merklekv_tool", verb, *words, user=done.user, may_die=done.pages)
        if read.status < 0:
            return
        require_clean(read, "merklekv-tool", tool_codes.MEANINGS, f"{done.what}: {verb}")
        self._require_advice(done, read, second)

    def _require_advice(self, done: Input, outcome: Outcome, copy: Path) -> None:
        if not outcome.status or outcome.status == 1:
            return
        line = outcome.stderr.strip().split(b"\n")[-1]
        if ADVICE in outcome.stderr:
            raise Finding(f"{done.what}: advises an empty directory\n{outcome}")
        if os.fsencode(copy) not in line and not (done.user and os.fsencode(self.root) in line):
            raise Finding(f"{done.what}: names no file\n{outcome}")
        if len(line) > 2000:
            raise Finding(f"{done.what}: a line of {len(line)} bytes")

    def _require_values(self, done: Input, template: Template, used: Outcome, checked: Outcome) -> None:
        said = json.loads(used.stdout)
        first, second = said["lives"]
        if first != second:
            lost = sorted(first.keys() ^ second.keys()) or sorted(k for k in first if first[k] != second[k])
            if not checked.status:
                raise Finding(
                    f"{done.what}: the second start finds other data: {lost[:5]}\n{said['warnings']}\n{checked}"
                )
        if done.forged or checked.status:
            return
        wrong = {key for key in first.keys() | template.values.keys() if first.get(key) != template.values.get(key)}
        if wrong and not (done.shifts or (said["warnings"] and wrong <= template.last)):
            raise Finding(
                f"{done.what}: {len(wrong)} keys differ, and nothing says so: {sorted(wrong)[:5]}\n{said['warnings']}"
            )

    @cached_property
    def _templates(self) -> dict[str, Template]:
        return {name: make_template(self.root / name) for name in TEMPLATES}


def remove(path: Path) -> None:
    """Deletes whatever is there."""
    if path.is_dir() and not path.is_symlink():
        for place, names, _ in os.walk(path):
            os.chmod(place, 0o700)
            del names
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


def clone(source: Path, target: Path) -> None:
    """Copies a tree as it is: pipes, links, holes and owners too."""
    subprocess.run(["cp", "-a", "--sparse=always", str(source), str(target)], check=True)


def make_template(path: Path) -> Template:
    """A directory of one kind, by its name."""
    values: dict[bytes, bytes] = {}
    engine = Engine(path, durability="always", checkpoint="manual")

    def put(key: bytes, value: bytes, expiry: int | None = None) -> None:
        engine.set(key, value, expiry)
        values[key] = value
        engine.commit()

    (path / "node-id").write_text("node\n")
    if path.name != "young":
        from merklekv.replication.cluster.storage import load_members

        load_members(engine, "node", joins=path.name == "member")
        engine.retention.subscribe()
    for number in range(60):
        put(b"k%02d" % number, b"v" * number, engines.LATER_MS if not number % 9 else None)
    put(b"large", b"l" * 9000)
    for number in range(0, 60, 7):
        engine.delete(b"k%02d" % number)
        values.pop(b"k%02d" % number)
    engine.commit()
    if path.name != "young":
        engine.checkpoint_now()
        for number in range(60, 70):
            put(b"k%02d" % number, b"later")
        engines.freeze(engine)
    for number in range(5):
        put(b"tail%d" % number, b"t" * 20)
    last = {b"last one", b"last two"}
    engine.mset([(key, b"together") for key in last])
    values |= dict.fromkeys(last, b"together")
    engine.commit()
    if path.name in ("stopped", "member"):
        engine.close()
    else:
        shutil.copytree(path, path.with_suffix(".copy"))
        engines.abandon(engine)
        shutil.rmtree(path)
        path.with_suffix(".copy").rename(path)
    return Template(
        path,
        {key.hex(): value_hash(value) for key, value in values.items()},
        frozenset(key.hex() for key in last) if path.name not in ("stopped", "member") else frozenset(),
    )


# -- what is done to a directory ---------------------------------------------------------------------------------------

Templates = dict[str, Template]
Damage = Callable[[random.Random, Path, Templates], Input]


def files_of(path: Path) -> list[Path]:
    return sorted(one for one in path.rglob("*") if one.is_file() and not one.is_symlink())


def a_file(chance: random.Random, path: Path) -> Path:
    """Any file; those that have the data more often."""
    files = files_of(path)
    return chance.choice(files + [file for file in files if file.suffix in (".log", ".mdb")])


def name_of(file: Path, path: Path) -> str:
    return str(file.relative_to(path))


def resize(chance: random.Random, path: Path, _: Templates) -> Input:
    file = a_file(chance, path)
    size = file.stat().st_size
    to = chance.choice(
        (*SIZES, max(0, size - 1), size + 1, size + PAGE, size // 2, chance.randrange(size + 1), 1 << 40)
    )
    os.truncate(file, to)
    return Input(f"{name_of(file, path)} has {to} bytes instead of {size}", shifts=True)


def change_bytes(chance: random.Random, path: Path, _: Templates) -> Input:
    file = a_file(chance, path)
    data = file.read_bytes()
    near = chance.choice((None, *SIZES[:12], PAGE, 2 * PAGE))
    at = near if near is not None and near < len(data) else chance.randrange(len(data) + 1)
    kind = chance.choice(("zeros", "ones", "flip", "random", "text", "more"))
    size = chance.choice((1, 2, 4, 8, 64, PAGE))
    old = data[at : at + size]
    new = {
        "zeros": bytes(size),
        "ones": b"\xff" * size,
        "flip": bytes(byte ^ 1 << chance.randrange(8) for byte in old),
        "random": chance.randbytes(size),
        "text": (b"\x1b[31m\r\nmerklekv: done\n" * 200)[:size],
        "more": old * 2,
    }[kind]
    file.write_bytes(data[:at] + new + data[at + size :])
    return Input(f"{name_of(file, path)}: {kind}, {size} bytes at {at}", shifts=kind == "more" or at + size > len(data))


def any_change(chance: random.Random, path: Path, _: Templates) -> Input:
    file = a_file(chance, path)
    file.write_bytes(damaged(chance, file.read_bytes()))
    return Input(f"{name_of(file, path)}: changed anywhere", shifts=True)


def exchange(chance: random.Random, path: Path, templates: Templates) -> Input:
    other = templates[chance.choice(TEMPLATES)].path
    file, source = a_file(chance, path), a_file(chance, other)
    shutil.copyfile(source, file)
    # Files that belong together may make a sound directory with other data.
    return Input(f"{name_of(file, path)} is {source.relative_to(other.parent)}", forged=True)


def replace(chance: random.Random, path: Path, _: Templates) -> Input:
    places = [*files_of(path), path / "log", path / "base", path / "outbox", path / "FORMAT.new", path / "base.new"]
    places += [path / "base.old", path / "log" / ".next", path / "log" / ".reserve", path / "node-id.new"]
    file = chance.choice(places)
    kinds = ["missing", "directory", "pipe", "socket", "null", "zero", "self", "dangling", "out", "loop", "empty"]
    kind = chance.choice(kinds)
    outside = path.parent / "outside"
    remove(outside)
    contents = file.read_bytes() if file.is_file() else b"foreign"
    remove(file)
    match kind:
        case "directory":
            file.mkdir()
            (file / "inside").touch()
        case "pipe":
            os.mkfifo(file)
        case "socket":
            with socket.socket(socket.AF_UNIX) as bound, suppress(OSError):
                bound.bind(str(file))
        case "null" | "zero" if os.geteuid() == 0:
            os.mknod(file, 0o20600, os.makedev(1, 3 if kind == "null" else 5))
        case "self":
            file.symlink_to(file.name)
        case "dangling":
            file.symlink_to("nothing")
        case "out":
            outside.write_bytes(contents)
            file.symlink_to(outside)
        case "loop":
            file.symlink_to("..")
        case "empty":
            file.touch()
    is_data = file.suffix in (".log", ".mdb") or file.name in ("log", "base")
    return Input(f"{name_of(file, path)} is {kind}", forged=not is_data, shifts=True)


def add(chance: random.Random, path: Path, _: Templates) -> Input:
    log = path / "log"
    segments = [segment_path(log, lsn) for lsn in list_segments(log)]
    segment = chance.choice(segments)
    lsn = int(segment.stem)
    names = [f"{lsn + 1:020d}.log", f"{10**20 - 1}.log", f"{lsn}.log", f"{lsn:021d}.log", f"{lsn:020d}.log.bak"]
    names += [f"{lsn + segment.stat().st_size:020d}.log", f"{1 << 64:020d}.log", "x.log", "\u0661" * 20 + ".log"]
    kind = chance.choice(("segment", "foreign", "bytes", "deep", "many"))
    match kind:
        case "segment":
            name = chance.choice(names)
            shutil.copyfile(segment, log / name)
        case "foreign":
            name = chance.choice(("notes.txt", "\x1b[31mred\n", "-rf", "n" * 255, "FORMAT~", "data.mdb"))
            (chance.choice((path, log, path / "base")) / name).write_bytes(b"foreign")
        case "bytes":
            name = chance.choice((b"\xff\xfe", b"\xff.log", b"\x80" * 20 + b".log")).decode(errors="surrogateescape")
            (chance.choice((path, log, path / "base")) / name).write_bytes(b"foreign")
        case "deep":
            name = "/".join(["d"] * 100)
            (path / "base.new" / name).mkdir(parents=True)
        case _:
            name = "many"
            for number in range(300):
                (log / f"{number:020d}.log.{number}").touch()
    return Input(f"added: {kind} {name!r}"[:200])


def forbid(chance: random.Random, path: Path, _: Templates) -> Input:
    if os.geteuid():
        return Input("nothing")
    for one in (path, *path.rglob("*")):
        os.chown(one, NOBODY, NOBODY)
    places = [path, *path.rglob("*")]
    file = chance.choice(places)
    kind = chance.choice(("root's", "nobody may use it", "no writing"))
    if kind == "root's":
        os.chown(file, 0, 0)
        file.chmod(0o700 if file.is_dir() else 0o600)
    else:
        file.chmod({"nobody may use it": 0, "no writing": 0o500 if file.is_dir() else 0o400}[kind])
    return Input(f"{kind}: {name_of(file, path)}", user=NOBODY, forged=True)


def forge_frame(chance: random.Random, path: Path, _: Templates) -> Input:
    """A frame, or a segment's header, with other contents and a checksum that fits."""
    lsns = list_segments(path / "log")
    lsn = chance.choice(lsns)
    file = segment_path(path / "log", lsn)
    if chance.random() < 0.25:
        data = bytearray(file.read_bytes())
        at, size = chance.choice(((8, 4), (12, 4), (16, 8), (24, 8), (32, 8)))
        number = chance.choice(LARGE) % (1 << 8 * size)
        data[at : at + size] = number.to_bytes(size, "big")
        data[40:48] = xxh3_64_digest(bytes(data[:40]))
        file.write_bytes(data)
        return Input(f"{name_of(file, path)}: the header has {number} at byte {at}", forged=True)
    with Segment(file) as segment:
        frames = list(segment.frames())
        data = bytearray(segment.data[:])
    if not frames:
        return Input("nothing", forged=True)
    frame = chance.choice(frames)
    fields = [frame.synced, frame.sequence, frame.local_count, frame.entry_count]
    payload = frame.payload
    kind = chance.choice(("header", "entry", "entries", "bytes", "append"))
    what = kind
    if kind == "header":
        at = chance.randrange(4)
        number = chance.choice((*LARGE, fields[at] + 1, fields[at] - 1)) % (1 << (64 if at < 2 else 32))
        fields[at] = number
        what = f"header field {at} is {number}"
    elif kind == "entry" and payload:
        at, size = chance.choice(((0, 1), (1, 2), (3, 4)))
        number = chance.choice(LARGE) if size > 1 else chance.randrange(256)
        payload = payload[:at] + (number % (1 << 8 * size)).to_bytes(size, "big") + payload[at + size :]
        what = f"byte {at} of the first entry is {number}"
    elif kind == "bytes" and payload:
        payload = damaged(chance, payload)
    else:
        more = [hostile_entry(chance) for _ in range(chance.choice((1, 1, 3)))]
        payload += b"".join(more)
        fields[3] += len(more)
        what = f"more entries: {more[0][:60]!r}"
    head = b"MKVF" + struct.pack(">IQQII", len(payload), *fields)
    made = head + xxh3_64_digest(struct.pack(">QQ", lsn, frame.position) + head + payload) + payload
    is_last = frame.end == frames[-1].end
    if len(made) == frame.end - frame.position or is_last:
        data[frame.position : frame.end] = made
        file.write_bytes(data)
    else:  # what follows would not fit its place
        file.write_bytes(data[: frame.position] + made)
    return Input(f"{name_of(file, path)}, frame at {frame.position}: {what}", forged=True)


def hostile_entry(chance: random.Random) -> bytes:
    """An entry of a frame, with contents at the bounds of what there may be."""
    op = chance.choice((*range(26), 31, 64, 127))
    op |= chance.choice((0, 0x80))
    key = chance.choice(
        (
            b"",
            b"k",
            b"k01",
            b"k" * 511,
            b"k" * 512,
            b"k" * 65_535,
            b"gc_horizon",
            b"members",
            b"purged",
            b"\xff\xff",
            b"joined",
        )
    )
    version = chance.choice((bytes(24), b"\xff" * 24, b"\x7f" + b"\xff" * 23, engines.version(engines.NOON)))
    records = [
        b"",
        b"\0",
        version,
        version[:23],
        version + b"\0",
        version + b"\5" + bytes(16),
        version + b"\5" + bytes(24),
        version + bytes((chance.randrange(256),)) + bytes(16),
        make_record(key or b"k", version, b"forged"),
        make_record(key or b"k", version, b"", tombstone=True),
        make_record(key or b"k", version, b"f", expiry=1),
        make_record(key or b"k", version, b"f", expiry=(1 << 63) - 1),
        make_record(b"other", version, b"of another key"),
        b"\xff" * 8,
        bytes(8),
        b"\x9f" * 100,
        b"\xa1" + b"\x5b" + b"\xff" * 8,
    ]
    return engines.entry(op, key[:65_535], chance.choice(records))


def forge_base(chance: random.Random, path: Path, _: Templates) -> Input:
    """The base, written by LMDB itself, with contents that no node writes."""
    file = path / "base" / "data.mdb"
    with lmdb.open(str(file.parent), max_dbs=16, map_size=1 << 28, lock=False) as env:
        handles = {name: open_database(env, name, True) for name in DATABASES}
        name = chance.choice([*DATABASES, b"meta", b"meta"])
        with env.begin(write=True) as txn:
            with txn.cursor(db=handles[name]) as cursor:
                keys = list(cursor.iternext(values=False))
            metas = (b"checkpoint_lsn", b"checkpointing", b"truncation", b"newest", b"live", b"dead")
            names = (b"metadata:gc_horizon", b"metadata:members", b"metadata:purged", b"metadata:", b"metadata:joined")
            if name == b"meta":
                keys += [*metas, *names]
            key = chance.choice(keys or [b"k"])
            kind = chance.choice(("delete", "drop", "put", "put", "put", "name"))
            if kind == "delete":
                txn.delete(key, db=handles[name])
            elif kind == "drop":
                txn.drop(handles[name], delete=chance.random() < 0.5)
            else:
                number = chance.choice(LARGE)
                size = chance.choice((0, 1, 7, 8, 8, 8, 8, 9, 23, 24, 24, 25, 41, 100, 6143, 6144, 6145))
                value = chance.choice(
                    (
                        number.to_bytes(8, "big").rjust(size, b"\0")[-size:] if size else b"",
                        chance.randbytes(size),
                        b"\xff" * size,
                    )
                )
                if name in (b"index", b"tombstones"):
                    value = value[:511] or b"k"
                if name == b"expiries":
                    value = (value + bytes(9))[:9]
                new = key if kind == "put" else chance.choice((b"\xff", b"k" * 511, b"\0", b"k01", b"\0\0\0\0\0"))
                with suppress(lmdb.BadValsizeError):
                    txn.put(new, value, db=handles[name])
                kind = f"{new[:40]!r} has {len(value)} bytes, {value[:24].hex()}"
    return Input(f"base, {name.decode()}: {kind}, {key[:40]!r}", forged=True)


def forge_pages(chance: random.Random, path: Path, _: Templates) -> Input:
    """A page of LMDB: its header, a pointer, a node, a field of the two meta pages."""
    file = path / "base" / "data.mdb"
    data = bytearray(file.read_bytes())
    pages = len(data) // PAGE
    if pages < 3:
        return Input("nothing")
    page = chance.randrange(pages)
    start = page * PAGE
    half = chance.choice((0, 1, 2, 4, 15, 16, 18, 0x20, 0x22, 0x40, 511, 512, PAGE, 65_535, chance.randrange(65_536)))
    word = chance.choice(
        (0, 1, 2, page + 1, pages, pages - 1, 1 << 32, 1 << 63, (1 << 64) - 1, chance.randrange(pages))
    )
    kind = chance.choice(
        ("number", "flags", "lower", "upper", "pointer", "node", "zeros", "random", "other", "meta", "meta")
    )
    match kind:
        case "number":
            data[start : start + 8] = word.to_bytes(8, "little")
        case "flags" | "lower" | "upper":
            at = start + {"flags": 10, "lower": 12, "upper": 14}[kind]
            data[at : at + 2] = half.to_bytes(2, "little")
        case "pointer":
            at = start + 16 + 2 * chance.randrange(8)
            data[at : at + 2] = half.to_bytes(2, "little")
        case "node":
            (at,) = struct.unpack_from("<H", data, start + 16 + 2 * chance.randrange(4))
            at = start + at % (PAGE - 8) + chance.choice((0, 2, 4, 6))
            data[at : at + 2] = half.to_bytes(2, "little")
        case "zeros":
            data[start : start + PAGE] = bytes(PAGE)
        case "random":
            data[start : start + PAGE] = chance.randbytes(PAGE)
        case "other":
            other = PAGE * chance.randrange(pages)
            data[start : start + PAGE] = data[other : other + PAGE]
        case _:
            page = chance.randrange(2)
            at = page * PAGE + 16 + 8 * chance.randrange(17)
            data[at : at + 8] = word.to_bytes(8, "little")
    file.write_bytes(data)
    return Input(f"base, page {page}: {kind}, {half} or {word}", pages=True)


def forge_cursor(chance: random.Random, path: Path, _: Templates) -> Input:
    head = b"MKVCURSR" + chance.choice(LARGE).to_bytes(8, "big") + chance.choice(LARGE).to_bytes(8, "big")
    (path / "outbox").write_bytes(head + xxh3_64_digest(head))
    return Input(f"outbox: {head!r}", forged=True)


def forge_text(chance: random.Random, path: Path, _: Templates) -> Input:
    file = path / chance.choice(("FORMAT", "node-id", "LOCK"))
    texts: list[bytes] = [
        b"",
        b"\n",
        b"MerkleKV data format 3",
        b"MerkleKV data format 03\n",
        b"MerkleKV data format 4\n",
    ]
    texts += [
        b"MerkleKV data format " + b"9" * 200,
        b"MerkleKV data format -3",
        b"MerkleKV data format \xd9\xa3",
        b"\xff\xfe",
    ]
    texts += [
        b"a/b",
        b"#",
        b"a\nb",
        b"\x1b[31m",
        b"n" * 129,
        b"\0",
        b" ",
        b"node\0",
        "\ufeffnode".encode(),
        b"1",
        b"-1",
    ]
    texts += [b"99999999999999999999999", str(os.getpid()).encode(), b"x" * 1_000_000]
    text = chance.choice(texts)
    file.write_bytes(text)
    return Input(f"{file.name}: {text[:60]!r}", forged=True)


DAMAGES: Final[tuple[Damage, ...]] = (
    *(resize, change_bytes, change_bytes, any_change, exchange, replace, replace, add, forbid),
    *(
        forge_frame,
        forge_frame,
        forge_frame,
        forge_base,
        forge_base,
        forge_pages,
        forge_pages,
        forge_cursor,
        forge_text,
    ),
)

PATHS = (DirectoryPath,)
