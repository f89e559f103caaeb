"""Draws docs/pictures/exchange.svg: the messages of an exchange that was really made, with their sizes.

    python scripts/write_exchange_picture.py            draws it
    python scripts/write_exchange_picture.py --check    checks that it is what the code makes

Two nodes without sockets hold the same keys, and two differ: one that only the initiator has, and one that is newer at
the responder. Clock, store ids and process epochs are fixed, so the sizes are the same each time.
"""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import generated
from write_deletion_examples import Example, Node

from merklekv.engine.merkle import LEAVES_PER_INNER
from merklekv.replication.sync.initiator import Initiator
from merklekv.replication.sync.messages import LEAF_DIGEST_SIZE, decode

PICTURE = generated.DOCS / "pictures" / "exchange.svg"
STYLE = generated.DOCS / "pictures" / "tree.svg"  # whose style this one has
KEYS = 50_000
VALUE = b"v" * 100
LARGEST = 1 << 30  # bytes of a message
ROUND_HEIGHT = 84
LEFT, RIGHT = 130, 458  # of the lines of the two nodes
LEVELS = 482  # where the text about the level begins


class Round(NamedTuple):
    """A request and its answer."""

    kind: str
    sent: int  # bytes
    received: int


class Run(NamedTuple):
    """What an exchange took, and what it came to on each level."""

    rounds: list[Round]
    inner: int  # that differ
    leaves: int
    compared: int  # records of the initiator in these
    keys: int


def measure() -> Run:
    """The exchange."""
    numbers = itertools.count(1)

    def instance(size: int) -> bytes:
        return next(numbers).to_bytes(size, "big")

    with tempfile.TemporaryDirectory() as directory, mock.patch("os.urandom", instance):
        example = Example(Path(directory))
        a, b = example.node("a"), example.node("b")
        for number in range(KEYS):
            a.engine.set(b"user:%05d" % number, VALUE)
        a.engine.commit()
        for one, other in ((b, a), (a, b)):
            example.tick()
            one.exchange(other)
        a.set("cart:17")
        b.set("user:00042")
        example.tick()
        try:
            return _observed(a, b)
        finally:
            for node in (a, b):
                node.engine.close()


def _observed(a: Node, b: Node) -> Run:
    rounds: list[Round] = []
    inner = leaves = compared = 0
    initiator = Initiator(a.engine, a.members, "example")
    steps = initiator.steps()
    request = next(steps)
    while True:
        answer = b.answer(request)
        kind, asked = decode(request, LARGEST)
        _, told = decode(answer, LARGEST)
        rounds.append(Round(kind, len(request), len(answer)))
        if kind == "inner":
            inner = len(told.binary("nodes"))
            assert len(told.binary("leaves")) == inner * LEAVES_PER_INNER * LEAF_DIGEST_SIZE
        elif kind == "buckets":
            leaves = len(asked.binary("buckets")) // 2
            compared = len(asked.binary("prints")) // asked.number("size")
        try:
            request = steps.send(answer)
        except StopIteration:
            report = initiator.report
            return Run(rounds, inner, leaves, compared, report.keys_sent + report.keys_received)


def size(count: int) -> str:
    """Bytes, rounded so far that it does not matter how well a table of members was deflated."""
    return f"{count / 1000:.1f} kB"


def drawn(run: Run) -> str:
    """The picture."""
    height = 92 + ROUND_HEIGHT * len(run.rounds)
    each = f"{run.inner * LEAVES_PER_INNER} leaves"
    words = {
        "hello": ("who I am, my root", "the same of me: the roots differ", "1 root", "differs"),
        "inner": (
            "256 inner digests",
            f"{run.inner} of them differ: their {each}",
            "256 inner nodes",
            f"{run.inner} differ",
        ),
        "buckets": (
            f"8 bytes of each record in {run.leaves} leaves",
            "which of them I lack; a record that you lack",
            f"{run.inner * LEAVES_PER_INNER} leaves",
            f"{run.leaves} differ",
        ),
        "transfer": ("the record that you lack", "merged", f"{run.compared} records", f"{run.keys} keys differ"),
        "done": ("all is done", "what I have applied", f"{KEYS + 1:,} keys", "equal"),
    }
    style = STYLE.read_text()
    style = style[style.index("  <style>") : style.index("  </defs>") + len("  </defs>\n")]
    total = sum(one.sent + one.received for one in run.rounds)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 700 {height}" width="700" height="{height}" role="img" '
        'aria-labelledby="title desc">\n',
        '  <title id="title">An exchange between two nodes</title>\n',
        f'  <desc id="desc">{description(run)}</desc>\n',
        style,
        f'  <rect class="paper" width="700" height="{height}" rx="8"/>\n',
    ]
    for at, name, kind in ((LEFT, "initiator", "blue"), (RIGHT, "responder", "amber")):
        parts += [
            f'  <path class="frame" d="M{at} 52 V{height - 36}"/>\n',
            f'  <rect class="{kind}" x="{at - 56}" y="16" width="112" height="36" rx="5"/>\n',
            f'  <text class="name mid" x="{at}" y="39">{name}</text>\n',
        ]
    parts += [f'  <text class="name" x="{LEVELS + 78}" y="39">compared</text>\n']
    for number, one in enumerate(run.rounds):
        top = 82 + number * ROUND_HEIGHT
        request, answer, level, result = words[one.kind]
        parts += [
            f'  <text class="code end" x="{LEFT - 12}" y="{top + 4}">{one.kind}</text>\n',
            f'  <path class="way" d="M{LEFT} {top} H{RIGHT - 1}"/>\n',
            f'  <text class="small" x="{LEFT + 12}" y="{top - 7}">{request}</text>\n',
            f'  <text class="small end" x="{RIGHT - 12}" y="{top - 7}">{size(one.sent)}</text>\n',
            f'  <path class="way" d="M{RIGHT} {top + 32} H{LEFT + 1}"/>\n',
            f'  <text class="small" x="{LEFT + 12}" y="{top + 25}">{answer}</text>\n',
            f'  <text class="small end" x="{RIGHT - 12}" y="{top + 25}">{size(one.received)}</text>\n',
            f'  <rect class="box" x="{LEVELS + 34}" y="{top - 14}" width="164" height="48" rx="5"/>\n',
            f'  <text class="mid" x="{LEVELS + 116}" y="{top + 6}">{level}</text>\n',
            f'  <text class="small mid" x="{LEVELS + 116}" y="{top + 24}">{result}</text>\n',
        ]
        if number:
            parts += [f'  <path class="way" d="M{LEVELS + 116} {top - 50} V{top - 16}"/>\n']
    parts += [
        f'  <text class="small mid" x="350" y="{height - 14}">{KEYS + 1:,} keys, of which two differ: '
        f"{size(total)} in {len(run.rounds)} rounds; sending everything would take "
        f"{KEYS * (10 + 41 + len(VALUE)) / 1e6:.1f} MB</text>\n",
        "</svg>\n",
    ]
    return "".join(parts)


def description(run: Run) -> str:
    """The same in words."""
    rounds = "; ".join(f"{one.kind}, {size(one.sent)} and {size(one.received)} back" for one in run.rounds)
    return (
        f"Two nodes with {KEYS + 1:,} keys, of which two differ. Requests go from the initiator to the responder, "
        f"and an answer comes back: {rounds}. They compare the roots, then 256 inner nodes, then the leaves below the "
        f"{run.inner} that differ, then the {run.compared} records in the {run.leaves} leaves that differ."
    )


if __name__ == "__main__":
    generated.write(PICTURE, drawn(measure()))
