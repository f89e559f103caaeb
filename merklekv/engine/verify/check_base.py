"""The checker's look at the base: LMDB's pages, then the four databases against each other."""

from pathlib import Path
from typing import Final

import lmdb
from lmdb.verify import VerifyError, verify

from merklekv.engine.base import BaseSnapshot
from merklekv.engine.lmdb_file import shortfall
from merklekv.engine.verify.reference import (
    RECORD_SIZE_MIN,
    Tree,
    bucket_of,
    is_tombstone,
    number,
    number_bytes,
    version_of,
)
from merklekv.engine.verify.report import BaseFacts, Report, record_problems, show, version_text

NODE_SIZE: Final = 256 * 24
METADATA: Final = b"metadata:"
META_SIZES: Final = {"checkpoint_lsn": 8, "checkpointing": 8, "truncation": 24, "newest": 24, "live": 8, "dead": 8}


def check_base_file(data: Path, report: Report) -> BaseFacts:
    """Checks a base that no process has open.  Changes nothing, not even LMDB's lock file."""
    weight = data.stat().st_size
    report.stages.begin(weight, 1)
    short = shortfall(data)
    if short:
        report.add(data, f"{short}, so nothing in it is checked")
        return BaseFacts(known=False)
    try:
        damage = verify(str(data))  # type: ignore[no-untyped-call]
    except VerifyError as error:
        damage = [str(error)]
    if damage:
        for sentence in damage:
            report.add(data, f"LMDB's pages are damaged: {sentence}")
        report.add(data, "records, leaves and index are not checked, since reading damaged pages may crash")
        return BaseFacts(known=False)
    try:
        env = lmdb.open(str(data.parent), readonly=True, lock=False, max_dbs=5)
    except lmdb.Error as error:
        report.add(data, f"LMDB cannot open it: {error}")
        return BaseFacts(known=False)
    with env:
        try:
            names = (b"records", b"index", b"tombstones", b"leaves", b"meta")
            lists = (b"index", b"tombstones")
            handles = [env.open_db(name, create=False, dupsort=name in lists) for name in names]
        except lmdb.NotFoundError:
            report.note(f"{data}: was being created when the process ended")
            return BaseFacts()
        with env.begin() as txn:
            view = BaseSnapshot(txn, *handles)
            report.stages.begin(weight, view.size(view.records) + view.size(view.index))
            return check_base(data, view, report)


def check_base(where: Path, view: BaseSnapshot, report: Report) -> BaseFacts:
    """Checks what one transaction of the base shows."""
    facts = _check_meta(where, view, report)
    facts.metadata = _notes(view)
    index_is_off = _check_index(where, view, facts, report)
    tree = Tree()
    with view.txn.cursor(db=view.records) as cursor, view.txn.cursor(db=view.index) as listed:
        for key, record in cursor:
            report.stages.step()
            for problem in record_problems(key, record, facts.truncation):
                report.add(f"{where}, key {show(key)}", problem)
            if len(record) >= RECORD_SIZE_MIN:
                tree.add(key, record)
            if is_tombstone(record):
                _check_listed(where, view, key, record, report)
            bucket = bucket_of(key)
            if index_is_off and not listed.set_key_dup(number_bytes(bucket, 2), key):
                report.add(where, f"the index lacks the key {show(key)}, expected in bucket {bucket}")
    _check_derived(where, view, tree, facts, report)
    return facts


def _check_listed(where: Path, view: BaseSnapshot, key: bytes, record: bytes, report: Report) -> None:
    with view.txn.cursor(db=view.tombstones) as cursor:
        if not cursor.set_key_dup(version_of(record), key):
            report.add(where, f"the list of tombstones lacks the one of key {show(key)}")


def _check_meta(where: Path, view: BaseSnapshot, report: Report) -> BaseFacts:
    values: dict[str, bytes] = {}
    for name, size in META_SIZES.items():
        value = view.txn.get(name.encode(), db=view.meta)
        if value is not None:
            report.expect(where, f"the size of {name} in meta", len(value), size)
            values[name] = value
    checkpoint_lsn = number(values.get("checkpoint_lsn", b""))
    checkpointing = number(values["checkpointing"]) if "checkpointing" in values else None
    if checkpointing is not None and checkpointing <= checkpoint_lsn:
        report.add(
            where,
            f"a checkpoint up to LSN {checkpointing} is under way, expected more than the last one, {checkpoint_lsn}",
        )
    none = BaseFacts()
    return BaseFacts(
        checkpoint_lsn, checkpointing, values.get("truncation", none.truncation), values.get("newest", none.newest)
    )


def _notes(view: BaseSnapshot) -> dict[bytes, bytes]:
    with view.txn.cursor(db=view.meta) as cursor:
        return {name.removeprefix(METADATA): value for name, value in cursor if name.startswith(METADATA)}


def _check_index(where: Path, view: BaseSnapshot, facts: BaseFacts, report: Report) -> bool:
    """Checks that the index lists only what is there; True when it does not list exactly that, and should."""
    sound = True
    with view.txn.cursor(db=view.index) as cursor:
        for name, key in cursor:
            report.stages.step()
            bucket, expected = number(name), bucket_of(key)
            if bucket != expected:
                report.add(where, f"the index has the key {show(key)} in bucket {bucket}, expected {expected}")
                sound = False
            elif view.txn.get(key, db=view.records) is None:
                report.add(where, f"the index has the key {show(key)}, expected only keys that have a record")
                sound = False
    return facts.checkpointing is None and not (sound and view.size(view.index) == view.size(view.records))


def _check_derived(where: Path, view: BaseSnapshot, tree: Tree, facts: BaseFacts, report: Report) -> None:
    """Counters, the newest version and the leaves, against those of the records."""
    for name, expected in (("live", tree.live), ("dead", tree.dead)):
        found = number(view.txn.get(name.encode(), b"", db=view.meta))
        report.expect(where, f"the counter {name}", found, expected)
    if tree.newest > facts.newest:
        shown = version_text(facts.newest), version_text(tree.newest)
        report.add(where, f"the newest version in meta is {shown[0]}, expected {shown[1]} or more")
    report.expect(where, "the length of the list of tombstones", view.size(view.tombstones), tree.dead)
    with view.txn.cursor(db=view.leaves) as cursor:
        for name in cursor.iternext(values=False):
            report.expect(where, "the size of a name in leaves", len(name), 1)
    for node in range(256):
        stored = view.txn.get(bytes((node,)), bytes(NODE_SIZE), db=view.leaves)
        report.expect(where, f"the size of the leaves of inner node {node}", len(stored), NODE_SIZE)
        if stored == tree.leaves(node):
            continue
        for bucket in range(node * 256, node * 256 + 256):
            leaf = stored[bucket % 256 * 24 :][:24]
            report.expect(where, f"leaf {bucket} (sum, count)", leaf, tree.leaf(bucket))
