"""The change feed: what was committed, in order, from a cursor on.

    change    what an entry of the log has done to a key, or to all of them: local writes and those of other nodes
    cursor    a position between two entries; it outlives the process, and is given to the reader

A reader gets each change once, as soon as it is committed, in the sense of the setting `durability`.  What a full disk
or a crash has taken back is in no frame of the log, so no reader sees it; with `always` that is all that a crash can
take.  What the log does for itself (metadata, repairs, collected tombstones) is no change.

A cursor names the frame of the last entry that was read, by position, size and checksum.  So it fits the log that it
was given for and no other: neither another node's, nor this one's after a power cut that took frames which were not on
disk yet, nor that of a backup.  A reader that comes with such a cursor, or with one whose segment is deleted (when:
log/retention.py), gets ChangesGone, and begins anew with all records.

A commit wakes the readers that wait for a key in it, or all for a truncation.  The others sleep on and cost nothing:
all that they need to know is where the last frame that does not concern them ends, and that is the same for all.  So no
reader that waits becomes too late, however long it sleeps.  While any waits, a commit looks at the keys of its frame:
2 us, 0.5 us for each entry, and 0.2 us for each prefix that is waited for at the most.

Frames that were read stay in memory, up to RECENT_BYTES of them, so many readers of the end share them.  A reader costs
1 us an entry that it looks at.

Threads: any.  One lock is held while a page is read; committing does not take it.  The other guards the readers that
wait; a commit takes it if there are any.
"""

import logging
import re
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, Self

from merklekv.engine.format import (
    ENTRY,
    FRAME_HEADER,
    OP_ORIGIN,
    OP_TRUNCATE,
    OPS,
    REMOTE,
    SEGMENT_HEADER,
)
from merklekv.engine.log.reader import DirectorySource, LogGone, LogReader
from merklekv.engine.log.segment import LogFrame, list_segments
from merklekv.engine.prefixes import Prefixes
from merklekv.engine.record import (
    deleted_at,
    expiry_of,
    is_purge_marker,
    is_tombstone,
    make_version,
    redelete_op_id,
    timestamp_of,
    value_of,
    version_of,
)
from merklekv.errors import ChangesGone, Corruption, InvalidArgument, shown
from merklekv.shortage import is_shortage, reason_of, shortage_of

PAGE_CHANGES: Final = 1000
PAGE_BYTES: Final = 1 << 20  # of keys and values; a page may be longer by one change
SLICE_ENTRIES: Final = 1000  # looked at in one call of `read`
SLICE_BYTES: Final = 4 << 20  # of frames, or one frame more: large values are read from disk
RECENT_BYTES: Final = 4 << 20  # of frames in memory, or one frame
MARKS_MAX: Final = 1000  # positions inside of frames where reading may go on without counting
ENDS_MAX: Final = 1000  # of segments
SCANNED_KEYS: Final = 1000  # of a frame, at once, for those who wait
CURSOR_SIZE_MAX: Final = 60

log = logging.getLogger(__name__)

_CURSOR: Final = re.compile(r"([0-9a-f]{1,16})-([0-9a-f]{1,9})-([0-9a-f]{1,8})-([0-9a-f]{16})")
_CHECK_SIZE: Final = 8
_COUNT_FIELD: Final = 5  # of a frame's header


class Change(NamedTuple):
    """What was done to a key."""

    key: bytes | None  # None: to all keys
    op: str  # `set`, `del`, `truncate`, ...
    value: bytes | None  # the new value; None: the key is deleted
    expiry: int | None  # milliseconds since the epoch
    version: bytes  # 24 bytes; of a truncation, everything below is deleted
    origin: str  # the id of the node that wrote it; empty for this one
    cursor: "Cursor"  # behind it


class Cursor(NamedTuple):
    """A position in the log: before the last `left` entries of a frame, or with size 0 at LSN `start`."""

    start: int  # LSN of the frame
    size: int  # of the frame
    left: int  # of its entries
    check: bytes  # the checksum of the frame, or with size 0 of the header of the segment

    @property
    def end(self) -> int:
        """LSN behind the frame."""
        return self.start + self.size

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads what `str` has made.  Raises InvalidArgument."""
        match = _CURSOR.fullmatch(text)
        if match is None:
            raise InvalidArgument(f"{shown(text[: CURSOR_SIZE_MAX + 1])} is no cursor that the change feed has given")
        start, size, left = (int(part, 16) for part in match.groups()[:3])
        return cls(start, size, left, bytes.fromhex(match[4]))

    def __str__(self) -> str:
        return f"{self.start:x}-{self.size:x}-{self.left:x}-{self.check.hex()}"


class Page(NamedTuple):
    """Some changes, and where to go on."""

    changes: list[Change]
    cursor: Cursor
    more: bool  # whether something behind the cursor is committed already


class _Waiting:
    """A reader that waits."""

    __slots__ = ("cursor", "prefix", "wake")

    def __init__(self, cursor: Cursor, prefix: bytes, wake: Callable[[], object]) -> None:
        self.cursor = cursor  # where it reads on, once it is woken
        self.prefix = prefix
        self.wake = wake


class Feed:
    """The committed log, for any number of readers.

    Contract: reading on from the cursor of each page gives every change that is committed behind the first cursor once,
    in the order of the log.
    """

    def __init__(self, log_directory: Path, end: int) -> None:
        """`end`: the LSN up to which the log is committed."""
        self.end = end
        self._directory = log_directory
        self._source = DirectorySource(log_directory)
        self._reader = LogReader(self._source)
        self._lock = threading.Lock()
        self._recent: OrderedDict[int, LogFrame] = OrderedDict()  # by LSN, the one that was used last at the end
        self._recent_size = 0
        self._marks: OrderedDict[tuple[int, int], tuple[int, str]] = OrderedDict()
        self._newest: tuple[int, int, bytes] | None = None  # start, end and header of this process's last frame
        self._ends: OrderedDict[Cursor, None] = OrderedDict()  # those at ends of segments, which may be deleted by now
        self._fresh: LogFrame | None = None  # the last one for which a reader waited
        self._waiting: Prefixes[_Waiting] = Prefixes()  # those who have seen all that was committed when they came
        self._waiting_lock = threading.Lock()
        self._passed: tuple[int, int, bytes] | None = None  # the last frame that did not concern those who wait
        self._is_ending = False

    # -- committing ----------------------------------------------------------------------------------------------------

    def committed(self, frame: LogFrame) -> None:
        """A frame is committed.  One thread at a time."""
        if frame.end - frame.start > len(frame.data) and (end := self._newest_end()) is not None:
            self._remember_end(end)  # the header of a segment lies between them
        self.end = frame.end  # first: a cursor behind the end would be refused
        self._newest = frame.start, frame.end, frame.data[: FRAME_HEADER.size]
        if self._waiting.by_length:
            self._wake_concerned(frame)

    def wait(self, cursor: Cursor, wake: Callable[[], object], prefix: bytes = b"") -> Callable[[], Cursor]:
        """Calls `wake` when a change that `read` gives for this prefix is committed behind the cursor, or at the end;
        at once if anything is behind the cursor already.

        It is called once, mostly in the committing thread, and has to be short.  The returned function ends the wait,
        if it has not ended yet, and returns the cursor to read on from: nothing before that concerns the reader.
        """
        reader = _Waiting(cursor, prefix, wake)
        with self._waiting_lock:
            self._waiting.add(prefix, reader)
            # Looked at last: a commit sets the end first and looks then for those who wait.
            is_due = self.end > cursor.end or cursor.left > 0 or self._is_ending
            if is_due:
                self._waiting.remove(prefix, reader)
        if is_due:
            wake()
        return partial(self._end_wait, reader)

    @property
    def has_waiting(self) -> bool:
        """Predicate: does a reader wait for changes?"""
        return bool(self._waiting.by_length)

    def _end_wait(self, reader: _Waiting) -> Cursor:
        with self._waiting_lock:
            if self._waiting.remove(reader.prefix, reader):
                self._move_on(reader)
        return reader.cursor

    def _move_on(self, reader: _Waiting) -> None:
        """Has it read on behind what did not concern it."""
        if self._passed is not None and self._passed[1] > reader.cursor.end:
            reader.cursor = _behind(self._passed)

    def _wake_concerned(self, frame: LogFrame) -> None:
        """Wakes those who wait for something in a frame.  The others have passed it then."""
        woken: list[_Waiting] = []
        with self._waiting_lock:
            try:
                self._take_concerned(frame, woken)
                self._passed = self._newest
            except MemoryError:  # then they look for themselves
                woken += self._take_all()
        if woken:
            self._fresh = frame
            _wake(woken)

    def _take_concerned(self, frame: LogFrame, woken: list[_Waiting]) -> None:
        waiting = self._waiting
        for keys in _changed_keys(frame):
            for prefix in list(waiting) if keys is None else waiting.matching(keys):
                for reader in list(waiting.under(prefix)):
                    if reader.cursor.end < frame.end:  # else it has come since, and has read the frame
                        waiting.remove(prefix, reader)
                        reader.cursor = _before_last(frame, _count_of(frame))
                        woken.append(reader)
            if not waiting.by_length:
                break

    def _take_all(self) -> list[_Waiting]:
        waiting, self._waiting = self._waiting, Prefixes()
        readers = [reader for prefix in waiting for reader in waiting.under(prefix)]
        for reader in readers:
            self._move_on(reader)
        return readers

    def end_waits(self) -> None:
        """Wakes all readers; none waits any more."""
        with self._waiting_lock:
            self._is_ending = True
            readers = self._take_all()
        _wake(readers)

    # -- cursors -------------------------------------------------------------------------------------------------------

    def first(self) -> Cursor:
        """Before the oldest change in the log."""
        with self._reading():
            return self._at_segment(min)

    def last(self) -> Cursor:
        """Behind the newest committed change."""
        newest = self._newest_end()
        if newest is not None:
            return newest
        with self._reading():  # all that there is was on disk when the process began
            end = self.end
            cursor = self._at_segment(lambda segments: max(lsn for lsn in segments if lsn <= end))._replace(start=end)
            self._remember_end(cursor)
            return cursor

    def _newest_end(self) -> Cursor | None:
        """Behind the last frame of this process."""
        return None if self._newest is None else _behind(self._newest)

    def _remember_end(self, cursor: Cursor) -> None:
        """It fits this log also when the segment before it is deleted, and nothing else tells."""
        self._ends[cursor] = None
        if len(self._ends) > ENDS_MAX:
            self._ends.popitem(last=False)

    def _is_known_end(self, cursor: Cursor) -> bool:
        return cursor in self._ends or cursor == self._newest_end()

    def _at_segment(self, choose: Callable[[list[int]], int]) -> Cursor:
        while True:
            lsn = choose(list_segments(self._directory))
            if check := self._check_of(lsn):  # else it was deleted meanwhile
                return Cursor(lsn, 0, 0, check)

    def _check_of(self, segment: int) -> bytes:
        """The checksum of a segment's header, which has the time of its creation; empty if the segment is gone."""
        return (self._source.read(segment, 0, SEGMENT_HEADER.size) or b"")[-_CHECK_SIZE:]

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Has the lock and leaves no file open, which would outlive its name."""
        with self._lock:
            try:
                yield
            except LogGone as gone:
                raise ChangesGone(f"the log begins at LSN {gone.oldest.lsn}, behind this cursor") from gone
            except OSError as error:
                if is_shortage(error):
                    raise shortage_of(error, "cannot read the log") from error
                raise Corruption(f"{self._directory}: cannot read the log: {reason_of(error)}") from error
            except (struct.error, IndexError) as error:  # of bytes that only look like a frame
                raise ChangesGone("this log has no such cursor, which is of another node") from error
            finally:
                self._source.close()

    # -- reading -----------------------------------------------------------------------------------------------------

    def read(self, cursor: Cursor, limit: int = PAGE_CHANGES, max_bytes: int = PAGE_BYTES, prefix: bytes = b"") -> Page:
        """The next changes of keys with this prefix, and truncations: at most `limit`, and `max_bytes` of keys and
        values, or one more.  It may have none although there is more.  Raises ChangesGone, Corruption, Shortage.
        """
        with self._reading():
            page = self._read(cursor, limit, max_bytes, prefix)
            if self._newest is None and not page.more:
                self._remember_end(page.cursor)  # of an earlier process: only its segment tells, and may be deleted
            return page

    def _read(self, cursor: Cursor, limit: int, max_bytes: int, prefix: bytes) -> Page:
        end_lsn = self.end
        fresh, self._fresh = self._fresh, None
        if fresh is not None:
            self._keep(fresh)
        frame, left, at, origin = self._locate(cursor, end_lsn)
        if frame is None:
            return Page([], cursor, False)
        changes: list[Change] = []
        budget, budget_bytes, size = SLICE_ENTRIES, SLICE_BYTES, 0
        unpack, head = ENTRY.unpack_from, ENTRY.size
        while True:
            data, end, check = frame.data, len(frame.data), _check_of(frame)
            budget_bytes -= end - at
            while at < end and budget and len(changes) < limit and size < max_bytes:
                op, key_length, record_length = unpack(data, at)
                key_at = at + head
                record_at = key_at + key_length
                at = record_at + record_length
                left -= 1
                budget -= 1
                kind = op & ~REMOTE
                if kind == OP_ORIGIN:
                    origin = data[key_at:record_at].decode(errors="replace")
                elif kind in OPS and (data.startswith(prefix, key_at, record_at) or kind == OP_TRUNCATE):
                    key, record = data[key_at:record_at], data[record_at:at]
                    behind = Cursor(frame.start, frame.end - frame.start, left, check)
                    changes.append(_change(kind, key, record, origin if op & REMOTE else "", behind))
                    size += len(key) + len(record)
            if at < end:
                self._mark(frame.start, left, at, origin)
                break
            if frame.end >= end_lsn or not (budget and budget_bytes > 0 and len(changes) < limit and size < max_bytes):
                break
            frame = self._frame(frame.end, end_lsn)
            left, at, origin = _count_of(frame), FRAME_HEADER.size, ""
        return Page(changes, _before_last(frame, left), at < end or frame.end < end_lsn)

    def _locate(self, cursor: Cursor, end_lsn: int) -> tuple[LogFrame | None, int, int, str]:
        """The frame to read on in, how many entries of it are left, where the next one is, and its origin."""
        if cursor.end > end_lsn:
            raise ChangesGone("this log does not reach to this cursor, which is of another node, or of before a crash")
        if cursor.left:
            frame = self._frame_of(cursor, end_lsn)
            return frame, cursor.left, *self._place(frame, cursor.left)
        if not self._is_known_end(cursor):
            if cursor.size:
                self._frame_of(cursor, end_lsn)
            else:
                self._require_same_log(cursor)
        return self._next_frame(cursor.end, end_lsn)

    def _frame_of(self, cursor: Cursor, end_lsn: int) -> LogFrame:
        frame = self._sound_frame(cursor.start, end_lsn)
        if cursor != _before_last(frame, cursor.left) or cursor.left > _count_of(frame):
            raise ChangesGone("this log has no such cursor, which is of another node, or of before a crash")
        return frame

    def _next_frame(self, start: int, end_lsn: int) -> tuple[LogFrame | None, int, int, str]:
        if start == end_lsn:
            return None, 0, 0, ""
        frame = self._sound_frame(start, end_lsn)
        return frame, _count_of(frame), FRAME_HEADER.size, ""

    def _require_same_log(self, cursor: Cursor) -> None:
        segments = list_segments(self._directory)
        if segments[0] > cursor.start:
            raise ChangesGone(f"the log begins at LSN {segments[0]}, behind this cursor")
        *before, newest = (lsn for lsn in segments if lsn <= cursor.start)
        is_same = cursor.check == self._check_of(newest)
        if not is_same and newest == cursor.start:  # of the end of the segment before, which may be gone
            is_same = bool(before) and cursor.check == self._check_of(before[-1])
        if not is_same:
            raise ChangesGone("this log has no such cursor, which is of another node")

    def _place(self, frame: LogFrame, left: int) -> tuple[int, str]:
        """Where the entry before the last `left` ones ends, and the origin there."""
        mark = self._marks.get((frame.start, left))
        if mark is not None:
            return mark
        at, origin = FRAME_HEADER.size, ""
        for _ in range(_count_of(frame) - left):
            op, key_length, record_length = ENTRY.unpack_from(frame.data, at)
            key_at = at + ENTRY.size
            if op & ~REMOTE == OP_ORIGIN:
                origin = frame.data[key_at : key_at + key_length].decode(errors="replace")
            at = key_at + key_length + record_length
        return at, origin

    def _mark(self, start: int, left: int, at: int, origin: str) -> None:
        self._marks[start, left] = at, origin
        if len(self._marks) > MARKS_MAX:
            self._marks.popitem(last=False)

    def _sound_frame(self, start: int, end_lsn: int) -> LogFrame:
        """The frame at an LSN that someone else names."""
        try:
            return self._frame(start, end_lsn)
        except Corruption as error:
            raise ChangesGone(
                "this log has no whole entry at this cursor, which is of another node, or the log is damaged there"
            ) from error

    def _frame(self, start: int, end_lsn: int) -> LogFrame:
        """The frame at an LSN before the end.  Raises LogGone, Corruption."""
        frame = self._recent.get(start)
        if frame is not None:
            self._recent.move_to_end(start)
            return frame
        self._reader.seek(start)
        frame = self._reader.next_frame(end_lsn)
        if frame is None:
            raise Corruption(f"{self._directory}: the log ends at LSN {start}, before its end")
        self._keep(frame)
        return frame

    def _keep(self, frame: LogFrame) -> None:
        """Leaves a frame in memory, for the next reader."""
        if frame.start in self._recent:
            return
        self._recent[frame.start] = frame
        self._recent_size += len(frame.data)
        while self._recent_size > RECENT_BYTES and len(self._recent) > 1:
            self._recent_size -= len(self._recent.popitem(last=False)[1].data)


def _count_of(frame: LogFrame) -> int:
    return int(FRAME_HEADER.unpack_from(frame.data)[_COUNT_FIELD])


def _changed_keys(frame: LogFrame) -> Iterator[list[bytes] | None]:
    """The keys that a frame changes, SCANNED_KEYS at most at once; None for all keys."""
    keys: list[bytes] = []
    data, at, end = frame.data, FRAME_HEADER.size, len(frame.data)
    unpack, head = ENTRY.unpack_from, ENTRY.size
    while at < end:
        op, key_length, record_length = unpack(data, at)
        key_at = at + head
        record_at = key_at + key_length
        at = record_at + record_length
        kind = op & ~REMOTE
        if kind == OP_TRUNCATE:
            yield None
        elif kind in OPS:
            keys.append(data[key_at:record_at])
            if len(keys) == SCANNED_KEYS:
                yield keys
                keys = []
    if keys:
        yield keys


def _wake(readers: list[_Waiting]) -> None:
    for reader in readers:
        try:
            reader.wake()
        except Exception:  # what is committed stays committed
            log.exception("a reader of the change feed could not be woken")


def _behind(newest: tuple[int, int, bytes]) -> Cursor:
    start, end, header = newest
    return Cursor(start, end - start, 0, header[-_CHECK_SIZE:])


def _before_last(frame: LogFrame, left: int) -> Cursor:
    return Cursor(frame.start, frame.end - frame.start, left, _check_of(frame))


def _check_of(frame: LogFrame) -> bytes:
    return frame.data[FRAME_HEADER.size - _CHECK_SIZE : FRAME_HEADER.size]


def _change(kind: int, key: bytes, record: bytes, origin: str, cursor: Cursor) -> Change:
    name = OPS[kind].name
    if kind == OP_TRUNCATE:
        return Change(None, name, None, None, record, origin, cursor)
    if is_purge_marker(record):  # of a node that is alone, which keeps no tombstone
        deleted = max(timestamp_of(record), deleted_at(record) or 0)
        return Change(key, name, None, None, make_version(deleted, redelete_op_id(record)), "", cursor)
    if is_tombstone(record):
        return Change(key, name, None, None, version_of(record), origin, cursor)
    return Change(key, name, value_of(record), expiry_of(record), version_of(record), origin, cursor)
