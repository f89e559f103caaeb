"""Named moments at which a test may want the process to die.

`MERKLEKV_TEST_CRASH_AT=name` in the environment kills the process with SIGKILL where it reaches that point; the crash
tests (tests/crash/) start nodes that way, for each name.  Otherwise a point costs one comparison, off the hot path.
"""

import os
import signal
from typing import Final

POINTS: Final = (
    "rotate.sealed",  # the new segment is there, the full one is not yet frozen
    "absorb.marked",  # the base says that an absorption is in progress
    "absorb.floor_raised",  # what is below the new floor is gone from the base
    "absorb.records_part",  # one transaction of records is in, more to come
    "absorb.records_done",  # all records are in, the index lacks the new keys
    "absorb.index_part",  # part of the index is in
    "absorb.index_done",  # everything is in, the base does not say so yet
    "absorb.finished",  # the base says so, the server does not know
    "merge.finished",  # the server has been told
    "merge.before_delete",  # memtables are dropped, the segments still there
)

_armed = os.environ.get("MERKLEKV_TEST_CRASH_AT")
assert _armed is None or _armed in POINTS, f"MERKLEKV_TEST_CRASH_AT={_armed} is not one of {', '.join(POINTS)}"


def reached(point: str) -> None:
    """Dies here if this is the point that was asked for."""
    if point == _armed:
        os.write(2, f"crash point {point}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)
