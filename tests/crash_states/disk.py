"""What a power cut may leave of a directory, at each moment of a trace.

The model is that of ALICE (Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014), with its weakest
promises, as POSIX has them:

    fsync, fdatasync    of a file: what was done to its content and size before is on disk; not its name
                        of a directory: its names are on disk; not what they stand for
    O_DSYNC             what this call wrote is on disk when it returns, and the size that it needs
    everything else     is on disk or not, whatever came before or after it

A write may be there in part: each of its sectors by itself, or its size alone, with zeros in place of the data, or with
what a deleted file had left in those blocks (ext4 with data=writeback). Room that was reserved has zeros. A name comes
or goes whole. A rename may leave both names of a file (soft updates), never none. `sync_file_range` promises nothing.

So a state is a set of operations: those that a sync covers, and of the others any. As in BOB (same paper), an operation
that is entered may have happened, in whole or in part; a sync counts when it returns.

The content of LMDB's lock file is written through a memory map, which a trace does not show. It has no meaning after a
crash: LMDB makes it anew for the first process that opens it.
"""

from __future__ import annotations

import copy
import itertools
import os
import random
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from .trace import Call, Trace

SECTOR: Final = 512
MAPPED: Final = "lock.mdb"
NEVER: Final = 1 << 60  # an event behind all others

_numbers = itertools.count()


class Untraceable(AssertionError):
    """The trace has something that this model does not know."""


@dataclass(eq=False)
class Operation:
    """Something that was done to one file or directory."""

    node: Node
    entered: int  # event from which on it may be there
    returned: int
    durable: int = NEVER  # event from which on it is there
    number: int = field(default_factory=_numbers.__next__)

    pieces: int = 1
    what: str = ""

    @property
    def whole(self) -> int:
        """The choice of all pieces: a bit for each."""
        return (1 << self.pieces) - 1


@dataclass(eq=False)
class Write(Operation):
    """Data at a position; the last piece is its size."""

    position: int = 0
    data: bytes = b""

    def __post_init__(self) -> None:
        self.pieces = len(list(self.parts())) + 1

    @property
    def end(self) -> int:
        """Where it ends."""
        return self.position + len(self.data)

    def parts(self) -> Iterator[tuple[int, int]]:
        """Begin and end of each sector's part."""
        at = self.position
        while at < self.end:
            end = min((at // SECTOR + 1) * SECTOR, self.end)
            yield at, end
            at = end


@dataclass(eq=False)
class Resize(Operation):
    """A file gets a size, or at least that size (`grows`: room is reserved)."""

    size: int = 0
    grows: bool = False


@dataclass(eq=False)
class Rename(Operation):
    """Names come and go: `new` stands for `target`, `old` does not any more."""

    new: str = ""
    target: Node | None = None
    old: str = ""

    def __post_init__(self) -> None:
        if self.new and self.old and self.target is not None and not self.target.is_directory:
            self.pieces = 2  # the new name, and then the loss of the old one


@dataclass(eq=False)
class Node:
    """A file or a directory, under whatever names."""

    is_directory: bool
    operations: list[Operation] = field(default_factory=list)  # in order
    names: dict[str, Node] = field(default_factory=dict)  # now, to follow the trace
    size: int = 0  # now
    is_mapped: bool = False
    number: int = field(default_factory=_numbers.__next__)


@dataclass
class _Open:
    node: Node
    is_synchronous: bool
    appends: bool
    offset: int = 0


@dataclass(frozen=True)
class Mark:
    """What the program said at an event, and what the time was then."""

    event: int
    seconds: float
    words: tuple[str, ...]


Choice = dict[Operation, int]  # of what no sync covers, what is there; see `Operation.whole`


class Disk:
    """The directory `root`, from nothing or from what `scan` finds."""

    def __init__(self) -> None:
        self.root = Node(is_directory=True)
        self.nodes = [self.root]
        self.marks: list[Mark] = []
        self.points: list[int] = []  # events after which something is new
        self.last = 0  # event
        self._contents: dict[tuple[Any, ...], bytes] = {}

    # -- building it ---------------------------------------------------------------------------------------------------

    def scan(self, place: Path, node: Node | None = None) -> Disk:
        """Takes what is in a real directory for durable."""
        node = node or self.root
        for path in sorted(place.iterdir()):
            child = self._add(path.is_dir(), path.name)
            node.names[path.name] = child
            node.operations.append(Rename(node, 0, 0, 0, new=path.name, target=child))
            if child.is_directory:
                self.scan(path, child)
            else:
                data = path.read_bytes()
                child.size = len(data)
                text = data.rstrip(b"\0")
                child.operations.append(Write(child, 0, 0, 0, position=0, data=text))
                child.operations.append(Resize(child, 0, 0, 0, size=len(data)))
        return self

    def killed_at(self, event: int) -> Disk:
        """The same disk when all processes end there, for another trace to go on with: what was not synced stays so."""
        disk = Disk()
        copies = {node: Node(node.is_directory, is_mapped=node.is_mapped, number=node.number) for node in self.nodes}
        disk.root, disk.nodes, disk.last = copies[self.root], list(copies.values()), event
        for node, new in copies.items():
            for each in node.operations:
                if each.entered <= event:
                    one = copy.copy(each)
                    one.node, one.returned = new, min(one.returned, event)
                    one.durable = one.durable if one.durable <= event else NEVER
                    if isinstance(one, Rename) and one.target is not None:
                        one.target = copies[one.target]
                    new.operations.append(one)
        for new in disk.nodes:
            everything = {each: each.whole for each in new.operations}
            if new.is_directory:
                new.names = names_of(new, everything)
            else:
                new.size = disk.content(new, everything)[1]
        return disk

    def play(self, trace: Trace, root: Path, marks: Path, begin: str = "") -> None:
        """Goes through a trace of what was done in the real directory `root`, behind what this disk knows.

        `begin`: of a trace of several programs, only the marks between `place BEGIN` and the next one count.
        """
        _Player(self, trace, root, marks).play()
        if begin:
            places = [mark for mark in self.marks if mark.words[0] == "place"]
            first = next(number for number, mark in enumerate(places) if mark.words[1] == begin)
            low = places[first].event
            high = places[first + 1].event if first + 1 < len(places) else NEVER
            self.marks = [mark for mark in self.marks if low < mark.event < high]
            self.points = [point for point in self.points if low < point < high]

    @property
    def writes(self) -> list[Write]:
        """All writes, in order."""
        found = [each for node in self.nodes for each in node.operations if isinstance(each, Write)]
        return sorted(found, key=lambda each: each.number)

    @property
    def renames(self) -> list[Rename]:
        """All names that came or went, in order, as far as a point is behind them."""
        found = [each for node in self.nodes for each in node.operations if isinstance(each, Rename)]
        points = set(self.points)
        return sorted((each for each in found if each.entered in points), key=lambda each: each.number)

    def _add(self, is_directory: bool, name: str) -> Node:
        node = Node(is_directory, is_mapped=name == MAPPED)
        self.nodes.append(node)
        return node

    # -- what may be left ----------------------------------------------------------------------------------------------

    def pending(self, event: int) -> list[Operation]:
        """What no sync covers after this event, in order."""
        return sorted(
            (
                each
                for node in self.nodes
                if not node.is_mapped
                for each in node.operations
                if each.entered <= event < each.durable
            ),
            key=lambda each: each.number,
        )

    def _chosen(self, node: Node, event: int, choice: Choice) -> Choice:
        chosen: Choice = {}
        for each in node.operations:
            if each.entered <= event:
                pieces = each.whole if each.durable <= event else choice.get(each, 0)
                if pieces:
                    chosen[each] = pieces
        return chosen

    def tree(self, event: int, choice: Choice) -> dict[str, tuple[Node, Choice]]:
        """Every path that is left, with its node and what is left of that."""
        found: dict[str, tuple[Node, Choice]] = {}

        def walk(node: Node, path: str, above: tuple[Node, ...]) -> None:
            for name, child in names_of(node, self._chosen(node, event, choice)).items():
                if child in above:
                    continue
                place = f"{path}{name}"
                found[place] = child, self._chosen(child, event, choice)
                if child.is_directory:
                    walk(child, f"{place}/", (*above, child))

        walk(self.root, "", (self.root,))
        return found

    def identity(self, event: int, choice: Choice, stale: bool) -> int:
        """Equal for equal states."""
        tree = self.tree(event, choice)
        return hash(
            tuple(
                (path, node.number, stale, *((each.number, pieces) for each, pieces in chosen.items()))
                for path, (node, chosen) in sorted(tree.items())
            )
        )

    def lay_down(self, target: Path, event: int, choice: Choice, stale: bytes = b"") -> None:
        """Makes the files that are left; `stale` is what blocks hold whose data did not reach them."""
        for path, (node, chosen) in self.tree(event, choice).items():
            place = target / path
            if node.is_directory:
                place.mkdir(0o700)
                continue
            data, size = self.content(node, chosen, stale)
            fd = os.open(place, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.write(fd, data)
                if size > len(data):
                    os.ftruncate(fd, size)
            finally:
                os.close(fd)

    def content(self, node: Node, chosen: Choice, stale: bytes = b"") -> tuple[bytes, int]:
        """Data and size of a file; behind the data are zeros."""
        key = (node.number, stale, *((each.number, pieces) for each, pieces in chosen.items()))
        known = self._contents.get(key)
        if known is not None:
            return known[8:], int.from_bytes(known[:8], "big")
        data, size = bytearray(), 0
        for each, pieces in chosen.items():
            if isinstance(each, Resize):
                size = max(size, each.size) if each.grows else each.size
                del data[size:]
            elif isinstance(each, Write):
                size = _write(data, size, each, pieces, stale)
        if len(self._contents) > 100:
            self._contents.clear()
        self._contents[key] = size.to_bytes(8, "big") + data
        return bytes(data), size


def _write(data: bytearray, size: int, write: Write, pieces: int, stale: bytes) -> int:
    before = size
    for number, (begin, end) in enumerate(write.parts()):
        is_there = pieces >> number & 1
        if is_there or (stale and begin >= before and pieces):
            if len(data) < begin:
                data.extend(bytes(begin - len(data)))
            part = write.data[begin - write.position : end - write.position]
            if not is_there:
                part = (stale * (1 + (end - begin) // len(stale)))[: end - begin]
            data[begin:end] = part
            size = max(size, end)
    return max(size, write.end) if pieces >> write.pieces - 1 & 1 else size


def names_of(node: Node, chosen: Choice) -> dict[str, Node]:
    """The names in a directory."""
    names: dict[str, Node] = {}
    for each, pieces in chosen.items():
        assert isinstance(each, Rename)
        is_lost = bool(each.old) and (each.pieces == 1 or bool(pieces & 2))
        if is_lost and (each.target is None or names.get(each.old) is each.target):
            names.pop(each.old, None)
        if each.new and each.target is not None:
            names[each.new] = each.target
    return names


class _Player:
    """Turns calls into operations."""

    def __init__(self, disk: Disk, trace: Trace, root: Path, marks: Path) -> None:
        self._disk = disk
        self._trace = trace
        self._root = root
        self._marks = str(marks)
        self._first = disk.last + 1  # event
        self._open: dict[tuple[int, int], list[tuple[int, _Open]]] = {}  # with the event from which on it is open

    def play(self) -> None:
        for call in self._trace.calls:
            take = getattr(self, f"_take_{call.name}", None)
            if take is None:
                self._unknown(call)
            else:
                take(call)
        disk = self._disk
        disk.last = self._first + 2 * len(self._trace.times)
        disk.points = sorted({point for point in disk.points if point >= self._first})

    # -- finding what a call is about ----------------------------------------------------------------------------------

    def _within(self, path: str) -> tuple[str, ...] | None:
        place = Path(os.path.normpath(path))
        return place.relative_to(self._root).parts if place.is_relative_to(self._root) else None

    def _find(self, path: str) -> tuple[Node | None, Node | None, str]:
        """The directory, what has this name there, and the name; None for what is not of this disk."""
        parts = self._within(path)
        if not parts:
            return None, self._disk.root if parts == () else None, ""
        node = self._disk.root
        for part in parts[:-1]:
            if part not in node.names:
                return None, None, ""
            node = node.names[part]
        return node, node.names.get(parts[-1]), parts[-1]

    def _file(self, call: Call) -> _Open | None:
        fd, path = call.descriptor
        if fd < 0 or self._within(path.removesuffix("(deleted)")) is None:
            return None
        found = self._opened(call.process, fd, call.entered)
        if found is None:
            raise Untraceable(f"{call.name} of an unknown descriptor: {fd} {path}")
        return found

    def _opened(self, process: int, fd: int, event: int) -> _Open | None:
        """What a descriptor stands for then. Of two calls that overlap, the one that returns last made it."""
        known = [each for each in self._open.get((process, fd), ()) if each[0] < event]
        return max(known, key=lambda each: each[0])[1] if known else None

    def _unknown(self, call: Call) -> None:
        if call.names(self._root):
            raise Untraceable(f"a call that this model does not know: {call.name}")

    # -- noting it -----------------------------------------------------------------------------------------------------

    def _events(self, call: Call) -> tuple[int, int]:
        return self._first + call.entered, self._first + call.returned

    def _note(self, operation: Operation, what: str) -> None:
        operation.what = what
        operation.node.operations.append(operation)
        self._disk.points.append(operation.entered)

    def _name(self, call: Call, directory: Node, new: str, target: Node | None, old: str = "") -> None:
        if old:
            directory.names.pop(old, None)
        if new and target is not None:
            directory.names[new] = target
        operation = Rename(directory, *self._events(call), new=new, target=target, old=old)
        self._note(operation, f"{call.name} {old or new}{f' -> {new}' if old and new else ''}")

    def _write(self, call: Call, opened: _Open, data: bytes, position: int) -> None:
        node = opened.node
        operation = Write(node, *self._events(call), position=position, data=data)
        if opened.is_synchronous:
            operation.durable = operation.returned
            self._disk.points.append(operation.returned)
        node.size = max(node.size, operation.end)
        self._note(operation, f"{call.name} {len(data)} bytes at {position}")

    def _resize(self, call: Call, node: Node, size: int, grows: bool = False) -> None:
        node.size = max(size, node.size) if grows else size
        self._note(Resize(node, *self._events(call), size=size, grows=grows), f"{call.name} to {size}")

    def _sync(self, call: Call, nodes: Iterable[Node]) -> None:
        entered, returned = self._events(call)
        for node in nodes:
            for each in node.operations:
                if each.returned < entered:
                    each.durable = min(each.durable, returned)
        self._disk.points.append(returned)

    # -- the calls -----------------------------------------------------------------------------------------------------

    def _take_openat(self, call: Call) -> None:
        path = call.paths[0]
        directory, node, name = self._find(path)
        if directory is None and node is None:
            return
        if node is None:
            if "O_CREAT" not in call.text or directory is None:
                raise Untraceable(f"a file came from nowhere: {path}")
            node = self._disk._add(False, name)
            self._name(call, directory, name, node)
        if "O_TRUNC" in call.text and node.size:
            self._resize(call, node, 0)
        synchronous = "O_DSYNC" in call.text or "O_SYNC" in call.text
        opened = _Open(node, synchronous, "O_APPEND" in call.text)
        self._open.setdefault((call.process, call.result), []).append((call.returned, opened))

    _take_open = _take_creat = _take_openat

    def _take_lseek(self, call: Call) -> None:
        fd, _ = call.descriptor
        opened = self._opened(call.process, fd, call.entered)
        if opened is not None:  # else a list of names is read again, through a duplicate
            opened.offset = call.result

    def _take_write(self, call: Call) -> None:
        data = b"".join(call.strings)[: call.result]
        if call.descriptor[1] == self._marks:
            event = self._first + call.entered
            seconds = self._trace.time_at(call.entered)
            self._disk.marks.append(Mark(event, seconds, tuple(data.decode().split())))
            self._disk.points.append(event)
        elif opened := self._file(call):
            position = opened.node.size if opened.appends else opened.offset
            self._write(call, opened, data, position)
            opened.offset = position + len(data)

    _take_writev = _take_write

    def _take_sendfile(self, call: Call) -> None:
        if opened := self._file(call):
            source = self._find(call.second)[1]
            offset = re.search(r"\[(\d+)\]", call.text)
            if source is None or offset is None:
                raise Untraceable(f"a copy of a file from elsewhere: {call.second}")
            data, size = self._disk.content(source, {each: each.whole for each in source.operations})
            copied = data.ljust(size, b"\0")[int(offset[1]) :][: call.result]
            self._write(call, opened, copied, opened.offset)
            opened.offset += call.result

    def _take_pwrite64(self, call: Call) -> None:
        if opened := self._file(call):
            self._write(call, opened, b"".join(call.strings)[: call.result], call.numbers()[-1])

    _take_pwritev = _take_pwrite64

    def _take_ftruncate(self, call: Call) -> None:
        if opened := self._file(call):
            self._resize(call, opened.node, call.numbers()[-1])

    def _take_truncate(self, call: Call) -> None:
        node = self._find(call.paths[0])[1]
        if node is not None:
            self._resize(call, node, call.numbers()[-1])

    def _take_fallocate(self, call: Call) -> None:
        if opened := self._file(call):
            mode, offset, size = call.text.split(", ")[1:]
            if mode != "0":
                raise Untraceable(f"fallocate with {mode}")
            self._resize(call, opened.node, int(offset) + int(size), grows=True)

    def _take_mkdir(self, call: Call) -> None:
        directory, _, name = self._find(call.paths[0])
        if directory is not None:
            self._name(call, directory, name, self._disk._add(True, name))

    _take_mkdirat = _take_mkdir

    def _take_unlink(self, call: Call) -> None:
        directory, _, name = self._find(call.paths[0])
        if directory is not None:
            self._name(call, directory, "", None, name)

    _take_unlinkat = _take_rmdir = _take_unlink

    def _take_rename(self, call: Call) -> None:
        old, new = call.paths
        directory, node, old_name = self._find(old)
        target, _, new_name = self._find(new)
        if directory is None and target is None:
            return
        if node is None or directory is not target or directory is None:
            raise Untraceable(f"a rename between two directories: {old} to {new}")
        self._name(call, directory, new_name, node, old_name)

    _take_renameat = _take_renameat2 = _take_rename

    def _take_link(self, call: Call) -> None:
        old, new = call.paths
        node = self._find(old)[1]
        directory, _, name = self._find(new)
        if directory is not None:
            if node is None:
                raise Untraceable(f"a link to a file from elsewhere: {old}")
            self._name(call, directory, name, node)

    _take_linkat = _take_link

    def _take_fsync(self, call: Call) -> None:
        if opened := self._file(call):
            self._sync(call, [opened.node])

    _take_fdatasync = _take_fsync

    def _take_sync(self, call: Call) -> None:
        self._sync(call, self._disk.nodes)

    def _take_sync_file_range(self, call: Call) -> None:
        pass

    def _take_mmap(self, call: Call) -> None:
        is_written = "PROT_WRITE" in call.text and "MAP_SHARED" in call.text
        if is_written and call.second and self._within(call.second) is not None and Path(call.second).name != MAPPED:
            raise Untraceable(f"{call.second} is written through a memory map")


# -- states ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """What is left after a power cut behind an event; `name` says what of the operations that no sync covers."""

    event: int
    name: str

    def __str__(self) -> str:
        return f"{self.event}:{self.name}"

    @classmethod
    def parse(cls, text: str) -> State:
        """The state that `str` wrote."""
        event, _, name = text.partition(":")
        return cls(int(event), name)

    @property
    def is_stale(self) -> bool:
        """Whether blocks hold old data where the new data did not reach them."""
        return self.name.startswith("random") and self.name.endswith("s")

    def choice(self, disk: Disk) -> Choice:
        """What is there of what no sync covers."""
        pending = disk.pending(self.event)
        kind, *rest = self.name.split("-")
        everything = {each: each.whole for each in pending}
        if kind in ("all", "killed"):
            return everything
        if kind == "none":
            return {}
        if kind == "random":
            chance = random.Random(self.name)
            return {each: _part(each, chance) for each in pending}
        one = pending[int(rest[0])]
        if kind == "without":
            return everything | {one: 0}
        if kind == "only":
            return {one: one.whole}
        assert kind == "torn", self
        form = int(rest[1])
        return (everything if form >= len(FORMS) else {}) | {one: _torn(one, form % len(FORMS))}


FORMS: Final = ("first half", "last half", "every other sector", "size")


def _torn(operation: Operation, form: int) -> int:
    if operation.pieces == 1:
        return operation.whole
    if isinstance(operation, Rename):
        return 1
    sectors = operation.pieces - 1
    half = (1 << (sectors + 1) // 2) - 1
    data = (1 << sectors) - 1
    every_other = sum(1 << number for number in range(0, sectors, 2))
    return (half, data & ~half, every_other, 0)[form] | 1 << sectors


def _part(operation: Operation, chance: random.Random) -> int:
    draw = chance.random()
    if draw < 0.4:
        return 0
    if draw < 0.8:
        return operation.whole
    if isinstance(operation, Rename):
        return operation.whole if operation.pieces == 1 else 1
    return chance.getrandbits(operation.pieces)


def choose(disk: Disk, count: int, chance: random.Random) -> list[State]:
    """About so many different states: half of them the plain ones, or as many as there are, and others by chance.

    Plain are: after each point all that no sync covers, and none of it; and, just before a sync covers a name that has
    come or gone, all but that, and that alone. Of equal states the last is kept, because then most is promised.
    """
    found: dict[int, State] = {}

    def add(state: State) -> None:
        identity = disk.identity(state.event, state.choice(disk), state.is_stale)
        if identity not in found or found[identity].event < state.event:
            found[identity] = state

    def add_all(states: list[State], most: int) -> None:
        for state in chance.sample(states, len(states)):
            if len(found) >= most:
                return
            add(state)

    latest = _latest(disk)
    add_all([State(point, name) for point in latest for name in ("none", "all")], count // 4)
    names = []
    for operation in disk.renames:
        event = disk.points[bisect_left(disk.points, operation.durable) - 1]
        if event >= operation.entered:
            number = disk.pending(event).index(operation)
            names += [State(event, f"{kind}-{number}") for kind in ("without", "only")]
    add_all(names, count // 2)
    for _ in range(5 * count):
        if len(found) >= count:
            break
        event = chance.choice(latest if chance.random() < 0.5 else disk.points)
        pending = disk.pending(event)
        if pending:
            add(State(event, _draw(pending, chance)))
    return sorted(found.values(), key=lambda state: state.event)


def _latest(disk: Disk) -> list[int]:
    """The points just before a sync returns, and the last: whatever may be left then may be left before, too."""
    syncs = {each.durable for node in disk.nodes for each in node.operations}
    return [point for point, following in pairwise([*disk.points, NEVER]) if following in syncs or following == NEVER]


def _draw(pending: list[Operation], chance: random.Random) -> str:
    names = [number for number, each in enumerate(pending) if isinstance(each, Rename)]
    number = chance.choice(names) if names and chance.random() < 0.3 else chance.randrange(len(pending))
    kind = chance.choice(("without", "only", "torn", "random"))
    if kind == "torn":
        return f"torn-{number}-{chance.randrange(2 * len(FORMS))}"
    if kind == "random":
        return f"random-{chance.getrandbits(32)}{chance.choice(('', 's'))}"
    return f"{kind}-{number}"


def describe(disk: Disk, state: State) -> str:
    """For a failure: what of the operations that no sync covers is there, and what is not."""
    choice = state.choice(disk)
    lines = []
    for each in disk.pending(state.event):
        pieces = choice.get(each, 0)
        share = "there" if pieces == each.whole else f"{pieces:b} of {each.whole:b}" if pieces else "lost"
        lines.append(f"  {share}: {_path_of(disk, each.node)}: {each.what}")
    return "\n".join(lines[-40:])


def _path_of(disk: Disk, node: Node) -> str:
    for parent in disk.nodes:
        for each in parent.operations:
            if isinstance(each, Rename) and each.target is node:
                return each.new
    return "."


def is_same(disk: Disk, place: Path) -> str:
    """What differs between the end of the trace and the real directory, or nothing."""
    tree = disk.tree(NEVER - 1, {each: each.whole for each in disk.pending(NEVER - 1)})
    real = {str(path.relative_to(place)) for path in place.rglob("*")}
    if tree.keys() != real:
        return f"names: {sorted(tree.keys() ^ real)}"
    for path, (node, chosen) in tree.items():
        if not node.is_directory and not node.is_mapped:
            data, size = disk.content(node, chosen)
            if data.ljust(size, b"\0") != (place / path).read_bytes():
                return f"content: {path}"
    return ""
