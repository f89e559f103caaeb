"""The log on stderr: text for people, or JSON, one object a line, for collectors.

Each line has the time (UTC, milliseconds), the level, the logger and the message. A traceback is part of its record: a
field in JSON, indented lines in text.

In JSON a line has the node id, too, and what its message was made of, if that has names:

    log.info("connected to %(address)s", {"address": "h:1"})      {..., "message": "connected to h:1", "address": "h:1"}

The names of the line's own fields are taken. A name that the message leaves out is a field, too.

No thread waits for the reader of the log: a thread of its own writes lines from a queue of QUEUE_LINES. When the queue
is full, lines are dropped and counted until half of it is free; a line then says how many. At exit, queued lines are
written if the reader takes them within FLUSH_S.

Lines may contain text of peers, so characters that do not print are escaped. A long line is cut.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from queue import Empty, SimpleQueue
from typing import Final, TextIO

from merklekv.output import printable
from merklekv.readiness import wait_writable

TEXT_FORMAT = "%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s: %(message)s"
TIME_FORMAT = "%Y-%m-%dT%H:%M:%S"
INDENT: Final = "    "
MESSAGE_CHARS_MAX: Final = 4_000
TRACEBACK_CHARS_MAX: Final = 16_000
CUT: Final = "..."
QUEUE_LINES: Final = 1_000
FLUSH_S: Final = 1.0


class TextFormatter(logging.Formatter):
    """A line for people, its time in UTC."""

    def __init__(self) -> None:
        super().__init__(TEXT_FORMAT, TIME_FORMAT)

    @staticmethod
    def converter(seconds: float | None) -> time.struct_time:
        return time.gmtime(seconds)

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(_message(record))
        return super().formatMessage(record)

    def formatException(self, exc_info: logging._SysExcInfoType) -> str:
        return "\n".join(INDENT + printable(line) for line in _traceback(super().formatException(exc_info)))


class JsonFormatter(TextFormatter):
    """The same facts as one JSON object. `node` is empty until the node knows its id."""

    def __init__(self) -> None:
        super().__init__()
        self.node = ""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": f"{self.formatTime(record, TIME_FORMAT)}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
            "node": self.node,
        }
        if record.exc_info:
            line["exception"] = "\n".join(_traceback(logging.Formatter.formatException(self, record.exc_info)))
        if isinstance(record.args, Mapping):
            for name, value in record.args.items():
                line.setdefault(str(name), _cut(value) if isinstance(value, str) else value)
        return json.dumps(line, default=str)


def _message(record: logging.LogRecord) -> str:
    return _cut(record.getMessage())


def _cut(text: str) -> str:
    return text if len(text) <= MESSAGE_CHARS_MAX else text[:MESSAGE_CHARS_MAX] + CUT


def _traceback(text: str) -> list[str]:
    """The lines of a traceback; of a long one only the end, which has the error."""
    return (text if len(text) <= TRACEBACK_CHARS_MAX else CUT + text[-TRACEBACK_CHARS_MAX:]).split("\n")


class QueuedHandler(logging.Handler):
    """Writes lines in a thread of its own. `dropped` counts the lines that found the queue full."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.dropped = 0
        self._fd = fd
        self._unreported = 0  # dropped lines that no line has reported yet
        # Not the handler's own lock: at the exit `logging` holds that one while it waits for the thread that writes.
        self._counting = threading.RLock()
        # Its `put` may be interrupted by itself, in a signal handler.
        self._queue: SimpleQueue[str | threading.Event] = SimpleQueue()
        threading.Thread(target=self._write_lines, name="log", daemon=True).start()

    @property
    def queued(self) -> int:
        """Lines that wait for the writing thread."""
        return self._queue.qsize()

    def emit(self, record: logging.LogRecord) -> None:
        """Queues the line, or counts it. Never blocks and never raises."""
        with self._counting:
            if self.queued >= (QUEUE_LINES // 2 if self._unreported else QUEUE_LINES):
                self.dropped += 1
                self._unreported += 1
                return
            try:
                line = self.format(record)
            except Exception as error:  # noqa: BLE001  a wrong call of a logger must not fail its caller
                text = f"{error!r} in a log line: {record.msg!r}"
                line = self.format(logging.makeLogRecord({"name": record.name, "levelname": "ERROR", "msg": text}))
            self._report_dropped()
            self._queue.put(line)

    def flush(self) -> None:
        """Returns when all lines so far are written, after FLUSH_S at the latest."""
        written = threading.Event()
        self._queue.put(written)
        written.wait(FLUSH_S)

    def _report_dropped(self) -> None:
        if self._unreported:
            count, self._unreported = self._unreported, 0
            lines = "line was" if count == 1 else "lines were"
            text = f"{count} log {lines} dropped: the log was not read fast enough"
            self._queue.put(self.format(logging.makeLogRecord({"name": __name__, "levelname": "WARNING", "msg": text})))

    def _write_lines(self) -> None:
        while True:
            try:
                line = self._queue.get_nowait()
            except Empty:
                with self._counting:
                    self._report_dropped()
                line = self._queue.get()
            if isinstance(line, threading.Event):
                line.set()
            else:
                _write(self._fd, line)


def start_logging(level: str, style: str) -> None:
    """Sends the log of the whole process to stderr. Call it once, before anything else starts."""
    root = logging.getLogger()
    set_level(level)
    if sys.stderr is None:  # closed at the start: its descriptor may be another file by now
        root.handlers[:] = [logging.NullHandler()]
        return
    handler = QueuedHandler(sys.stderr.fileno())
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    root.handlers[:] = [handler]
    threading.excepthook = _log_exception


def set_level(level: str) -> None:
    """Logs from this level on, from now on."""
    logging.getLogger().setLevel(level.upper())


def name_node(node_id: str) -> None:
    """Gives each JSON line from now on the node id."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, JsonFormatter):
            handler.formatter.node = node_id


def flush_log() -> None:
    """Returns when all lines so far are written, after FLUSH_S at the latest."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def dropped_lines() -> int:
    """Lines that were dropped since the start because the reader of the log was too slow."""
    return sum(handler.dropped for handler in logging.getLogger().handlers if isinstance(handler, QueuedHandler))


def print_soon(stream: TextIO | None, line: str) -> OSError | None:
    """Prints a line. If the reader does not take it within FLUSH_S, a thread goes on waiting for that.

    Where no thread can be started, the line is lost then. Returns the error of the stream, if it had one.
    """
    if stream is None:
        return None
    errors: list[OSError | None] = [None]
    fd = stream.fileno()
    thread = threading.Thread(target=lambda: errors.append(_write(fd, line)), name="print", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return _write(fd, line) if wait_writable(fd, FLUSH_S) else None
    thread.join(FLUSH_S)
    return errors[-1]


def _log_exception(failed: threading.ExceptHookArgs) -> None:
    name = failed.thread.name if failed.thread else "?"
    error = failed.exc_value or failed.exc_type()
    logging.getLogger(__name__).error("thread %s has failed", name, exc_info=error)


def _write(fd: int, line: str) -> OSError | None:
    """Writes a line. Returns the error if the reader has gone."""
    data = (line + "\n").encode(errors="surrogateescape")
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:  # another process has made this pipe non-blocking
            wait_writable(fd, None)
        except OSError as error:  # the reader has gone
            return error
    return None
