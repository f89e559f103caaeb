"""CBOR (RFC 8949) from untrusted senders: one item of plain types, at a cost that is bounded before anything is built.

One byte can be an empty map, which takes 72 bytes of memory, and a tag can be a number of a million digits.  So tags
are refused, containers nest at most NESTING_MAX deep, and a message of more bytes than it may have items is scanned
first without building anything: each number, string, map and list counts as one item.  A string or list that ends early
costs no more than what is there, since the decoder reads it in pieces.

`Fields` reads a map strictly: a caller asks for a field by name together with its type and bounds, so no unchecked
value gets further.  Unknown fields are ignored: later releases may add some.

Cost: 5 us a message; for one of more than ITEMS_MAX bytes also 0.1 us an item.  Memory: ITEMS_MAX items are 10 MB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any, Final, NoReturn

from cbor2 import CBORDecoder

from merklekv.node_id import NODE_ID_RULE, is_node_id

NESTING_MAX: Final = 8
ITEMS_MAX: Final = 1 << 17  # of a message; a batch of the outbox has 15,000
NUMBER_MAX: Final = (1 << 63) - 1


class Malformed(Exception):
    """The bytes are not what was expected; the text says what is wrong."""


def decode_plain(data: bytes, items_max: int = ITEMS_MAX, *, allow_indefinite: bool = False) -> tuple[Any, int]:
    """The item at the start of these bytes, and the number of bytes behind it.

    Raises ValueError, and what else the decoder raises: an EOFError or another exception.
    """
    if len(data) > items_max:
        require_few_items(data, items_max)
    stream = BytesIO(data)
    item = CBORDecoder(
        stream,
        semantic_decoders=_NO_TAGS,
        max_depth=NESTING_MAX,
        allow_indefinite=allow_indefinite,
        allow_duplicate_keys=False,
        strict_hashable_types=True,
    ).decode()
    return item, len(data) - stream.tell()


def require_few_items(data: bytes, items_max: int) -> None:
    """Raises ValueError unless these bytes hold at most so many items.  Builds nothing."""
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
            raise ValueError(f"more than {items_max} items")


def _step(head: int) -> int:
    """Bytes of an item without what it contains; for a string with a length of its own, minus the bytes of that."""
    major, more = head >> 5, head & 31
    is_string = major in (2, 3)
    if more < 24:
        return 1 + more if is_string else 1
    size = 1 << (more - 24) if more < 28 else 0
    return -size if is_string and size else 1 + size


_STEPS: Final = tuple(map(_step, range(256)))


class _NoTags(dict[int, Callable[..., Any]]):
    """What the decoder looks a tag up in."""

    def __missing__(self, tag: int) -> NoReturn:
        raise ValueError("a tag, which is not used here")


_NO_TAGS: Final = _NoTags()


def decode_map(data: bytes, items_max: int = ITEMS_MAX) -> Fields:
    """The map in these bytes, with nothing behind it.  Raises Malformed, and nothing else whatever they are."""
    try:
        item, left = decode_plain(data, items_max)
    except Exception as error:  # a decoder may raise anything
        raise Malformed(f"no CBOR: {str(error) or type(error).__name__}") from error
    if left:
        raise Malformed(f"{left} bytes behind the message")
    return Fields(item, "the message")


class Fields:
    """A map, whose fields are read by type.  All methods raise Malformed."""

    def __init__(self, item: Any, name: str) -> None:
        if type(item) is not dict:
            raise Malformed(f"{name} is {kind_of(item)}, not a map")
        self._item: dict[Any, Any] = item

    def __contains__(self, name: str) -> bool:
        """Whether it has this field, for one that an earlier release does not write."""
        return name in self._item

    def number(self, name: str, limit: int = NUMBER_MAX) -> int:
        """A number from 0 to `limit`."""
        item: int = self._typed(name, int, "a number")
        if not 0 <= item <= limit:
            raise Malformed(f"{name} is {item}, not 0 to {limit}")
        return item

    def text(self, name: str, size_max: int, size_min: int = 1) -> str:
        """Text of so many bytes."""
        item: str = self._typed(name, str, "text")
        if not size_min <= len(item.encode()) <= size_max:
            raise Malformed(f"{name} has {len(item.encode())} bytes, not {size_min} to {size_max}")
        return item

    def node_id(self, name: str) -> str:
        """A node id."""
        item: str = self._typed(name, str, "text")
        if not is_node_id(item):
            raise Malformed(f"{name} is {item[:60]!r}, not {NODE_ID_RULE}")
        return item

    def binary(self, name: str, *sizes: int) -> bytes:
        """Bytes of one of these sizes, of any size when none is given."""
        item: bytes = self._typed(name, bytes, "bytes")
        if sizes and len(item) not in sizes:
            raise Malformed(f"{name} has {len(item)} bytes, not {' or '.join(map(str, sizes))}")
        return item

    def items(self, name: str, count_max: int = NUMBER_MAX) -> list[Any]:
        """A list of at most so many items of any kind."""
        given: list[Any] = self._typed(name, list, "a list")
        if len(given) > count_max:
            raise Malformed(f"{name} has {len(given)} items, more than {count_max}")
        return given

    def rows(self, name: str, count_max: int, *columns: str) -> Iterator[Fields]:
        """A list of at most so many lists, each with the values of these columns."""
        return (row_of(item, name, *columns) for item in self.items(name, count_max))

    def pairs(self, name: str) -> list[tuple[bytes, bytes]]:
        """A list of bytes, two by two."""
        given = self.strings(name)
        if len(given) % 2:
            raise Malformed(f"{name} has {len(given)} items, an odd number of them")
        return list(zip(given[::2], given[1::2], strict=True))

    def strings(self, name: str) -> list[bytes]:
        """A list of bytes."""
        given = self.items(name)
        if not all(type(one) is bytes for one in given):
            raise Malformed(f"{name} holds something else than bytes")
        return given

    def map(self, name: str) -> Fields:
        """A map."""
        return Fields(self._get(name), name)

    def _typed(self, name: str, kind: type, expected: str) -> Any:
        item = self._get(name)
        if type(item) is not kind:
            raise Malformed(f"{name} is {kind_of(item)}, not {expected}")
        return item

    def _get(self, name: str) -> Any:
        try:
            return self._item[name]
        except KeyError:
            raise Malformed(f"{name} is missing") from None


def row_of(item: Any, name: str, *columns: str) -> Fields:
    """The fields of a list with the values of these columns.  Raises Malformed."""
    if type(item) is not list or len(item) != len(columns):
        raise Malformed(f"{name} is not a list of {len(columns)} items")
    return Fields(dict(zip(columns, item, strict=True)), name)


def kind_of(item: object) -> str:
    """What an item is, for people."""
    return {type(None): "null", dict: "a map", list: "a list", str: "text"}.get(type(item), type(item).__name__)
