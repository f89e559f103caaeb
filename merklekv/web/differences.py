"""Where nodes differ: by part of their Merkle trees, of which each has as many as inner nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from merklekv.engine.format import INNER_NODES
from merklekv.engine.merkle import unpack_inner


def digests_of(reply: object) -> list[bytes]:
    """The digest of each inner node, in a reply to TREE; none if it is another."""
    try:
        return unpack_inner(reply) if isinstance(reply, bytes) else []
    except ValueError:
        return []


def differing(parts: Mapping[str, Sequence[object]]) -> dict[str, list[int]]:
    """For each node that told all its parts: the numbers of those that it does not share with most of these nodes."""
    whole = {name: own for name, own in parts.items() if len(own) == INNER_NODES}
    found: dict[str, list[int]] = {name: [] for name in whole}
    for number in range(INNER_NODES):
        for name, own in whole.items():
            if 2 * sum(other[number] == own[number] for other in whole.values()) <= len(whole) > 1:
                found[name].append(number)
    return found
