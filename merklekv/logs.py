"""Log lines on stderr: text for people, JSON (one object a line) for collectors.

Both say when (UTC, milliseconds), how grave, which part of the program, and what. A traceback is kept in the
record it belongs to: in JSON as a field, so that a line stays a line.
"""

from __future__ import annotations

import json
import logging
import sys
import time

TEXT_FORMAT = "%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s: %(message)s"
TIME_FORMAT = "%Y-%m-%dT%H:%M:%S"


class TextFormatter(logging.Formatter):
    """A line a person reads, its time in UTC."""

    def __init__(self) -> None:
        super().__init__(TEXT_FORMAT, TIME_FORMAT)

    @staticmethod
    def converter(seconds: float | None) -> time.struct_time:
        return time.gmtime(seconds)


class JsonFormatter(TextFormatter):
    """The same facts as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": f"{self.formatTime(record, TIME_FORMAT)}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def start_logging(level: str, style: str) -> None:
    """Send the log of the whole process to stderr. Called once, before anything else starts."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
