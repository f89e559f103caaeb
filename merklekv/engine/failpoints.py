"""Named moments at which a test may want the process to die.

`MERKLEKV_TEST_CRASH_AT=name` in the environment kills the process with SIGKILL where it reaches that point; the crash
tests (tests/crash/) start nodes that way, for each name.  Otherwise a point costs one comparison, off the hot path.
"""

import os
import signal
from typing import Final

POINTS: Final = (
    "freeze.sealed",  # the new segment is there, the memtable of the full one is not frozen yet
    "checkpoint.marked",  # the base says that a checkpoint is in progress
    "checkpoint.truncation_raised",  # the base holds nothing below the new truncation version
    "checkpoint.records_part",  # one transaction of records is in, more to come
    "checkpoint.records_done",  # all records are in, the index lacks the new keys
    "checkpoint.index_part",  # part of the index is in
    "checkpoint.index_done",  # everything is in, the base does not say so yet
    "checkpoint.finished",  # the base says so, the server does not know
    "checkpointer.told",  # the server has been told
    "checkpointer.before_delete",  # memtables are dropped, the segments still there
    "compaction.part",  # part of the new base is written
    "compaction.written",  # the new base is whole, beside the old one
    "compaction.moved",  # the old base has another name, the new one has not got its own yet
    "compaction.swapped",  # the new base has its name, the old one is still there
)

_armed = os.environ.get("MERKLEKV_TEST_CRASH_AT")
assert _armed is None or _armed in POINTS, f"MERKLEKV_TEST_CRASH_AT={_armed} is not one of {', '.join(POINTS)}"


def reached(point: str) -> None:
    """Die here if the environment names this point."""
    assert point in POINTS, point
    if point == _armed:
        os.write(2, f"crash point {point}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)
