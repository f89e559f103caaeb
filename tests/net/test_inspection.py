"""LOG, TREE, METADATA: what the tools see of a node, bounded, and nothing that is not committed."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from fixtures.servers import StartedServer
from fixtures.support import wait_until

from merklekv.engine.engine import Engine
from merklekv.engine.format import INNER_NODES, LEAF_SIZE, SEGMENT_HEADER, bucket_of
from merklekv.engine.log.segment import segment_path
from merklekv.engine.merkle import LEAVES_PER_INNER
from merklekv.net.client import Client, NodeError, Reply
from merklekv.net.commands.records import READ_BYTES_MAX


@pytest.fixture
def client(server: StartedServer) -> Iterator[Client]:
    with Client(*server.address) as connected:
        yield connected


def numbers(client: Client) -> tuple[int, int, list[int]]:
    end, checkpoint_lsn, segments = client.call(b"LOG", b"LIST")  # type: ignore[misc]
    return end, checkpoint_lsn, segments  # type: ignore[return-value]


def read(client: Client, segment: int, position: int, size: int) -> Reply:
    return client.call(b"LOG", b"READ", b"%d" % segment, b"%d" % position, b"%d" % size)


def test_the_log_is_handed_out_as_it_is_on_disk(engine: Engine, client: Client) -> None:
    engine.set(b"key", b"value")
    engine.commit()
    end, checkpoint_lsn, segments = numbers(client)
    assert (checkpoint_lsn, segments) == (0, [0])
    data = segment_path(engine.directory.log, 0).read_bytes()
    assert read(client, 0, 0, READ_BYTES_MAX) == data[:end]
    assert read(client, 0, 10, 7) == data[10:17]
    assert read(client, 0, end - 1, 100) == data[end - 1 : end]
    assert read(client, 0, end, 100) == b""
    assert read(client, 0, end + 1000, 100) == b""


def test_what_is_not_committed_is_kept_back(engine: Engine, client: Client) -> None:
    assert numbers(client)[0] == 0
    assert read(client, 0, 0, 1000) == segment_path(engine.directory.log, 0).read_bytes()[: SEGMENT_HEADER.size]
    engine.set(b"key", b"value")
    assert read(client, 0, SEGMENT_HEADER.size, 1000) == b""
    engine.commit()
    assert read(client, 0, SEGMENT_HEADER.size, 1000) != b""


def test_a_segment_that_is_gone(engine: Engine, client: Client) -> None:
    engine.checkpointer.memtable_size = 1000
    engine.set(b"key", b"x" * 1000)
    engine.commit()
    wait_until(lambda: numbers(client)[2][0] > 0, what="a checkpoint that covers the first segment")
    assert read(client, 0, 0, 100) is None
    end, checkpoint_lsn, segments = numbers(client)
    assert checkpoint_lsn in segments
    assert max(segments) <= end


@pytest.mark.parametrize("size", [1, READ_BYTES_MAX])
def test_sizes_within_the_limit(size: int, client: Client) -> None:
    assert isinstance(read(client, 0, 0, size), bytes)


@pytest.mark.parametrize("size", [0, READ_BYTES_MAX + 1])
def test_sizes_beyond_it(size: int, client: Client) -> None:
    with pytest.raises(NodeError, match=f"size must be a number from 1 to {READ_BYTES_MAX}"):
        read(client, 0, 0, size)


@pytest.mark.parametrize("words", [b"", b"LIST all", b"READ 0 0", b"READ 0 0 1 1", b"DROP 0"])
def test_a_log_command_that_is_none(words: bytes, client: Client) -> None:
    with pytest.raises(NodeError, match=r"syntax error|wrong number"):
        client.call(b"LOG", *words.split())


@pytest.mark.parametrize("word", [b"-1", b"x", b"1" * 30])
def test_numbers_that_are_none(word: bytes, client: Client) -> None:
    with pytest.raises(NodeError, match="segment must be a number from 0 to"):
        client.call(b"LOG", b"READ", word, b"0", b"1")
    with pytest.raises(NodeError, match="position must be a number from 0 to"):
        client.call(b"LOG", b"READ", b"0", word, b"1")
    with pytest.raises(NodeError, match="inner node must be a number from 0 to 255"):
        client.call(b"TREE", word)


def test_leaves(engine: Engine, client: Client) -> None:
    keys = [b"key:%d" % number for number in range(1000)]
    for key in keys:
        engine.set(key, b"x")
    engine.commit()
    for inner in (0, 100, INNER_NODES - 1):
        reply = client.call(b"TREE", b"%d" % inner)
        assert isinstance(reply, bytes)
        assert len(reply) == LEAVES_PER_INNER * LEAF_SIZE
        counts = [int.from_bytes(reply[at + 16 : at + LEAF_SIZE], "big") for at in range(0, len(reply), LEAF_SIZE)]
        assert sum(counts) == sum(bucket_of(key) // LEAVES_PER_INNER == inner for key in keys)
    with pytest.raises(NodeError, match="from 0 to 255"):
        client.call(b"TREE", b"256")


def test_inner_digests(engine: Engine, client: Client) -> None:
    for number in range(1000):
        engine.set(b"key:%d" % number, b"x")
    engine.commit()
    digests = client.call(b"TREE")
    assert digests == b"".join(sha256(client.call(b"TREE", b"%d" % node)).digest() for node in range(INNER_NODES))  # type: ignore[arg-type]
    assert client.call(b"HASH") == sha256(digests + engine.truncation).hexdigest().encode()


def test_leaves_after_a_truncation_that_spares_something(engine: Engine, client: Client, tmp_path: Path) -> None:
    """They wait until the base has taken it in."""
    engine.set(b"old", b"x")
    engine.checkpointer.memtable_size = 1
    engine.commit()
    wait_until(lambda: engine.metrics().checkpoint_lsn, what="the base")
    truncation = (engine.clock.newest + 1).to_bytes(8, "big") + bytes(16)
    engine.checkpointer.memtable_size = 1 << 20
    engine.set(b"new", b"x")
    engine.merge_truncation(truncation, b"elsewhere")
    replies = [client.call(b"TREE", b"%d" % inner) for inner in range(INNER_NODES)]
    total = sum(int.from_bytes(leaf[at + 16 : at + 24], "big") for leaf in replies for at in range(0, len(leaf), 24))  # type: ignore[arg-type, index, misc]
    assert total == engine.live_count + engine.tombstone_count


def test_notes(engine: Engine, client: Client) -> None:
    assert client.call(b"METADATA") == []
    engine.put_metadata(b"members", b"\x00\xff")
    engine.put_metadata(b"store_id", b"")
    engine.raise_gc_horizon(5)
    engine.commit()
    assert client.call(b"METADATA") == [b"gc_horizon", bytes(7) + b"\5", b"members", b"\x00\xff", b"store_id", b""]
