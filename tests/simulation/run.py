"""Running histories: the verdict on one, and the shortest that still fails.

`run` goes through a history, heals everything, and demands what the cluster promises; `shrink` leaves out steps as long
as what is left still fails.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import shutil
import tempfile
import traceback
from pathlib import Path
from typing import Final
from unittest import mock

from merklekv.engine import time_gate
from merklekv.engine.engine import Engine
from merklekv.engine.time_gate import DEFAULT_MAX_DRIFT_S, MAX_TRUNCATION_AHEAD_S
from merklekv.engine.verify.check import check_engine
from merklekv.errors import MerkleKVError

from .history import history
from .mishaps import Mishaps
from .node import Failure
from .oracle import Holding, is_over, show
from .steps import KEYS, History

MEMORY: Final = Path("/dev/shm")
KIND_SIZE: Final = 22
SHRINK_RUNS_MAX: Final = 600
ROUNDS_TO_AGREE: Final = 2
ROUNDS_TO_SETTLE: Final = 6


@dataclasses.dataclass
class Verdict:
    """What became of a history."""

    history: History
    problems: list[str]
    trace: str  # the digest of all that happened: the same for the same history
    crashes: list[str]

    @property
    def kind(self) -> str:
        """Its first problem, without names and numbers."""
        last = self.problems[0].rstrip().rpartition("\n")[2] if self.problems else ""
        without_place = re.sub(r"(in step \d+|healing): ", "", last)
        return re.sub(r"[0-9a-f]*[0-9][0-9a-f]*", "#", without_place)[:KIND_SIZE]

    def __str__(self) -> str:
        lines = [f"seed {self.history.seed}, {len(self.history.names)} nodes:"]
        lines += [f"  {number:3} {step}" for number, step in enumerate(self.history.steps)]
        return "\n".join([*lines, *self.problems])


def run(story: History) -> Verdict:
    """Goes through a history, from empty directories to the judgement."""
    log = logging.getLogger("merklekv")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)  # what goes wrong is told by the verdict
    root = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None, prefix="merklekv-simulation-"))
    try:
        truncation_s = (
            MAX_TRUNCATION_AHEAD_S if story.exchanges else DEFAULT_MAX_DRIFT_S
        )  # one refused needs an exchange
        with (
            mock.patch.object(time_gate, "MAX_TRUNCATION_AHEAD_S", truncation_s),
            Mishaps(story.seed, root, story.names, story.queue_max) as world,
        ):
            world.expiring = story.expiring
            problems = _problems(world, story)
            return Verdict(story, problems, world.trace.hexdigest(), world.crashes)
    finally:
        shutil.rmtree(root)
        log.setLevel(level)


def _problems(world: Mishaps, story: History) -> list[str]:
    where = "at the start"
    try:
        for number, step in enumerate(story.steps):
            where = f"in step {number}"
            world.do(step)
        if story.wrong:
            where = "with right clocks"
            world.set_right(KEYS)
        where = "healing"
        world.heal()
        if story.exchanges:
            return _come_together(world)
        world.drain()
        return _disagreements(world) or _judge(world)
    except (Failure, MerkleKVError, AssertionError) as error:
        return [f"{where}: {type(error).__name__}: {error}"]
    except Exception:  # noqa: BLE001 - whatever it is, this history fails, and shrinks
        return [f"{where}: {traceback.format_exc()}"]


def _come_together(world: Mishaps) -> list[str]:
    """With exchanges: equal contents after a few rounds, equal horizons and no tombstones after a few more."""
    for _ in range(ROUNDS_TO_AGREE):
        world.drain()
        world.remove_gone()
        world.exchange_all()
    world.drain()
    if problems := _disagreements(world):
        return problems
    for _ in range(ROUNDS_TO_SETTLE):
        world.exchange_all()
        if _settled(world):
            return _disagreements(world) or _judge(world)
    left = [
        (node.name, node.engine.gc_horizon, node.engine.tombstone_count, _expired(node.engine)) for node in world.up()
    ]
    return [f"horizons, tombstones and expired records after {ROUNDS_TO_SETTLE} more rounds: {left}", *_judge(world)]


def _settled(world: Mishaps) -> bool:
    engines = [node.engine for node in world.up()]
    return len({engine.gc_horizon for engine in engines}) == 1 and not any(
        engine.tombstone_count or _expired(engine) for engine in engines
    )


def _expired(engine: Engine) -> list[bytes]:
    """The keys of records that a node should have purged, since they have expired long before its GC horizon."""
    pairs, _ = engine.records_page()
    return [key for key, record in pairs if is_over(record, engine.gc_horizon)]


def _disagreements(world: Mishaps) -> list[str]:
    """How nodes differ, and what is unsound in any of them."""
    nodes = world.up()
    holdings = [world.holding(node) for node in nodes]
    problems: list[str] = []
    for node, holding in zip(nodes, holdings, strict=True):
        if holding.records != holdings[0].records or holding.truncation != holdings[0].truncation:
            problems.append(f"{node.name} and {nodes[0].name} differ: {_difference(holding, holdings[0])}")
    roots = {node.engine.root() for node in nodes if node.engine.root_ready}
    if not problems and len(roots) > 1:
        problems.append("equal contents, unequal roots")
    return problems


def _judge(world: Mishaps) -> list[str]:
    """What the cluster has to keep for its clients and has not, and what is unsound in any node."""
    nodes = world.up()
    before = check_engine(nodes[0].engine)
    for node in nodes:
        node.engine.checkpoint_now()
    unsound = [f"{node.name}: {sentence}" for node in nodes for sentence in check_engine(node.engine)]
    return before + unsound + world.oracle.judge(world.holding(nodes[0]))


def _difference(one: Holding, other: Holding) -> str:
    if one.truncation != other.truncation:
        return f"truncation versions {one.truncation.hex()}, {other.truncation.hex()}"
    parts = []
    for key in sorted(one.records.keys() | other.records.keys()):
        mine, theirs = (show(key, held.records[key]) if key in held.records else "nothing" for held in (one, other))
        if mine != theirs:
            parts.append(f"{key.decode()}: {mine}, {theirs}")
    return "; ".join(parts)


def shrink(verdict: Verdict) -> Verdict:
    """The shortest history to be had by leaving out steps of one that fails, as long as it fails in the same way."""
    best, runs = verdict, 0
    size = max(1, len(best.history.steps) // 2)
    while size and runs < SHRINK_RUNS_MAX:
        at, shorter = 0, False
        while at < len(best.history.steps) and runs < SHRINK_RUNS_MAX:
            steps = best.history.steps
            attempt = run(dataclasses.replace(best.history, steps=steps[:at] + steps[at + size :]))
            runs += 1
            if attempt.kind == verdict.kind:
                best, shorter = attempt, True
            else:
                at += size
        if not shorter or size > 1:
            size = size // 2 if size > 1 else 0
    return best


def run_seed(seed: str) -> Verdict:
    """The verdict on a seed's history."""
    return run(history(seed))
