"""`merklekv verify`: checks every invariant of a source, and names each one that does not hold.

The engine's checker reads a closed directory without changing anything. A running node is checked through its port: key
order, sizes, digests, versions and truncation version of every record, and the node's root and counters against those
that the reference code computes from the records. The root can only be compared when no write comes meanwhile: if it
changes, the check is repeated, ATTEMPTS times in all, and then left out, with a note.

The metadata entries, such as the member table, and the node id are decoded as a start decodes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import typer

from merklekv.output import counted
from merklekv_tool.arguments import AsJson, SourceName
from merklekv_tool.exit_codes import EXIT_PROBLEMS
from merklekv_tool.output import Update, note, progress, say_result

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from merklekv.engine.verify.reference import Tree
    from merklekv.engine.verify.report import Report
    from merklekv_tool.source.node import Node

EXAMPLES: Final = """
Examples:

    merklekv verify ./data
    merklekv verify 127.0.0.1:7379
    merklekv verify ./data --json | jq -r '.problems[]'
"""
ATTEMPTS: Final = 3


def verify(source: SourceName, as_json: AsJson = False) -> None:
    """Check every invariant of the data; exit status 1 when one does not hold."""
    from merklekv_tool.source.open import address_of, open_node

    notes: list[str] = []
    if address_of(source) is None:
        problems = _verify_directory(source, notes)
    else:
        with open_node(source) as node:
            problems = _verify_node(node, notes)
    for line in [] if as_json else notes:
        note(line)
    found = counted(len(problems), "problem") if problems else "no problems"
    text = "\n".join([*problems, f"{source}: {found} found"])
    say_result({"source": source, "ok": not problems, "problems": problems, "notes": notes}, text, as_json)
    if problems:
        raise typer.Exit(EXIT_PROBLEMS)


def _verify_directory(name: str, notes: list[str]) -> list[str]:
    from merklekv.engine.verify.check import check_directory
    from merklekv.errors import Corruption, DirectoryUnwritable
    from merklekv.node_id import read_node_id
    from merklekv_tool.source.open import require_directory

    path = require_directory(name)
    with progress(f"verify {name}", of_bytes=True) as update:
        problems = check_directory(path, update, notes.append, metadata_violations)
    try:
        read_node_id(path)
    except (Corruption, DirectoryUnwritable) as error:
        problems.append(str(error))
    return problems


def metadata_violations(metadata: Mapping[bytes, bytes]) -> Iterator[str]:
    """What a start would find wrong with the metadata entries."""
    from merklekv.engine.format import METADATA_TIMES, TIME_SIZE
    from merklekv.errors import FormatTooNew
    from merklekv.replication.cluster.display import violations
    from merklekv.replication.cluster.storage import METADATA_MEMBERS

    for name in METADATA_TIMES:
        size = len(metadata.get(name, bytes(TIME_SIZE)))
        if size != TIME_SIZE:
            yield f"the metadata entry {name.decode()} has {size} bytes, not {TIME_SIZE}"
    if METADATA_MEMBERS in metadata:
        try:
            yield from violations(metadata[METADATA_MEMBERS])
        except FormatTooNew as error:
            yield str(error)


def _verify_node(node: Node, notes: list[str]) -> list[str]:
    from merklekv.engine.verify.report import Report

    with progress(f"verify {node.name}") as update:
        for attempt in range(1, ATTEMPTS + 1):
            report = Report(notes.append)
            before = node.root()
            tree, truncation = _read_all(node, report, update)
            count = node.count()
            if node.root() == before:
                report.expect(node.name, "the root that it answers", before, tree.root(truncation))
                report.expect(node.name, "the number of records that it counts", count, tree.live + tree.dead)
                break
            if attempt == ATTEMPTS:
                notes.append(f"{node.name}: written to all the time, so its root was not compared")
    for problem in metadata_violations(node.metadata()):
        report.add(node.name, problem)
    return report.sentences()


def _read_all(node: Node, report: Report, update: Update) -> tuple[Tree, bytes]:
    """Checks every record. Returns the tree of the records, and the truncation version."""
    from merklekv.engine.verify.reference import Tree
    from merklekv.engine.verify.report import record_violations, show

    tree = Tree()
    last = b""
    total = node.count()
    truncation = node.truncation()
    for page in node.pages():
        for key, record in page:
            if key <= last:
                report.add(f"key {show(key)}", f"comes after {show(last)}")
            last = key
            for problem in record_violations(key, record, truncation):
                report.add(f"key {show(key)}", problem)
            tree.add(key, record)
        update(tree.live + tree.dead, total)
    return tree, truncation
