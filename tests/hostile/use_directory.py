"""What a node does with a data directory, in one process: start, read everything, write, checkpoint, stop; twice.

`main` prints what was there and which warnings came, as JSON. An error is one line and the exit status of `merklekv`.
"""

from __future__ import annotations

import json
import logging
import sys
from hashlib import sha256
from pathlib import Path
from typing import Final

from merklekv.engine.engine import Engine
from merklekv.engine.record import is_live, value_of
from merklekv.errors import MerkleKVError
from merklekv.exit_codes import status_of
from merklekv.node_id import stored_node_id
from merklekv.replication.cluster.members import node_of
from merklekv.replication.cluster.storage import METADATA_MEMBERS, load_members

RECORDS_MAX: Final = 20_000
PAGE_KEYS: Final = 500
WRITTEN: Final = b"written by a start"


class Warnings(logging.Handler):
    """What the engine logs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def use(path: Path, value: bytes) -> dict[str, str]:
    """One life of a node: the live keys that it finds, each with a hash of its value."""
    engine = Engine(path, durability="never", checkpoint="manual")
    try:
        stored_node_id(path, node_of(engine.metadata.get(METADATA_MEMBERS, b"")))
        load_members(engine, "node")
        engine.wait_until_counted(10)
        found: dict[str, str] = {}
        seen, after = 0, b""
        following: bytes | None = after
        while following is not None:
            pairs, following = engine.records_page(b"", following, PAGE_KEYS)
            seen += len(pairs)
            if seen > RECORDS_MAX:
                raise AssertionError("the records have no end")
            for key, record in pairs:
                if is_live(record):
                    found[key.hex()] = sha256(value_of(record)).hexdigest()[:16]
        for shown in list(found)[::3]:
            if engine.record(bytes.fromhex(shown)) is None:  # `get` shows none that has expired
                raise AssertionError(f"the key {shown} is listed, and cannot be read")
        while not engine.prepare_buckets():
            pass
        if engine.root_ready:
            engine.root()
        engine.set(WRITTEN, value)
        for shown in list(found)[::5]:
            engine.append(bytes.fromhex(shown), b"")
        engine.commit()
        engine.checkpoint_now()
        engine.delete(WRITTEN)
        engine.commit()
        return found
    finally:
        engine.close()


def main() -> int:
    path = Path(sys.argv[1])
    warnings = Warnings()
    logging.getLogger().addHandler(warnings)
    try:
        lives = [use(path, value) for value in (b"once", b"twice")]
    except MerkleKVError as error:
        sys.stderr.write(f"use: {error}\n")
        return status_of(error)
    json.dump({"lives": lives, "warnings": warnings.lines}, sys.stdout)
    return 0
