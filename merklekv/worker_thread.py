"""Background threads: each part that works by itself has one `WorkerThread`, and this is its loop.

    start -> step, step, step, ... -> stop

A step does one piece of work, or waits for some.  It waits by `WorkerThread.wait`, or by means of its own; then `wake`
ends that wait.  What a step raises decides how the thread goes on:

| raised | effect |
|---|---|
| StorageFailed | the thread ends, and `fatal` gets the error: what the disk holds is unknown |
| Shortage, Stalled | wait `retry_s`, then step again: it passes by itself |
| another MerkleKVError, any other shortage | log it, once while it comes again and again; wait and step again |
| anything else | a defect: likewise, with its traceback |
| anything but StorageFailed, after `stop` | the thread ends: the step was cut |

A part for which a defect is fatal raises StorageFailed itself.  This module knows nothing of what the threads do.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from merklekv.errors import MerkleKVError, Shortage, Stalled, StorageFailed
from merklekv.log_throttle import LogThrottle
from merklekv.shortage import is_shortage

log = logging.getLogger(__name__)

RETRY_S: Final = 1.0

Fatal = Callable[[StorageFailed], None]


class WorkerThread:
    """Calls `step` on a thread called `name`, from `start` until `stop`.

    `fatal` is called on that thread.  `wake` is called by `stop`, and ends any wait of the step's own.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[], None],
        fatal: Fatal,
        *,
        wake: Callable[[], None] = lambda: None,
        retry_s: float = RETRY_S,
    ) -> None:
        self.name = name
        self.problem = ""  # what the last step ran into
        self._step = step
        self._fatal = fatal
        self._wake = wake
        self._retry_s = retry_s
        self._stopping = threading.Event()
        self._throttle = LogThrottle(log)  # for problems that differ each time
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread.  Raises RuntimeError if the machine has none left."""
        self._thread.start()

    def stop(self, timeout_s: float | None = None) -> None:
        """Let the step in hand end, for at most `timeout_s` seconds, and begin no other.  Harmless before `start`."""
        self._stopping.set()
        self._wake()
        if self.is_alive:
            self._thread.join(timeout_s)

    def wait(self, seconds: float) -> bool:
        """Wait for so long, or until `stop`.  Returns whether the thread is to stop."""
        return self._stopping.wait(seconds)

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping.is_set()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def status(self) -> str:
        """For people: `idle` before the start, `running`, `ended`, or `waiting: ` with the problem."""
        if not self.is_alive:
            return "ended" if self._thread.ident else "idle"
        return f"waiting: {self.problem}" if self.problem else "running"

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._step()
                self.problem = ""
            except StorageFailed as error:
                self.problem = str(error)
                self._fatal(error)
                return
            except Exception as error:  # noqa: BLE001  logged
                if self._stopping.is_set():
                    return
                problem = str(error) or type(error).__name__
                if isinstance(error, (Shortage, Stalled)) or problem == self.problem:
                    pass  # reported where it is met, or the last time
                elif isinstance(error, MerkleKVError) or is_shortage(error):
                    self._throttle.warn("problem", f"{self.name}: {problem}; the thread goes on")
                else:
                    text = f"{self.name}: a defect of this program; the thread goes on"
                    self._throttle.warn("defect", text, error, level=logging.ERROR)
                self.problem = problem
                self.wait(self._retry_s)
