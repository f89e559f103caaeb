"""The Merkle bucket tree over all records of a node, dead ones included.

                                root                          32 bytes, SHA-256
              inner 0     inner 1   ...   inner 255           256 nodes, SHA-256 of their 256 leaves
           leaf 0 .. 255  256 .. 511  ...  .. 65535           65,536 buckets: (sum of record digests mod 2^128, count)

A key belongs to the bucket that the top 16 bits of its XXH3-64 name.  A leaf adds up the digests of its records, so a
write costs one addition whatever the size of the data, and the tree is canonical: it depends on the records alone,
never on the order or the history in which they came (incremental multiset hashing: Clarke et al., ASIACRYPT 2003; the
sum of 128-bit digests guards against accidents, not against an adversary who may choose records).

A leaf is one integer, `sum << 64 | count`, and a record's term is `digest << 64 | 1`.  Everything is linear, so
differences may be added in any order, and go below zero on the way, as long as they are reduced at the end.  In memory
sums and counts are apart: most writes change no count, and small integers add up faster.

Inner digests and the root are computed on demand, for what has changed since.  Cost: 8 us an inner node.
"""

from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Final

from xxhash import xxh3_64_intdigest

from merklekv.engine.format import BUCKETS, INNER_NODES, LEAF_SIZE, bucket_of
from merklekv.engine.record import digest_of

LEAF_MASK: Final = (1 << 192) - 1
COUNT_MASK: Final = (1 << 64) - 1
EMPTY_ROOT: Final = bytes(32)
LEAVES_PER_INNER: Final = BUCKETS // INNER_NODES
EMPTY_INNER: Final = sha256(bytes(LEAVES_PER_INNER * LEAF_SIZE)).digest()


def term_of(record: bytes) -> int:
    """What a record adds to its leaf."""
    return int.from_bytes(digest_of(record), "big") << 64 | 1


def pack_leaves(leaves: list[int]) -> bytes:
    """Leaves as 24 bytes each: sum (16), count (8)."""
    return b"".join([(leaf & LEAF_MASK).to_bytes(LEAF_SIZE, "big") for leaf in leaves])


def unpack_leaves(data: bytes) -> list[int]:
    """The inverse of `pack_leaves`."""
    return [int.from_bytes(data[at : at + LEAF_SIZE], "big") for at in range(0, len(data), LEAF_SIZE)]


def _below(node: int) -> slice:
    return slice(node * LEAVES_PER_INNER, (node + 1) * LEAVES_PER_INNER)


class MerkleTree:
    """All leaves in memory (about 4 MiB), inner digests on demand.  Not locked.

    The table's write function moves `sums`, `counts` and `dirty` in place, for the bucket that `hash_of` names.
    """

    hash_of: Callable[[bytes], int] = staticmethod(xxh3_64_intdigest)  # its top 16 bits are the bucket

    def __init__(self, leaves: Mapping[int, list[int]]) -> None:
        """A tree with these 256 leaves below each of these inner nodes, and empty leaves below the others."""
        self.sums, self.counts = [0] * BUCKETS, [0] * BUCKETS
        for node, below in leaves.items():
            self.sums[_below(node)] = [leaf >> 64 for leaf in below]
            self.counts[_below(node)] = [leaf & COUNT_MASK for leaf in below]
        self.dirty = set(leaves)  # inner nodes whose digest is out of date
        self._inner = [EMPTY_INNER] * INNER_NODES

    def add(self, key: bytes, record: bytes, sign: int = 1) -> None:
        """Counts a record in; with a `sign` of -1, out."""
        bucket = bucket_of(key)
        self.sums[bucket] += sign * int.from_bytes(digest_of(record), "big")
        self.counts[bucket] += sign
        self.dirty.add(bucket // LEAVES_PER_INNER)

    def leaf(self, bucket: int) -> int:
        """The leaf of a bucket, `sum << 64 | count`."""
        return (self.sums[bucket] << 64) + self.counts[bucket] & LEAF_MASK

    def refresh(self, nodes: range) -> None:
        """Computes the digests of those of these inner nodes that are out of date."""
        for node in self.dirty.intersection(nodes):
            self._inner[node] = sha256(pack_leaves(self._unreduced(node))).digest()
            self.dirty.remove(node)

    def inner_digests(self) -> list[bytes]:
        """The 256 inner digests, 32 bytes each."""
        self.refresh(range(INNER_NODES))
        return self._inner

    def inner_leaves(self, node: int) -> list[int]:
        """The 256 leaves below an inner node, each `sum << 64 | count`."""
        return [leaf & LEAF_MASK for leaf in self._unreduced(node)]

    def _unreduced(self, node: int) -> list[int]:
        below = _below(node)
        return [(total << 64) + count for total, count in zip(self.sums[below], self.counts[below], strict=True)]

    def leaf_digests(self, node: int) -> bytes:
        """What tells two leaves apart, for the 256 below an inner node: 8 bytes each, the low ones of the sum."""
        return b"".join([(leaf >> 64 & COUNT_MASK).to_bytes(8, "big") for leaf in self.inner_leaves(node)])

    def root(self, truncation: bytes) -> bytes:
        """The root, 32 bytes; zeros without records.  The truncation version is part of it."""
        inner = self.inner_digests()
        if all(digest == EMPTY_INNER for digest in inner):
            return EMPTY_ROOT
        return sha256(b"".join(inner) + truncation).digest()
