"""The checkpoint: moving sealed log segments into the base.

`checkpoint` reads the segments, keeps the newest record of each key, and puts them into LMDB in key order.  It may be
cut off anywhere and called again; recovery is the same call.

The server runs it in a child process (`CheckpointProcess`, `main`), which takes no time from the threads that serve.
The child reads one line for each job, the LSN to reach or ``compact``, and answers in lines: ``progress <0..1>``,
``done <job>``, or ``error <class> <message>``.  It shares the directory's lock, so the next server waits for its end;
and it ends by itself, between two transactions, when its parent is gone.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from itertools import islice
from pathlib import Path
from typing import Final, TextIO

from merklekv import interpreter
from merklekv.engine import failpoints
from merklekv.engine.access import damage, trouble
from merklekv.engine.base.environment import DATA_FILE
from merklekv.engine.base.reader import Base
from merklekv.engine.base.writer import TRANSACTION_BYTES, TRANSACTION_KEYS, BaseWriter
from merklekv.engine.checkpoint.compaction import write_compacted
from merklekv.engine.format import BUCKETS, OP_METADATA, OP_REPAIR, OP_TRUNCATE, REMOTE
from merklekv.engine.headroom import TRANSACTION_KEYS_MIN, transaction_keys
from merklekv.engine.lmdb_file import DAMAGE_SIGNALS, unreadable
from merklekv.engine.log.segment import RECORD_PLACE, Segment, list_segments, segment_path
from merklekv.engine.memtable import Records
from merklekv.engine.record import ZERO_VERSION, Pair, is_purge_marker, purge_marker
from merklekv.engine.repairs import Repairs
from merklekv.errors import (
    Corruption,
    DirectoryLocked,
    DirectoryUnwritable,
    DiskFull,
    MerkleKVError,
    Shortage,
    StorageFailed,
)
from merklekv.malloc import give_memory_back
from merklekv.pause import pause
from merklekv.shortage import shortage_of

log = logging.getLogger(__name__)

# Of a checkpoint's work, roughly.  Stalled writers go on with its progress, so all of the work has to show in it.
READ_SHARE: Final = 0.2
INDEX_SHARE: Final = 0.15
READ_STEP: Final = 1 << 20  # bytes of log between two reports
SMALLER: Final = 8  # transactions after one that found the disk full
READERS_S: Final = 1.0  # how long a transaction waits for readers of old pages, on a full disk
STOP_TIMEOUT_S: Final = 2.0
STOP_POLL_S: Final = 0.002
COMPACT: Final = "compact"  # the job

Progress = Callable[[float], None]


class _Newest:
    """Where the newest change of each key is, in consecutive segments."""

    def __init__(self, segments: list[Segment], progress: Progress) -> None:
        """Reads them all; `progress` is called with the share read, each READ_STEP."""
        self._segments = segments
        self.truncation = ZERO_VERSION
        self.metadata: dict[bytes, bytes] = {}
        self.repairs = Repairs()
        self.places = Records()  # of each key, see `note_each`
        total, before, reported = sum(segment.size for segment in segments), 0, 0
        for index, segment in enumerate(segments):
            for frame in segment.frames():
                for op, key, record in segment.note_each(frame, index, self.places):
                    if op & ~REMOTE == OP_TRUNCATE:
                        self.truncation = max(self.truncation, record)
                    elif op == OP_METADATA | REMOTE:
                        self.metadata[key] = record
                    elif op == OP_REPAIR | REMOTE:
                        self.repairs.add(key, record)
                if before + frame.end >= reported + READ_STEP:
                    reported = before + frame.end
                    self.places.prepare()
                    progress(reported / total)
            before += segment.size
        while not self.places.prepare():
            progress(1)

    def records(self) -> Iterator[Pair]:
        """The keys in order, each with its newest record or purge marker."""
        low, data, unpack = b"", [segment.data for segment in self._segments], RECORD_PLACE.unpack
        while places := self.places.items_from(low, None, TRANSACTION_KEYS):
            for key, place in places:
                index, start, size = unpack(place)
                yield key, data[index][start : start + size]
            low = places[-1][0] + b"\0"

    def record(self, key: bytes) -> bytes:
        """The newest record or purge marker of a key of the log."""
        index, start, size = RECORD_PLACE.unpack(self.places[key])
        record: bytes = self._segments[index].data[start : start + size]
        return record


def checkpoint(
    base: BaseWriter,
    log_directory: Path,
    upto: int,
    progress: Progress = lambda share: None,
    transaction_keys_max: int = TRANSACTION_KEYS,
) -> None:
    """Puts all segments before LSN `upto` into the base.  `progress` is called now and then while it reads them, and
    after each transaction.

    Raises DiskFull (what was done stays done; call again), Corruption, StorageFailed.
    """
    lsns = [lsn for lsn in list_segments(log_directory) if base.checkpoint_lsn <= lsn < upto]
    if not lsns:
        return
    with ExitStack() as stack:
        segments = [stack.enter_context(Segment(segment_path(log_directory, lsn))) for lsn in lsns]
        newest = _Newest(segments, lambda share: progress(READ_SHARE * share))
        most = transaction_keys(base, log_directory, min(transaction_keys_max, TRANSACTION_KEYS))
        resumed = base.begin_checkpoint(upto)
        failpoints.reached("checkpoint.marked")
        if newest.truncation > base.truncation:
            for _ in base.raise_truncation(newest.truncation):
                progress(READ_SHARE)
            failpoints.reached("checkpoint.truncation_raised")
        newest.repairs.complete(newest.places)
        for _ in base.rebuild(newest.repairs.buckets):  # first: what follows goes by what is derived
            progress(READ_SHARE)
        is_short = most < TRANSACTION_KEYS
        progress(READ_SHARE)  # or the server would not move on from the pages that the transactions so far have freed
        added = Records()  # keys that were not in the base
        done = 0
        for pairs in _transactions(newest, base.truncation, most):
            is_short = is_short and base.wait_for_readers(READERS_S)
            for key in base.put(pairs):
                added[key] = b""
            added.group()
            done += len(pairs)
            pairs.clear()  # or its values would still be there when those of the next one are read
            progress(READ_SHARE + (1 - READ_SHARE - INDEX_SHARE) * done / len(newest.places))
            failpoints.reached("checkpoint.records_part")
        failpoints.reached("checkpoint.records_done")
        # A resumed checkpoint finds its own records in the base, and does not know which of them the index lacks.
        unlisted = newest.places if resumed else added
        while not unlisted.group():
            progress(1 - INDEX_SHARE)
        entries = _by_bucket(unlisted)
        done = 0
        while batch := list(islice(entries, most)):
            is_short = is_short and base.wait_for_readers(READERS_S)
            base.index([pair for pair in batch if not resumed or _stays(newest.record(pair[1]), base.truncation)])
            done += len(batch)
            progress(1 - INDEX_SHARE * (1 - done / len(unlisted)))
            failpoints.reached("checkpoint.index_part")
        failpoints.reached("checkpoint.index_done")
        base.finish(upto, newest.metadata)
        failpoints.reached("checkpoint.finished")


def _checkpoint_smaller(base_path: Path, log_directory: Path, upto: int, progress: Progress) -> None:
    """Makes a checkpoint; where it finds the disk full, again in smaller transactions, which copy fewer pages."""
    most = TRANSACTION_KEYS
    while True:
        try:
            # Anew for each attempt: LMDB may be of no use after a failed write.
            with BaseWriter(base_path, patience_s=0) as base:
                return checkpoint(base, log_directory, upto, progress, most)
        except DiskFull:
            if most <= TRANSACTION_KEYS_MIN:
                raise
            most = max(TRANSACTION_KEYS_MIN, most // SMALLER)


def _stays(record: bytes, truncation: bytes) -> bool:
    return record >= truncation and not is_purge_marker(record)


def _by_bucket(keys: Records) -> Iterator[Pair]:
    """The keys, each behind the two bytes of its bucket, in order.  Needs `group`."""
    for bucket in range(BUCKETS):
        if found := keys.bucket(bucket):
            name = bucket.to_bytes(2, "big")
            for key in sorted(found):
                yield name, key


def _transactions(newest: _Newest, truncation: bytes, most: int) -> Iterator[list[Pair]]:
    """What the base is to have: a purge marker in the place of what is below the truncation version."""
    pairs: list[Pair] = []
    size = 0
    marker = purge_marker(truncation)
    for pair in newest.records():
        size += len(pair[1])
        # Instead of an old record: the base may have a newer one, which this one had replaced.
        pairs.append(pair if pair[1] >= truncation else (pair[0], marker))
        if len(pairs) >= most or size >= TRANSACTION_BYTES:
            yield pairs
            pairs, size = [], 0
    if pairs:
        yield pairs


class ChildDied(Exception):
    """The checkpoint process ended in the middle of its work; start it again and ask again."""

    def __init__(self, how: str, killed: bool = False) -> None:
        super().__init__(how)
        self.killed = killed  # as the kernel does when memory is short


class CheckpointProcess:
    """The child process as its parent sees it.  One thread calls `checkpoint`; `stop` comes from another."""

    def __init__(self, base: Path, new_base: Path, log_directory: Path, lock_fd: int) -> None:
        self._base = base
        places = (str(base), str(new_base), str(log_directory))
        self._command = interpreter.command("merklekv.engine.checkpoint.child", *places)
        self._lock_fd = lock_fd
        self._guard = threading.Lock()
        self._cutting = threading.Lock()
        self._stopped = False
        self._process: subprocess.Popen[str] | None = None
        self._compacting: subprocess.Popen[str] | None = None
        self._is_cut = False

    @property
    def pid(self) -> int | None:
        """Of the running child, for statistics and tests."""
        return self._process.pid if self._process else None

    @property
    def is_stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped

    def checkpoint(self, upto: int, progress: Progress) -> None:
        """`checkpoint`, over there.  Raises what it raises, and ChildDied."""
        self._ask(self._running(), str(upto), progress)

    def compact(self) -> None:
        """`write_compacted`, over there.  Raises what it raises, and ChildDied, also after `cut_compaction`."""
        process = self._running()
        with self._cutting:
            self._compacting, self._is_cut = process, False
        try:
            self._ask(process, COMPACT, lambda share: None)
        except ChildDied as death:
            raise ChildDied("writes came first") if self._is_cut else death from None
        finally:
            with self._cutting:
                self._compacting = None

    def cut_compaction(self) -> None:
        """Ends a compaction that is under way, so that the next checkpoint can begin.  Another thread calls it."""
        with self._cutting:
            if self._compacting is not None:
                self._is_cut = True
                self._compacting.kill()

    def _ask(self, process: "subprocess.Popen[str]", job: str, progress: Progress) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):  # it has died: no line comes
            process.stdin.write(f"{job}\n")
            process.stdin.flush()
        for line in process.stdout:
            word, _, rest = line.strip().partition(" ")
            if word == "progress":
                progress(float(rest))
            elif word == "done" and rest == job:  # else of a job that an error here has cut short
                return
            elif word == "error":
                name, _, message = rest.partition(" ")
                raise _ERRORS.get(name, StorageFailed)(message)
        status = process.wait()
        if -status in DAMAGE_SIGNALS:
            raise damage(f"{self._base / DATA_FILE}: {unreadable(status)}")
        raise ChildDied(f"exit status {status}", killed=status == -signal.SIGKILL)

    def stop(self) -> None:
        """Ends the child, after the transaction it is in, and keeps it from being started again."""
        with self._guard:
            self._stopped = True
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while self._process.poll() is None and time.monotonic() < deadline:
            pause(STOP_POLL_S)  # Popen.wait with a timeout sleeps, and fails where the clock is faked
        if self._process.returncode is None:
            self._process.kill()  # LMDB stands at its last commit
            self._process.wait()

    def kill(self) -> None:
        """Ends the child at once, for a parent that does not wait.  One that is stopped would keep the lock."""
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """Closes the pipes, when `checkpoint` is not called any more."""
        for pipe in (self._process.stdin, self._process.stdout) if self._process else ():
            if pipe is not None:
                with suppress(BrokenPipeError):  # the child died before it read the job
                    pipe.close()

    def leave_to_parent(self) -> None:
        """In a process that was just forked: closes its copies of the pipes, or the child would outlive the parent.

        It flushes nothing, and takes no lock: another thread of the parent may have had it.
        """
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr) if self._process else ():
            if pipe is not None and not pipe.closed:
                os.close(pipe.fileno())

    def _running(self) -> "subprocess.Popen[str]":
        with self._guard:
            if self._stopped:
                raise ChildDied("stopped")
            if self._process is None or self._process.poll() is not None:
                self.close()
                # Signals to the whole group (Ctrl-C, a closed terminal) are the parent's: the child gets only SIGTERM.
                before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - {signal.SIGTERM})
                try:
                    self._process = subprocess.Popen(
                        self._command,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE,
                        text=True,
                        errors="backslashreplace",
                        pass_fds=(self._lock_fd,),
                        env=interpreter.environment(),
                    )
                except OSError as error:
                    raise Shortage(f"cannot start the checkpoint process: {error}") from error
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, before)
                try:
                    threading.Thread(
                        target=_log_lines, args=(self._process.stderr,), name="child-log", daemon=True
                    ).start()
                except RuntimeError:  # no thread: without a reader the child could wait for ever
                    self._process.kill()
                    raise
            return self._process


def _log_lines(stderr: TextIO) -> None:
    """Logs what the child writes to stderr, so that it never waits there."""
    with stderr:
        for line in stderr:
            log.warning("checkpoint process: %(line)s", {"line": line.rstrip()})


_ERRORS: Final[dict[str, type[MerkleKVError]]] = {
    kind.__name__: kind
    for kind in (Corruption, DirectoryLocked, DirectoryUnwritable, DiskFull, Shortage, StorageFailed)
}


def main(base_path: str, new_base_path: str, log_directory: str) -> None:
    """The process: makes checkpoints and compactions when told to, until its input or its parent ends."""
    give_memory_back()
    parent = os.getppid()
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    def heed() -> None:
        if stopping or os.getppid() != parent:
            sys.exit(0)

    def progress(share: float) -> None:
        heed()
        answer(f"progress {share:.4f}")

    def answer(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def answer_error(error: MerkleKVError) -> None:
        answer(f"error {type(error).__name__} {error}")

    # Between two jobs the kernel ends this process. A handler could run too late: when the wait for a line has begun.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for line in sys.stdin:
        signal.signal(signal.SIGTERM, stop)
        try:
            job = line.strip()
            if job == COMPACT:
                with closing(Base(Path(base_path), patience_s=0)) as old:
                    write_compacted(old, Path(new_base_path), lambda done, total: heed())
            else:
                _checkpoint_smaller(Path(base_path), Path(log_directory), int(job), progress)
            answer(f"done {job}")
        except MerkleKVError as error:
            answer_error(error)
            stopping = isinstance(error, DirectoryLocked)  # the next child has another process id
        except OSError as error:
            answer_error(trouble(error, Path(base_path).parent))
        except MemoryError as error:
            answer_error(shortage_of(error, "cannot checkpoint"))
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if stopping:  # asked to while the last transaction ran
            return


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except BrokenPipeError:
        os._exit(0)  # the parent is gone
