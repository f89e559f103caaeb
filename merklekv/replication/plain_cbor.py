"""CBOR (RFC 8949) from untrusted senders: one item of plain types, at a cost that is bounded before anything is built.

One byte can be an empty map, which takes 72 bytes of memory, and a tag can be a number of a million digits.  So tags
are refused, containers nest at most NESTING_MAX deep, and a message of more bytes than it may have items is scanned
first, head by head, without building anything: each number, string, map and list counts as one item.  Lengths need no
check of their own: the decoder reads a string in pieces and a list item by item, so one that ends early costs no more
than what is there.

Cost: 5 us a message; for one of more than ITEMS_MAX bytes also 0.1 us an item.  Memory: ITEMS_MAX items are 10 MB.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any, Final, NoReturn

from cbor2 import CBORDecoder

NESTING_MAX: Final = 8
ITEMS_MAX: Final = 1 << 17  # of a message; a batch of the outbox has 15,000


class TooManyItems(ValueError):
    """The bytes hold more items than allowed.  None of them was built."""


def decode_plain(data: bytes, items_max: int = ITEMS_MAX, *, allow_indefinite: bool = False) -> tuple[Any, int]:
    """The item at the start of these bytes, and the number of bytes behind it.

    Raises TooManyItems, and what the decoder raises: a ValueError, an EOFError or another exception.
    """
    if len(data) > items_max:
        require_few_items(data, items_max)
    stream = BytesIO(data)
    item = CBORDecoder(
        stream,
        semantic_decoders=NO_TAGS,
        max_depth=NESTING_MAX,
        allow_indefinite=allow_indefinite,
        allow_duplicate_keys=False,
        strict_hashable_types=True,
    ).decode()
    return item, len(data) - stream.tell()


def require_few_items(data: bytes, items_max: int) -> None:
    """Raises TooManyItems unless these bytes hold at most so many items."""
    steps, at, count, end = _STEPS, 0, 0, len(data)
    while at < end:
        step = steps[data[at]]
        if step > 0:
            at += step
        else:
            behind = at + 1 - step
            at = behind + int.from_bytes(data[at + 1 : behind], "big")
        count += 1
        if count > items_max:
            raise TooManyItems(f"more than {items_max} items")


def _step(head: int) -> int:
    """Bytes of an item without what it contains; for a string with a length of its own, minus the bytes of that."""
    major, more = head >> 5, head & 31
    is_string = major in (2, 3)
    if more < 24:
        return 1 + more if is_string else 1
    size = 1 << (more - 24) if more < 28 else 0
    return -size if is_string and size else 1 + size


_STEPS: Final = tuple(map(_step, range(256)))


def _refuse_tag(*_: Any) -> NoReturn:
    raise ValueError("a tag, which is not used here")


class _NoTags(dict[int, Callable[..., Any]]):
    """What the decoder looks a tag up in."""

    def __missing__(self, tag: int) -> Callable[..., Any]:
        return _refuse_tag


NO_TAGS: Final = _NoTags()
