"""What must hold of a directory that a power cut has left."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fixtures.engines import NOON, Wall
from merklekv_tool.formats import backup as backups
from merklekv_tool.formats.dump import Reader

from merklekv.engine.engine import Engine
from merklekv.engine.verify.check import check_directory
from merklekv.node_id import read_node_id

from .disk import Mark
from .programs import NOTE, Model, opened, shown, values_of

PROMISE_S: Final = 1.0  # of everysec


@dataclass
class Promises:
    """What was promised by a certain event, as the marks say."""

    step: int = 0  # of the story; it and all before are acknowledged, and on disk as far as the durability says
    clock: int = NOON
    published: int | None = None  # number of the first event that is not confirmed
    opened: int | None = None  # after a crash: number of the first event of what came then
    refusal: str = ""  # of a start
    node_id: str | None = None
    made: set[str] = field(default_factory=set)  # what verbs had made
    begun: set[str] = field(default_factory=set)  # what they were making


def promised(marks: list[Mark], event: int, seconds: float, durability: str, clock: int = NOON) -> Promises:
    """What was promised when the power went: `seconds` is the time of that, `clock` what the clock shows at first."""
    latest = {"always": seconds, "everysec": seconds - PROMISE_S, "never": -1.0}[durability]
    found = Promises(clock=clock)
    for mark in marks:
        if mark.event > event:
            break
        word, *rest = mark.words
        if word == "synced" or (word == "ack" and mark.seconds <= latest):
            found.step = int(rest[0])
        elif word == "clock":
            found.clock = int(rest[0])
        elif word == "published":
            found.published = int(rest[0])
        elif word == "opened":
            found.opened = int(rest[0])
        elif word == "refused":
            found.refusal = " ".join(rest)
        elif word == "node-id":
            found.node_id = rest[0]
        elif word == "made":
            found.made.add(rest[0])
        elif word == "begun":
            found.begun.add(rest[0])
    return found


@dataclass(frozen=True)
class Case:
    """What a program did, and where the data directory is."""

    history: list[Model]  # the data after each step
    data: str
    durability: str = "always"
    publishes: bool = False
    clock: int = NOON
    before: Case | None = None  # the one that a crash has ended, and ...
    before_promises: Promises | None = None  # ... what it had promised

    def judge(self, root: Path, promises: Promises, scratch: Path) -> Iterator[str]:
        """What is wrong. It starts on the directory, and changes it."""
        if promises.refusal:
            yield f"the start before was refused: {promises.refusal}"
        yield from self._judge_data(root / self.data, promises)
        for name in sorted(promises.begun):
            yield from _judge_made(root / name, name, name in promises.made, self.history[-1], scratch)

    def _allowed(self, promises: Promises) -> list[Model]:
        if self.before is not None and self.before_promises is not None and promises.opened is None:
            history, step = self.before.history, self.before_promises.step
        else:
            history, step = self.history, promises.step
        return [shown(model, promises.clock) for model in history[step:]]

    def _judge_data(self, place: Path, promises: Promises) -> Iterator[str]:
        allowed = self._allowed(promises)
        if (place / "FORMAT").exists():
            yield from (f"before the start: {problem}" for problem in check_directory(place))
        elif {} not in allowed:
            yield "there is no data directory, and writes were acknowledged"
            return
        found = None
        for start in ("first", "second"):
            place.parent.mkdir(parents=True, exist_ok=True)
            engine = opened(place, checkpoint="manual", durability="never", wall_clock=Wall(promises.clock))
            try:
                values = shown(values_of(engine), promises.clock)
                if found is None and values not in allowed:
                    yield _difference(values, allowed)
                if found is not None and values != found:
                    yield f"the {start} start finds something else than the one before"
                found = values
                if self.publishes:
                    yield from _judge_outbox(engine, promises)
            finally:
                engine.close()
        yield from (f"after two starts: {problem}" for problem in check_directory(place))
        if promises.node_id is not None and read_node_id(place) != promises.node_id:
            yield f"the node id is {read_node_id(place)}, and was {promises.node_id}"


def _difference(found: Model, allowed: list[Model]) -> str:
    nearest = min(allowed, key=lambda model: len(dict_difference(model, found)))
    keys = sorted(dict_difference(nearest, found))
    lines = [f"{key!r}: found {found.get(key)!r:.60}, expected {nearest.get(key)!r:.60}" for key in keys[:8]]
    return f"what is found is what no step from the last promise on has left; nearest: {'; '.join(lines)}"


def dict_difference(one: Model, other: Model) -> set[bytes]:
    """Keys that differ."""
    return {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}


def _judge_outbox(engine: Engine, promises: Promises) -> Iterator[str]:
    retention = engine.retention
    if promises.published is None:
        return
    cursor = retention.cursor
    if cursor is None:
        yield "the replication cursor is gone"
        return
    end = engine.log.sequence
    confirmed = min(promises.published, end) if promises.opened is None else promises.published
    at, following = cursor.lsn, cursor.sequence
    if following > confirmed:
        yield f"the cursor is at event {following}, and events are confirmed up to {confirmed}"
        return
    first = None
    while (frame := retention.next_frame(at)) is not None:
        if frame.local_count:
            if first is None:
                first = following = frame.sequence
            if frame.sequence != following:
                yield f"event {frame.sequence} follows where {following} should"
            following = frame.sequence + frame.local_count
        at = frame.end
    if first is not None and first > confirmed:
        yield f"the first event from the cursor on is {first}, and events are confirmed up to {confirmed}"
    if (confirmed if first is None else following) < end:
        yield f"the last event from the cursor on is before {following}, and the log ends at {end}"


# -- what verbs make ---------------------------------------------------------------------------------------------------


def _judge_made(place: Path, name: str, is_made: bool, expected: Model, scratch: Path) -> Iterator[str]:
    if not place.exists():
        if is_made:
            yield f"{name}: is gone, and was made"
        return
    if name == "dump.jsonl":
        with place.open("rb") as file:
            keys = [key for key, _ in Reader(file, name)]
        if not expected.keys() - {key for key in expected if key.startswith(NOTE)} <= set(keys):
            yield f"{name}: lacks keys"
        return
    if name.startswith("copy"):
        with _emptied(scratch) as target:
            backups.examine(target, backups.unpack(place, target, _silent), name, _silent)
            yield from _judge_directory(target, name, expected)
    elif "loaded" in name:
        if is_made:
            yield from _judge_directory(place, name, {key: each for key, each in expected.items() if key[:1] != b"\0"})
    else:
        yield from _judge_directory(place, name, expected)


def _judge_directory(place: Path, name: str, expected: Model) -> Iterator[str]:
    yield from (f"{name}: {problem}" for problem in check_directory(place))
    engine = opened(place, checkpoint="manual", durability="never")
    try:
        if values_of(engine) != expected:
            yield f"{name}: other data than were copied: {_difference(values_of(engine), [expected])}"
    finally:
        engine.close()


def _silent(done: int, total: int) -> None:
    pass


@contextmanager
def _emptied(place: Path) -> Iterator[Path]:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    yield place
