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
    from merklekv.engine.verify.report import Findings
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
    notes: list[str]


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
        for line in verdict.notes:
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
    from merklekv.names import read_node_id
    from merklekv_tool.places import require_directory

    notes: list[str] = []
    path = require_directory(place)
    with progress(f"verify {place}", of_bytes=True) as update:
        problems = check_directory(path, update, notes.append, note_problems)
    try:
        read_node_id(path)
    except (Corruption, DirectoryUnwritable) as error:
        problems.append(str(error))
    return Verdict(problems, notes)


def note_problems(notes: Mapping[bytes, bytes]) -> Iterator[str]:
    """What a start would find wrong with what a node keeps with its data."""
    from merklekv.engine.format import HORIZON_SIZE, NOTE_HORIZON
    from merklekv.errors import FormatTooNew
    from merklekv.replication.cluster.member_rows import problems
    from merklekv.replication.sync.local_endpoint import NOTE_MEMBERS

    horizon = notes.get(NOTE_HORIZON, bytes(HORIZON_SIZE))
    if len(horizon) != HORIZON_SIZE:
        yield f"the horizon in the log has {len(horizon)} bytes, not {HORIZON_SIZE}"
    if NOTE_MEMBERS in notes:
        try:
            yield from problems(notes[NOTE_MEMBERS])
        except FormatTooNew as error:
            yield str(error)


def verify_node(node: Node) -> Verdict:
    """Checks a running node."""
    from merklekv.engine.verify.report import Findings

    notes: list[str] = []
    with progress(f"verify {node.name}") as update:
        for attempt in range(1, ATTEMPTS + 1):
            findings = Findings(notes.append)
            before = node.root()
            tree, floor = walk(node, findings, update)
            count = node.count()
            if node.root() == before:
                findings.expect(node.name, "the root that it answers", before, tree.root(floor))
                findings.expect(node.name, "the number of records that it counts", count, tree.live + tree.dead)
                break
            if attempt == ATTEMPTS:
                notes.append(f"{node.name}: written to all the time, so its root was not compared")
    for problem in note_problems(node.notes()):
        findings.add(node.name, problem)
    return Verdict(findings.sentences(), notes)


def walk(node: Node, findings: Findings, update: Update) -> tuple[Tree, bytes]:
    """Looks at every record; the tree that they make, and the floor."""
    from merklekv.engine.verify.reference import Tree
    from merklekv.engine.verify.report import record_problems, show

    tree = Tree()
    last = b""
    total = node.count()
    floor = node.floor()
    for page in node.pages():
        for key, record in page:
            if key <= last:
                findings.add(f"key {show(key)}", f"comes after {show(last)}")
            last = key
            for problem in record_problems(key, record, floor):
                findings.add(f"key {show(key)}", problem)
            tree.add(key, record)
        update(tree.live + tree.dead, total)
    return tree, floor
