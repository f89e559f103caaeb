"""The upkeep of the Merkle tree: work that a thread does beforehand, so that no command waits for it.

count      after a start or a roll-back: what the memtables change of leaves and counters, see count.py
refresh    the inner digests above leaves that have changed, so that a root takes few ms whatever was written
"""

import logging
import time
from typing import Final

from merklekv.engine.table import Table
from merklekv.errors import Shortage
from merklekv.worker_thread import Fatal, WorkerThread

log = logging.getLogger(__name__)

PAUSE_S: Final = 0.1  # between two refreshes
IDLE_S: Final = 1.0  # likewise, while nothing is written
REST: Final = 25  # times as long as a refresh took: it takes at most 4 % of a core, however much is written


class TreeUpkeep:
    """Counts and refreshes the tree of a table, on the thread `tree-upkeep`.

    It takes the engine's lock for at most some 5 ms, and none while it reads the base.
    """

    def __init__(self, table: Table, fatal: Fatal) -> None:
        self._table = table
        self._appended = 0  # entries of the log at the refresh before
        self.worker = WorkerThread("tree-upkeep", self._step, fatal)

    def _step(self) -> None:
        try:
            self._table.count_in(lambda: not self.worker.is_stopping)
        except Shortage as shortage:
            if str(shortage) != self.worker.problem:  # once, while it comes again and again
                log.warning("%s; HASH and DBSIZE wait for that", shortage)
            raise
        appended, began = self._table.log.appended, time.monotonic()
        for _ in self._table.prepare_root():
            if self.worker.is_stopping:
                return
        is_idle = appended == self._appended and self._table.root_ready
        self._appended = appended
        self.worker.wait(IDLE_S if is_idle else max(PAUSE_S, REST * (time.monotonic() - began)))
