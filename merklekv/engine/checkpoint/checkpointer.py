"""The merger: a thread that takes sealed segments to the base and lets their memtables go.

For each job it finishes the sealing (the sync that the commit path did not wait for), has the child absorb everything
sealed so far, reports how far it got, so that writers are slowed to the pace of merging and not stopped by turns, and
then tells the engine.  A child that dies is started again; whatever fails for lack of something (room, descriptors,
memory, a process) is tried again until it works.
"""

import logging
import threading
from typing import Final, Protocol

from merklekv.engine.checkpoint.child import CheckpointProcess, ChildDied
from merklekv.engine.log import Log
from merklekv.errors import MerkleKVError, Shortage, StorageFailed
from merklekv.shortage import is_shortage, shortage_of

log = logging.getLogger(__name__)

RETRY_S: Final = 1.0
CHILD_DEATHS_MAX: Final = 5  # in a row; then something is wrong that starting again does not cure


class Owner(Protocol):
    """What the merger tells the engine.  All are called on the merger's thread."""

    def checkpoint_progressed(self, share: float) -> None:
        """Part of the absorption in hand that is done, 0 to 1."""

    def checkpoint_finished(self) -> None:
        """The base has taken in everything up to the LSN asked for."""

    def checkpoint_blocked(self, error: Shortage) -> None:
        """Merging lacks something, until the next progress."""

    def checkpoint_failed(self, error: MerkleKVError) -> None:
        """Merging cannot go on; the process should stop."""


class Checkpointer:
    """Runs from `start` to `stop`."""

    def __init__(self, owner: Owner, log_: Log, child: CheckpointProcess) -> None:
        self._owner = owner
        self._log = log_
        self.child = child
        self._wake = threading.Condition()
        self._upto = 0
        self._done = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="checkpointer", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def submit(self, upto: int) -> None:
        """Asks for everything before LSN `upto` to be absorbed."""
        with self._wake:
            self._upto = max(self._upto, upto)
            self._wake.notify()

    def stop(self) -> None:
        """Ends the child after the transaction it is in, and the thread; finishes what was sealed."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self.child.stop()
        self._thread.join()
        self.child.close()
        self._log.finish_sealing()

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._log.finish_sealing()
                self._checkpoint(self._upto)
        except MerkleKVError as error:
            if not self._stopping:
                self._owner.checkpoint_failed(error)
        except Exception as error:
            log.exception("the merger failed")
            self._owner.checkpoint_failed(StorageFailed(f"the merger failed: {error!r}"))

    def _wait_for_work(self) -> bool:
        with self._wake:
            self._wake.wait_for(lambda: self._stopping or self._upto > self._done)
            return not self._stopping

    def _checkpoint(self, upto: int) -> None:
        deaths = 0
        while not self._stopping:
            try:
                self.child.checkpoint(upto, self._owner.checkpoint_progressed)
                self._owner.checkpoint_finished()
            except ChildDied as death:
                deaths += 1
                if deaths >= CHILD_DEATHS_MAX:
                    problem = f"the absorbing process died {deaths} times in a row, last: {death}"
                    if not death.killed:
                        raise StorageFailed(problem) from death
                    self._owner.checkpoint_blocked(Shortage(f"{problem}: most likely memory is short"))
                self._pause()
                if not self._stopping:
                    log.warning("the absorbing process died (%s), starting it again", death)
            except Exception as error:
                if not is_shortage(error):
                    raise
                self._owner.checkpoint_blocked(shortage_of(error, "cannot merge"))
                self._pause()
            else:
                self._done = upto
                return

    def _pause(self) -> None:
        with self._wake:
            self._wake.wait_for(lambda: self._stopping, RETRY_S)
