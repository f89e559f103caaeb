"""Expiry places: when a record expires, and which; the index of what is due is in their order.

A place is the expiry (8 bytes, ms), then the bucket and a print of the key.  Its first bytes are the key of a list.
"""

from typing import Final

from merklekv.engine.record import (
    EXPIRY_KEY_SIZE,
    EXPIRY_SIZE,
)

FIRST_PLACE: Final = bytes(EXPIRY_SIZE + EXPIRY_KEY_SIZE)  # below every expiry place
LAST_PLACE: Final = b"\x7f" + b"\xff" * (len(FIRST_PLACE) - 1)  # at or above every one
PLACE_SPLIT: Final = 5  # bytes of an expiry place that are the key of its list
SHARED: Final = 0x80  # set in the first byte of a place that more than one record has had


def bucket_of_place(place: bytes) -> int:
    """The bucket of the key in an expiry place."""
    return int.from_bytes(place[EXPIRY_SIZE : EXPIRY_SIZE + 2], "big")


def shared_list(place: bytes) -> bytes:
    """The list of a place that more than one record has had."""
    return bytes((place[0] | SHARED,)) + place[1:PLACE_SPLIT]
