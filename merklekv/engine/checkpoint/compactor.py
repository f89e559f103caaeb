"""The compactor: has the base written anew when it would be much smaller, and puts the new one in its place.

compaction.py writes it, in the checkpoint process if there is one; space.py says when it is worth that; directory.py
has the swap, and what a start makes of one that was cut off.
"""

import logging
import math
import time
from typing import Final

from merklekv.engine import failpoints
from merklekv.engine.access import damage
from merklekv.engine.base.reader import Base
from merklekv.engine.checkpoint.child import CheckpointProcess, ChildDied
from merklekv.engine.checkpoint.compaction import Progress, remove, write_compacted
from merklekv.engine.checkpoint.full_disk import FullDisk
from merklekv.engine.checkpoint.space import CompactionRule, NoRoom, require_room, room_needed
from merklekv.engine.directory import DataDirectory
from merklekv.engine.table import Table
from merklekv.errors import MerkleKVError, StorageFailed

log = logging.getLogger(__name__)

LOOK_S: Final = 1.0  # until the next look, while a start has not counted: then nobody knows what is gone
RETRY_S: Final = 10.0  # until a compaction that could not be finished is tried again; twice as long each time
RETRY_MAX_S: Final = 600.0


class Compactor:
    """Compacts the base.  Only the thread that makes checkpoints calls it, so nobody writes to the base meanwhile.

    It takes the engine's lock, for the swap and less than a millisecond.
    """

    def __init__(
        self, directory: DataDirectory, table: Table, full_disk: FullDisk, child: CheckpointProcess | None
    ) -> None:
        self.done = 0  # compactions
        self.look_at = 0.0  # when to call `compact_if_due` next, by the monotonic clock
        self._directory = directory
        self._table = table
        self._lock = table.lock
        self._full_disk = full_disk
        self._child = child
        self._rule = CompactionRule()
        self._not_before = 0.0  # the next look, also if a checkpoint is finished earlier
        self._ask_at = 0.0  # no checkpoint is asked for before that: it would make no more room than the last
        self._retry_s = RETRY_S
        self._put_off_for: type[Exception] | None = None  # why the last one was not finished

    def checkpointed(self) -> None:
        """The base has changed."""
        self._rule.observe(self._table.base)
        self.look_at = self._not_before

    def compact_if_due(self) -> None:
        """Compacts a base that is worth it; what keeps it from that is logged when it is new.

        Raises StorageFailed, and with a child what a stop of it raises.
        """
        self.look_at = time.monotonic() + LOOK_S if self._table.is_counting else math.inf
        try:
            if self._rule.is_due(self._table.base):
                self.compact()
                self._put_off_for, self._not_before, self._retry_s = None, 0.0, RETRY_S
        except (MerkleKVError, ChildDied, OSError) as error:
            remove(self._directory.new_base)
            self._space_changed()
            if self._table.gate.failure is not None:
                raise
            if self._child is not None and self._child.is_stopped:
                return
            if type(error) is not self._put_off_for:
                log.warning(
                    "the compaction of the base was not finished: %(reason)s; it is tried again later",
                    {"reason": str(error)},
                )
            self._put_off_for = type(error)
            self._try_later(may_make_room=isinstance(error, NoRoom))

    def _try_later(self, may_make_room: bool) -> None:
        """After some time; or after a checkpoint, which `may_make_room`: it takes in deletions of the log."""
        now = time.monotonic()
        self.look_at = now + self._retry_s
        self._not_before = 0.0 if may_make_room else self.look_at
        if may_make_room and now >= self._ask_at:
            self._ask_at = self.look_at
            with self._lock:
                self._full_disk.ask_for_checkpoint()
        self._retry_s = min(2 * self._retry_s, RETRY_MAX_S)

    def compact(self, progress: Progress = lambda done, total: None) -> None:
        """Writes the base anew, and swaps the two.

        Raises DiskFull, Shortage, Corruption, StorageFailed, InvalidArgument, OSError, ChildDied.
        """
        directory, began = self._directory, time.monotonic()
        size_before = sum(self._table.base.space)
        directory.require_movable_base()
        remove(directory.old_base)
        needed = room_needed(self._table.base)
        with self._lock:
            self._full_disk.headroom.lend(needed)
        require_room(self._table.base)
        if self._child is None:
            write_compacted(self._table.base, directory.new_base, progress)
        else:
            self._child.compact()
        self._swap()
        self._space_changed()  # not before: what had the old base open kept its space
        self.done += 1
        size = sum(self._table.base.space)
        self._rule.compacted(self._table.base)
        log.info(
            "compacted the base in %(seconds).1f s: %(MiB)d MiB, before %(MiB_before)d MiB",
            {
                "seconds": round(time.monotonic() - began, 3),
                "MiB": size >> 20,
                "MiB_before": size_before >> 20,
                "bytes": size,
                "bytes_before": size_before,
            },
        )

    def _space_changed(self) -> None:
        with self._lock:
            self._full_disk.changed(keeps=self._child is not None)

    def _swap(self) -> None:
        """Puts the new base in the place of the old one.  Raises OSError, Shortage, Corruption with nothing changed."""
        failpoints.reached("compaction.written")
        old = self._table.base
        new = Base(self._directory.new_base)
        if (new.checkpoint_lsn, new.live, new.dead) != (old.checkpoint_lsn, old.live, old.dead):
            new.close()
            raise damage(f"{new.path}: is not what was written")
        try:
            with self._lock:
                self._directory.swap_base()
                new.path = self._directory.base
                self._table.base = new  # the old one is closed with the last snapshot of it: a scrub may have one
            self._directory.finish_swap()
        except StorageFailed as error:
            self._table.gate.fail(error)
            raise
