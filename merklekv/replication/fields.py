"""Strict decoding of CBOR maps and lists that another node, or an earlier process of this one, has written.

Bytes become one item of plain types, whole and with nothing behind it, or raise `Malformed`.  A caller asks for a field
by name together with its type and bounds, so no unchecked value gets further.  Unknown fields are ignored: later
releases may add some.
"""

from __future__ import annotations

from typing import Any, Final

from merklekv.node_id import NODE_ID_RULE, is_node_id
from merklekv.replication.plain_cbor import ITEMS_MAX, decode_plain

NUMBER_MAX: Final = (1 << 63) - 1


class Malformed(Exception):
    """The bytes are not what was expected; the text says what is wrong."""


def decode_map(data: bytes, items_max: int = ITEMS_MAX) -> Fields:
    """The map in these bytes.  Raises Malformed, and nothing else whatever they are."""
    try:
        item, left = decode_plain(data, items_max)
    except Exception as error:  # whatever a decoder trips over
        raise Malformed(f"no CBOR: {type(error).__name__}: {error}") from error
    if left:
        raise Malformed(f"{left} bytes behind the message")
    return Fields(item, "the message")


class Fields:
    """A map, whose fields are read by type.  All methods raise Malformed."""

    def __init__(self, item: Any, name: str) -> None:
        if type(item) is not dict:
            raise Malformed(f"{name} is {_kind(item)}, not a map")
        self._item: dict[Any, Any] = item

    def number(self, name: str, limit: int = NUMBER_MAX) -> int:
        """A number from 0 to `limit`."""
        return number(self._get(name), name, limit)

    def text(self, name: str, size_max: int, size_min: int = 1) -> str:
        """Text of so many bytes."""
        return text(self._get(name), name, size_max, size_min)

    def node_id(self, name: str) -> str:
        """A node id."""
        return node_id(self._get(name), name)

    def binary(self, name: str, *sizes: int) -> bytes:
        """Bytes of one of these sizes, of any size when none is given."""
        return binary(self._get(name), name, *sizes)

    def optional(self, name: str, *sizes: int) -> bytes | None:
        """Bytes like those of `binary`, or null."""
        return None if self._get(name) is None else self.binary(name, *sizes)

    def items(self, name: str, count_max: int = NUMBER_MAX) -> list[Any]:
        """A list of at most so many items of any kind."""
        given = self._get(name)
        if type(given) is not list:
            raise Malformed(f"{name} is {_kind(given)}, not a list")
        if len(given) > count_max:
            raise Malformed(f"{name} has {len(given)} items, more than {count_max}")
        return given

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

    def _get(self, name: str) -> Any:
        try:
            return self._item[name]
        except KeyError:
            raise Malformed(f"{name} is missing") from None


def a_list(item: Any, name: str, count: int) -> list[Any]:
    """A list of exactly so many items."""
    if type(item) is not list or len(item) != count:
        raise Malformed(f"{name} is not a list of {count} items")
    return item


def number(item: Any, name: str, limit: int = NUMBER_MAX) -> int:
    """A number from 0 to `limit`."""
    if type(item) is not int:
        raise Malformed(f"{name} is {_kind(item)}, not a number")
    if not 0 <= item <= limit:
        raise Malformed(f"{name} is {item}, not 0 to {limit}")
    return item


def text(item: Any, name: str, size_max: int, size_min: int = 1) -> str:
    """Text of so many bytes."""
    if type(item) is not str:
        raise Malformed(f"{name} is {_kind(item)}, not text")
    if not size_min <= len(item.encode()) <= size_max:
        raise Malformed(f"{name} has {len(item.encode())} bytes, not {size_min} to {size_max}")
    return item


def node_id(item: Any, name: str) -> str:
    """A node id."""
    if type(item) is not str:
        raise Malformed(f"{name} is {_kind(item)}, not text")
    if not is_node_id(item):
        raise Malformed(f"{name} is {item[:60]!r}, not {NODE_ID_RULE}")
    return item


def binary(item: Any, name: str, *sizes: int) -> bytes:
    """Bytes of one of these sizes, of any size when none is given."""
    if type(item) is not bytes:
        raise Malformed(f"{name} is {_kind(item)}, not bytes")
    if sizes and len(item) not in sizes:
        raise Malformed(f"{name} has {len(item)} bytes, not {' or '.join(map(str, sizes))}")
    return item


def _kind(item: object) -> str:
    return {type(None): "null", dict: "a map", list: "a list", str: "text"}.get(type(item), type(item).__name__)
