"""`merklekv-tool verify`: holds a place to every invariant, and names each one that does not hold.

A closed directory is checked by the engine's checker, which reads it without changing anything. A running node is read
through its port: key order, sizes, digests, versions and the floor of every record, and the root and counters that the
node answers against those of the records, computed by naive code. The latter needs a moment in which nobody writes:
while the root moves, it is tried again, ATTEMPTS times in all, and then left out, with a note.

What a node keeps beside its records, the table of members and its id, is decoded as a start decodes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import typer

from merklekv.output import counted
from merklekv_tool.output import AsJson, PlaceName, Update, note, progress, say, say_json
from merklekv_tool.statuses import EXIT_PROBLEMS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from merklekv.engine.verify.reference import Tree
    from merklekv.engine.verify.report import Report
    from merklekv_tool.places import Node

EXAMPLES: Final = """
Examples:

    merklekv-tool verify ./data
    merklekv-tool verify 127.0.0.1:7379
    merklekv-tool verify ./data --json | jq -r '.problems[]'
"""
ATTEMPTS: Final = 3


class Verdict(NamedTuple):
    """What was found."""

    problems: list[str]
    metadata: list[str]


def verify(place: PlaceName, as_json: AsJson = False) -> None:
    """Check every invariant of the data; exit status 1 when one does not hold."""
    from merklekv_tool import places

    address = places.address_of(place)
    if address is None:
        verdict = verify_directory(place)
    else:
        node = places.Node(*address)
        try:
            verdict = verify_node(node)
        finally:
            node.close()
    if as_json:
        say_json({"place": place, "ok": not verdict.problems, **verdict._asdict()})
    else:
        for line in verdict.metadata:
            note(line)
        for problem in verdict.problems:
            say(problem)
        found = counted(len(verdict.problems), "problem") if verdict.problems else "no problems"
        say(f"{place}: {found} found")
    if verdict.problems:
        raise typer.Exit(EXIT_PROBLEMS)


def verify_directory(place: str) -> Verdict:
    """Checks a closed directory."""
    from merklekv.engine.verify.check import check_directory
    from merklekv.errors import Corruption, DirectoryUnwritable
    from merklekv.node_id import read_node_id
    from merklekv_tool.places import require_directory

    metadata: list[str] = []
    path = require_directory(place)
    with progress(f"verify {place}", of_bytes=True) as update:
        problems = check_directory(path, update, metadata.append, note_problems)
    try:
        read_node_id(path)
    except (Corruption, DirectoryUnwritable) as error:
        problems.append(str(error))
    return Verdict(problems, metadata)


def note_problems(metadata: Mapping[bytes, bytes]) -> Iterator[str]:
    """What a start would find wrong with what a node keeps with its data."""
    from merklekv.engine.format import GC_HORIZON_SIZE, METADATA_GC_HORIZON
    from merklekv.errors import FormatTooNew
    from merklekv.replication.cluster.member_rows import problems
    from merklekv.replication.sync.local_endpoint import METADATA_MEMBERS

    gc_horizon = metadata.get(METADATA_GC_HORIZON, bytes(GC_HORIZON_SIZE))
    if len(gc_horizon) != GC_HORIZON_SIZE:
        yield f"the horizon in the log has {len(gc_horizon)} bytes, not {GC_HORIZON_SIZE}"
    if METADATA_MEMBERS in metadata:
        try:
            yield from problems(metadata[METADATA_MEMBERS])
        except FormatTooNew as error:
            yield str(error)


def verify_node(node: Node) -> Verdict:
    """Checks a running node."""
    from merklekv.engine.verify.report import Report

    metadata: list[str] = []
    with progress(f"verify {node.name}") as update:
        for attempt in range(1, ATTEMPTS + 1):
            report = Report(metadata.append)
            before = node.root()
            tree, truncation = walk(node, report, update)
            count = node.count()
            if node.root() == before:
                report.expect(node.name, "the root that it answers", before, tree.root(truncation))
                report.expect(node.name, "the number of records that it counts", count, tree.live + tree.dead)
                break
            if attempt == ATTEMPTS:
                metadata.append(f"{node.name}: written to all the time, so its root was not compared")
    for problem in note_problems(node.metadata()):
        report.add(node.name, problem)
    return Verdict(report.sentences(), metadata)


def walk(node: Node, report: Report, update: Update) -> tuple[Tree, bytes]:
    """Looks at every record; the tree that they make, and the floor."""
    from merklekv.engine.verify.reference import Tree
    from merklekv.engine.verify.report import record_problems, show

    tree = Tree()
    last = b""
    total = node.count()
    truncation = node.truncation()
    for page in node.pages():
        for key, record in page:
            if key <= last:
                report.add(f"key {show(key)}", f"comes after {show(last)}")
            last = key
            for problem in record_problems(key, record, truncation):
                report.add(f"key {show(key)}", problem)
            tree.add(key, record)
        update(tree.live + tree.dead, total)
    return tree, truncation
