"""Writes that are gathered, to be stored all or none."""

from collections.abc import Iterator
from typing import Final

from merklekv.errors import InvalidArgument, shown

TTL_MAX_S: Final = 315_360_000_000  # ten thousand years

Write = tuple[bytes, bytes | None, float | None]  # key, value or None to delete, ttl in seconds or None


class Batch:
    """Writes in the order in which they are to be done.  For one thread."""

    def __init__(self) -> None:
        self._writes: list[Write] = []

    def set(self, key: bytes, value: bytes, *, ttl: float | None = None) -> None:
        """Stores a value, which expires `ttl` seconds after the batch is stored, or never."""
        require_bytes(key, value)
        require_ttl(ttl)
        self._writes.append((key, value, ttl))

    def delete(self, key: bytes) -> None:
        """Removes a key, if it is there then."""
        require_bytes(key)
        self._writes.append((key, None, None))

    __setitem__ = set
    __delitem__ = delete

    def __len__(self) -> int:
        return len(self._writes)

    def __iter__(self) -> Iterator[Write]:
        return iter(self._writes)


def require_bytes(*parts: object) -> None:
    """Raises TypeError unless all are bytes."""
    for part in parts:
        if not isinstance(part, bytes):
            raise no_bytes(part)


def require_pair(pair: object) -> None:
    """Raises TypeError unless it is a key and a value."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise TypeError(f"give pairs of a key and a value, or a mapping, not {shown(pair)}")
    require_bytes(*pair)


def no_bytes(part: object) -> TypeError:
    """The error for a key or value that is something else."""
    return TypeError(f"keys and values are bytes, not {type(part).__name__}")


def require_wait(wait: object) -> None:
    """Raises TypeError or InvalidArgument unless it is a number of seconds."""
    if isinstance(wait, bool) or not isinstance(wait, int | float):
        raise TypeError(f"a wait is a number of seconds, or None, not {type(wait).__name__}")
    if wait != wait:
        raise InvalidArgument("a wait of nan s")


def require_ttl(ttl: object, allows_none: bool = True) -> None:
    """Raises TypeError or InvalidArgument unless it is a number of seconds, or None."""
    if ttl is None and allows_none:
        return
    if isinstance(ttl, bool) or not isinstance(ttl, int | float):
        raise TypeError(f"a ttl is a number of seconds, not {type(ttl).__name__}")
    if not 0 < ttl <= TTL_MAX_S:
        raise InvalidArgument(f"a ttl of {shown(ttl)} s: it is above 0 and at most {TTL_MAX_S} s")
