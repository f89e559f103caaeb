"""The messages of an exchange, as bytes.

    MKX | version (1 byte) | CBOR map | XXH3-64 of all before (8 bytes)

The answer to a request is of the same kind, or `outdated` or `refused`:

    hello     the hello of the initiator            the hello of the responder; whether the data are equal
    inner     the 256 inner digests                 the inner nodes that differ, with their leaves
    buckets   fingerprints of records, by bucket    which of them are missing; the records that the initiator lacks
    transfer  records; stale records; keys that     which of both were refused; the records that are wanted
              are wanted
    scan      a key                                 the records behind it, in key order; the last key, if there are more
    done      the same hello again; the closed      the table of the responder
              timestamp in the answer to it; which
              records were refused, by either node

A record that is larger than the reader's `max_value_size` is not sent: it would make the whole message too large.  Its
sender names it (`too_large`), and it counts as refused.

A table of members is deflated.  The one in an answer refers to the one in its request, which says nearly the same.

All but `hello` name the process that they are meant for (`to`: store id and process epoch) and its GC horizon.  A node
that was restarted since, or has another horizon now, answers `outdated`.  Each request is understood by itself: it may
be lost, or come twice.
"""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Final, TypeVar

import cbor2
from xxhash import xxh3_64_digest

from merklekv.engine.record import EPOCH_SIZE, STORE_ID_SIZE, VERSION_SIZE
from merklekv.errors import MerkleKVError
from merklekv.output import printable
from merklekv.replication.cluster.members import NO_REPORT, TABLE_ITEMS_MAX, Identity, MemberTable, decode_table
from merklekv.replication.plain_cbor import Fields, Malformed, decode_map

MAGIC: Final = b"MKX"
EXCHANGE_VERSION: Final = 7
_HEAD: Final = MAGIC + bytes((EXCHANGE_VERSION,))
_CHECKSUM_SIZE: Final = 8
ROOT_SIZE: Final = 32
INNER_DIGEST_SIZE: Final = 16  # of the 32 bytes
LEAF_DIGEST_SIZE: Final = 8
PRINT_SIZES: Final = (8, 16)  # of a record's digest: enough to tell records apart; all of it
BATCH_BYTES: Final = 512 << 10  # a message ends when it has so many bytes of records
BATCH_RECORDS: Final = 4000  # in a message
FULL: Final = "full"  # why a node refuses after it has begun to merge
DAMAGED: Final = "damaged"
UNFIT_CLOCK: Final = "unfit"  # the clock of the node that says so keeps it from exchanging with anyone
CLUSTER_SIZE_MAX: Final = 2048  # bytes of a topic prefix
MESSAGE_ROOM_BYTES: Final = 4 << 20  # what a message may need beside the largest value
TABLE_BYTES_MAX: Final = 4 << 20  # of a table of members; the largest one has 3 MiB
S = TypeVar("S", bytes, list[tuple[bytes, bytes]])
_ANY_TABLE: Final = MemberTable(Identity("", bytes(STORE_ID_SIZE)), NO_REPORT)  # the words that all tables have


class ExchangeRefused(MerkleKVError):
    """One of the two nodes refuses to exchange with the other; `why` is one word, the text says what to do.

    The text may be the peer's, so characters that do not print are escaped.
    """

    def __init__(self, why: str, detail: str) -> None:
        super().__init__(printable(detail))
        self.why = why


class ExchangeFailed(MerkleKVError):
    """The exchange was disturbed: by damaged messages, fast writers, or records that were refused.

    What was merged so far stays; a later exchange does the rest.  The text is as that of ExchangeRefused.
    """

    def __init__(self, detail: str) -> None:
        super().__init__(printable(detail))


@dataclass(frozen=True)
class Hello:
    """What a node says of itself when an exchange begins, as of one moment."""

    cluster: str
    epoch: bytes  # of its process
    truncation: bytes
    gc_horizon: int  # ns
    root: bytes  # empty while it is unknown
    count: int  # records, tombstones included
    max_value_size: int  # bytes
    table: MemberTable

    @property
    def node(self) -> str:
        """The node id."""
        return self.table.identity.node

    @property
    def process(self) -> bytes:
        """Its store id and process epoch, as its versions name them."""
        return self.table.identity.store_id + self.epoch

    def plain(self, known: MemberTable | None = None) -> dict[str, object]:
        """For CBOR.  `known`: a table that the reader has."""
        return vars(self) | {"table": pack(self.table, known)}


def decode_hello(fields: Fields, known: MemberTable | None = None) -> Hello:
    """The inverse of `Hello.plain`.  Raises Malformed."""
    slices = decode_hello_in_slices(fields, known)
    while True:
        try:
            next(slices)
        except StopIteration as end:
            hello: Hello = end.value
            return hello


def decode_hello_in_slices(fields: Fields, known: MemberTable | None = None) -> Generator[None, None, Hello]:
    """The same in slices of 50 ms at most, for a thread that others wait for: the table may be a large one."""
    plain = _inflated(fields.binary("table"), known)
    yield
    return Hello(
        fields.text("cluster", CLUSTER_SIZE_MAX, 0),
        fields.binary("epoch", EPOCH_SIZE),
        fields.binary("truncation", VERSION_SIZE),
        fields.number("gc_horizon"),
        fields.binary("root", 0, ROOT_SIZE),
        fields.number("count"),
        fields.number("max_value_size"),
        decode_table(plain),
    )


def pack(table: MemberTable, known: MemberTable | None = None) -> bytes:
    """A table of members, deflated: much in it comes several times, or is in a table that the reader has."""
    deflate = zlib.compressobj(zdict=_dictionary(known))
    return deflate.compress(cbor2.dumps(table.plain())) + deflate.flush()


def unpack(data: bytes, known: MemberTable | None = None) -> MemberTable:
    """The inverse of `pack`.  Raises Malformed."""
    return decode_table(_inflated(data, known))


def _inflated(data: bytes, known: MemberTable | None) -> Fields:
    inflate = zlib.decompressobj(zdict=_dictionary(known))
    try:
        plain = inflate.decompress(data, TABLE_BYTES_MAX)
    except zlib.error as error:
        raise Malformed(f"a table that cannot be unpacked: {error}") from error
    if not inflate.eof:
        raise Malformed(f"a table that is cut, or has more than {TABLE_BYTES_MAX} bytes")
    if inflate.unused_data:
        raise Malformed(f"{len(inflate.unused_data)} bytes behind a table")
    return decode_map(plain, TABLE_ITEMS_MAX)


def _dictionary(known: MemberTable | None) -> bytes:
    """What a packed table may refer to (RFC 1950, FDICT), of which zlib takes the last 32 KiB."""
    return cbor2.dumps((known or _ANY_TABLE).plain())


def encode(kind: str, **fields: object) -> bytes:
    """A message."""
    body = _HEAD + cbor2.dumps({"do": kind, **fields})
    return body + xxh3_64_digest(body)


def decode(message: bytes, size_max: int) -> tuple[str, Fields]:
    """The kind of a message, and its fields.  Raises Malformed and ExchangeRefused, nothing else."""
    if len(message) > size_max:
        raise Malformed(f"a message of {len(message)} bytes, more than {size_max}")
    if message[: len(MAGIC)] != MAGIC or len(message) < len(_HEAD) + _CHECKSUM_SIZE:
        raise Malformed("no message of an exchange")
    if message[len(MAGIC)] != EXCHANGE_VERSION:
        version = message[len(MAGIC)]
        raise ExchangeRefused(
            "format",
            f"one node speaks version {version} of the exchange, the other version {EXCHANGE_VERSION}: "
            "run the same release of MerkleKV on both",
        )
    body, checksum = message[:-_CHECKSUM_SIZE], message[-_CHECKSUM_SIZE:]
    if xxh3_64_digest(body) != checksum:
        raise Malformed("the checksum does not match: the message was damaged or cut")
    fields = decode_map(body[len(_HEAD) :])
    return fields.text("do", 20), fields


def encode_refusal(problem: Exception, node: str) -> bytes:
    """The answer of a node that refuses, or cannot."""
    why = problem.why if isinstance(problem, ExchangeRefused) else DAMAGED if isinstance(problem, Malformed) else FULL
    return encode("refused", node=node, why=why, text=str(problem)[:1000])


def parts(items: S, size: int) -> list[S]:
    """In parts of `size` bytes or items; the last one may be smaller."""
    return [items[at : at + size] for at in range(0, len(items), size)]


def flat(pairs: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    """Pairs in one list, as `Fields.pairs` reads them."""
    return [part for pair in pairs for part in pair]
