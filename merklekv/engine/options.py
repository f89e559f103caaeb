"""The options of an engine, checked before anything is opened."""

import os
from pathlib import Path
from typing import Final, Literal, get_args

from merklekv.engine.format import MAX_VALUE_SIZE_LIMIT
from merklekv.errors import InvalidArgument, shown

Durability = Literal["always", "everysec", "never"]
CheckpointMode = Literal["process", "manual"]
DEFAULT_MEMTABLE_SIZE: Final = 64 << 20
DEFAULT_MAX_VALUE_SIZE: Final = 16 << 20
MIN_MEMTABLE_SIZE: Final = 64 << 10
MAX_MEMTABLE_SIZE: Final = 4 << 30
RETAIN_MAX: Final = 1 << 50  # bytes
RETAIN_MAX_S: Final = 31_536_000  # a year
TIME_MAX_NS: Final = 1 << 63
MAX_DRIFT_S: Final = 315_360_000  # ten years: with it, timestamps of today fit into their 63 bits


def require_path(path: object) -> Path:
    """The path of a data directory.  Raises InvalidArgument."""
    if isinstance(path, str | os.PathLike):
        name = os.fspath(path)
        if isinstance(name, str) and name and "\0" not in name and _is_encodable(name):
            return Path(name)
    raise _refusal("path", path, "the name of a directory, as str or Path")


def _is_encodable(name: str) -> bool:
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


def require_options(
    durability: object,
    memtable_size: object,
    max_value_size: object,
    max_clock_drift_s: object,
    checkpoint: object,
    retain_max_bytes: object,
    retain_log_bytes: object,
    retain_log_seconds: object,
) -> None:
    """Raises InvalidArgument for the first option that is of another type, or outside what is allowed."""
    _require_choice("durability", durability, get_args(Durability))
    _require_choice("checkpoint", checkpoint, get_args(CheckpointMode))
    _require_size("memtable_size", memtable_size, MIN_MEMTABLE_SIZE, MAX_MEMTABLE_SIZE)
    _require_size("max_value_size", max_value_size, 0, MAX_VALUE_SIZE_LIMIT)
    _require_size("retain_max_bytes", retain_max_bytes, 0, RETAIN_MAX)
    _require_size("retain_log_bytes", retain_log_bytes, 0, RETAIN_MAX)
    _require_seconds("max_clock_drift_s", max_clock_drift_s, MAX_DRIFT_S)
    _require_seconds("retain_log_seconds", retain_log_seconds, RETAIN_MAX_S)


def require_wall_clock(wall_clock: object) -> None:
    """Raises InvalidArgument unless it returns nanoseconds, as `time.time_ns` does and `time.time` does not."""
    now = wall_clock() if callable(wall_clock) else None
    if not isinstance(now, int) or abs(now) >= TIME_MAX_NS:
        raise _refusal("wall_clock", wall_clock, "a function that returns nanoseconds since 1970, an int")


def _require_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise _refusal(name, value, f"one of {', '.join(allowed)}")


def _require_size(name: str, value: object, lowest: int, highest: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise _refusal(name, value, f"an int from {lowest} to {highest}, in bytes")


def _require_seconds(name: str, value: object, highest: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= highest:
        raise _refusal(name, value, f"seconds from 0 to {highest}")


def _refusal(name: str, value: object, allowed: str) -> InvalidArgument:
    return InvalidArgument(f"{name} = {shown(value)} is not allowed; give {allowed}")
